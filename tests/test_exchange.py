"""The mean over the workers: its value, its dtypes, and what goes on the wire."""

import re
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import cocod_jax as cj
from tests import problems
from tests.problems import WEIGHTS, N


def rows(seed=0, dtype=np.float32):
    """A tree of per-worker arrays, [N, ...]."""
    rng = np.random.default_rng(seed)
    shape = lambda leaf: rng.normal(size=(N, *leaf.shape)).astype(dtype)
    return jax.tree.map(shape, problems.params())


def average(exchange, tree, **kwargs):
    return jax.pmap(exchange.average, axis_name="workers")(tree, **kwargs)


def all_reduces(function, *args):
    """The dtypes of the all-reduces in the compiled program."""
    hlo = jax.pmap(function, axis_name="workers").lower(*args).compile().as_text()
    return sorted(re.findall(r"= \(?(\w+)\[[^=]*? all-reduce(?:-start)?\(", hlo))


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_mean_is_the_weighted_mean(weights):
    tree = rows()
    result = average(cj.mean("workers", weights), tree)
    shares = problems.shares(weights)
    expected = jax.tree.map(lambda x: np.tensordot(shares, x, axes=1), tree)
    for worker in range(N):
        own = jax.tree.map(lambda x, i=worker: x[i], result)
        # float32 sums of four numbers near 1, in another order.
        chex.assert_trees_all_close(own, expected, rtol=1e-5, atol=1e-6)


def test_weights_that_travel_count_instead_of_the_constructed_ones():
    tree = rows()
    travelling = np.array([0.25, 0.125, 0.5, 0.125], np.float32)
    exchange = cj.mean("workers", (4, 3, 2, 1))
    result = jax.pmap(exchange.average, axis_name="workers")(tree, travelling)
    expected = average(cj.mean("workers", tuple(travelling)), tree)
    chex.assert_trees_all_close(result, expected, rtol=1e-6)


def test_one_all_reduce_for_each_dtype_on_the_wire():
    many = {f"layer{i}": np.ones([N, 3, 2], np.float32) for i in range(20)}
    exchange = cj.mean("workers", WEIGHTS)
    assert all_reduces(exchange.average, many) == ["f32"]
    # Narrow floats travel in the float32 buffer.
    mixed = {**many, "narrow": jnp.ones([N, 5], jnp.bfloat16)}
    assert all_reduces(exchange.average, mixed) == ["f32"]
    with jax.enable_x64(True):
        mixed = {**mixed, "wide": np.ones([N, 5], np.float64)}
        assert all_reduces(exchange.average, mixed) == ["f32", "f64"]


def test_a_round_has_one_all_reduce():
    """Metrics and travelling weights cost no collective of their own."""
    for delay in (0, 1, 3):
        round_ = cj.make_round(
            problems.loss,
            optax.adam(0.01),
            cj.cocod("workers", WEIGHTS),
            period=3,
            delay=delay,
        )
        state = cj.replicate(round_.init(problems.params()), N)
        batches = problems.round_batches(problems.batches(), 0)
        assert all_reduces(round_.run, state, batches) == ["f32"]


def test_bfloat16_is_summed_in_float32():
    """1 + 3 * 2^-8: a bfloat16 sum of 256 + 1 + 1 + 1 would stay at 256."""
    x = jnp.array([[256.0], [1.0], [1.0], [2.0]], jnp.bfloat16)
    result = average(cj.mean("workers"), x)
    assert result.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(result, np.float32), 65.0)


def test_leaves_that_are_not_floats_stay_with_their_worker():
    tree = {"x": np.arange(N, dtype=np.float32), "n": np.arange(N)}
    result = average(cj.mean("workers"), tree)
    np.testing.assert_array_equal(result["n"], tree["n"])
    np.testing.assert_allclose(result["x"], 1.5)


@pytest.mark.parametrize("via", ["pmap", "vmap"])
def test_several_axes_average_together(via):
    """Two hosts of four workers each: eight workers with a weight each."""
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    exchange = cj.mean(("hosts", "workers"), weights=range(1, 9))
    inner = jax.vmap(exchange.average, axis_name="workers")
    outer = jax.pmap if via == "pmap" else jax.vmap
    result = outer(inner, axis_name="hosts")(x)
    np.testing.assert_allclose(result, np.average(x.ravel(), weights=range(1, 9)))


@pytest.mark.parametrize(
    "weights", [(), (1, 0), (1, -1), (1, np.nan), (1, np.inf), (0, 0)]
)
def test_bad_weights_are_refused(weights):
    with pytest.raises(ValueError, match=r"weights=.* positive, finite"):
        cj.mean("workers", weights)
    with pytest.raises(ValueError, match=r"weights=.* positive, finite"):
        cj.cocod("workers", weights)


def test_weights_are_a_sequence():
    weights: Any = 5
    with pytest.raises(TypeError, match=r"weights=5 must be a sequence"):
        cj.mean("workers", weights)


def test_weights_of_another_number_of_workers_are_refused():
    exchange = cj.mean("workers", (1, 2, 3))
    with pytest.raises(ValueError, match=r"weights has 3 entries.* 4 workers"):
        average(exchange, rows())


def test_weights_belong_to_the_exchange():
    with pytest.raises(ValueError, match="give the weights to the exchange"):
        cj.cocod(cj.mean("workers"), (1, 2))


def test_an_axis_that_is_not_bound_is_named():
    with pytest.raises(ValueError, match=r"axis_name='workers' is not bound"):
        cj.mean("workers").average(problems.params())
    with pytest.raises(ValueError, match=r"axis_name='workers' is not bound"):
        jax.vmap(cj.mean("workers").average, axis_name="other")(rows())


@pytest.mark.parametrize("axis_name", [None, 3, (), ("a", 2)])
def test_an_axis_name_is_a_string(axis_name):
    with pytest.raises(TypeError, match="axis_name"):
        cj.mean(axis_name)


@pytest.mark.parametrize("tree", [{"n": np.arange(N)}, {"b": np.ones(N, bool)}])
def test_a_tree_without_floats_is_refused(tree):
    with pytest.raises(ValueError, match="no floating-point leaf"):
        jax.vmap(cj.mean("workers").average, axis_name="workers")(tree)


@pytest.mark.parametrize("tree", [{}, [], (None, {"masked": optax.MaskedNode()})])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_a_tree_without_leaves_sends_nothing(tree, weights):
    average = lambda _: cj.mean("workers", weights).average(tree)
    over_workers = jax.jit(jax.vmap(average, axis_name="workers"))
    assert over_workers(np.zeros(N)) == tree
    assert "psum" not in str(over_workers.trace(np.zeros(N)).jaxpr)


@pytest.mark.parametrize("leaves", [3, 200])
def test_many_leaves_arrive_as_few_do(leaves):
    """More than a hundred are cut out of the buffer in another way, on CPUs."""
    sizes = np.arange(leaves) % 5  # some leaves are empty
    tree = [np.full((2, size), i, np.float32) for i, size in enumerate(sizes)]
    tree[-1][:, :1] = np.nan
    for mapped in (jax.vmap, jax.pmap):
        arrived = mapped(cj.mean("workers").average, axis_name="workers")(tree)
        jax.tree.map(np.testing.assert_array_equal, arrived, tree)
