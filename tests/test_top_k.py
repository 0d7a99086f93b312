"""The exchange of what is largest: its values, its feedback, and its bytes."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cocod_jax as cj
from tests import merges, problems
from tests.problems import WEIGHTS, N


def rows(shape, seed=0):
    return np.random.default_rng(seed).normal(size=(N, *shape)).astype(np.float32)


def over_workers(exchange):
    """``(state, tree) -> (mean, state)`` of all workers."""

    def one(state, tree):
        sent, state = exchange.send(state, tree, None)
        return exchange.receive(sent, tree), state

    return jax.jit(jax.vmap(one, axis_name="workers"))


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("chunk", [3, 4, 100])
def test_it_follows_its_loop(chunk, weights):
    """13 numbers of four leaves, in chunks that do and do not divide them."""
    exchange = cj.exchanges.top_k("workers", k=2, chunk=chunk, weights=weights)
    loop = merges.TopK(N, k=2, chunk=chunk, decay=0.95)
    run, p = over_workers(exchange), problems.shares(weights)
    tree = problems.stacked([problems.params()] * N)
    state = jax.vmap(exchange.init)(tree)
    for r in range(4):
        tree = jax.tree.map(lambda x, r=r: rows(x.shape[1:], r), tree)
        mean, state = run(state, tree)
        worker = lambda i, tree=tree: jax.tree.map(lambda x: x[i].astype(float), tree)
        expected = loop([worker(i) for i in range(N)], p)
        for i in range(N):
            own = jax.tree.map(lambda x, i=i, mean=mean: x[i], mean)
            chex.assert_trees_all_close(own, expected, rtol=1e-5, atol=1e-6)


def test_what_is_left_out_is_sent_later():
    """Without decay, what came and what is kept is all that was given."""
    exchange = cj.exchanges.top_k("workers", k=1, chunk=4, decay=1.0)
    run, tree = over_workers(exchange), rows([12])
    state, arrived = jax.vmap(exchange.init)(tree), 0
    for r in range(6):
        mean, state = run(state, tree if r == 0 else np.zeros_like(tree))
        arrived = arrived + mean
        kept = np.mean(state["float32"], axis=0)
        np.testing.assert_allclose(arrived[0] + kept, tree.mean(0), atol=1e-6)
    # A chunk of four is sent after four rounds.
    np.testing.assert_array_equal(state["float32"], 0)


def test_bytes_are_those_of_values_and_places():
    round_ = cj.make_round(
        lambda w, batch: jnp.sum(w),
        cj.per_step.mean_gradients("workers"),
        cj.rules.sparse_loco(cj.exchanges.top_k("workers", k=8, chunk=256)),
        period=2,
    )
    state = cj.replicate(round_.init(jnp.zeros([1000])), N)
    # Four chunks of eight values with 32 bits each, and places with 16.
    assert cj.summary(round_, state).sent_bytes == {"uint16": 4 * 8 * 6}


def test_wide_and_narrow_floats_keep_their_numbers():
    with jax.enable_x64(True):
        exchange = cj.exchanges.top_k("workers", k=1, chunk=2)
        tree = {
            "wide": np.full([N, 2], np.pi),
            "narrow": jnp.ones([N, 2], jnp.bfloat16),
        }
        mean = jax.vmap(exchange.average, axis_name="workers")(tree)
    assert mean["wide"].dtype == np.float64
    assert mean["narrow"].dtype == jnp.bfloat16
    np.testing.assert_allclose(mean["wide"], [[np.pi, 0]] * N, rtol=1e-15)


def test_what_it_cannot_send_is_refused():
    with pytest.raises(ValueError, match="k=5 and chunk=4 must be k <= chunk <= 65536"):
        cj.exchanges.top_k("workers", k=5, chunk=4)
    with pytest.raises(ValueError, match=r"decay=1\.5 must be a number in 0\.\.1"):
        cj.exchanges.top_k("workers", decay=1.5)
    exchange = cj.exchanges.top_k("workers")
    with pytest.raises(ValueError, match="real numbers; a leaf is complex64"):
        jax.vmap(exchange.average, axis_name="workers")(jnp.ones([N, 2], jnp.complex64))
