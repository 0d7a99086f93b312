"""More or fewer workers: what is kept, what begins anew, and that it trains on."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import cocod_jax as cj
from tests import meshes, problems
from tests.problems import N

NUMBERS = [1, N - 1, N + 2]


def make_round(rule: Any = None, inner: Any = None):
    rule = cj.rules.diloco("workers") if rule is None else rule
    inner = optax.adam(0.1) if inner is None else inner
    return cj.make_round(problems.loss, inner, rule, period=problems.PERIOD)


def trained(round_, state=None, workers=N):
    if state is None:
        state = cj.replicate(round_.init(problems.params()), workers)
    batches = problems.batches(workers=workers)
    run = cj.distribute(round_, via="vmap")
    return run(state, problems.round_batches(batches, 0))


@pytest.mark.parametrize("workers", NUMBERS)
def test_the_mean_stays_to_the_bit_and_the_run_goes_on(workers):
    round_ = make_round()
    state, _ = trained(round_)
    before = jax.device_get((cj.consensus(state), state.count[0], state.rule_state))
    resized, begun_anew = cj.workers.resize(state, round_, workers)
    params, count, rule_state = before
    chex.assert_trees_all_equal(cj.consensus(resized), params)
    assert begun_anew == ()
    np.testing.assert_array_equal(resized.count, [count] * workers)
    states = map(jax.tree.leaves, (resized.rule_state, rule_state))
    for own, old in zip(*states, strict=True):
        np.testing.assert_array_equal(own, np.broadcast_to(old[0], own.shape))
    keys = np.asarray(jax.random.key_data(resized.key))
    assert len(np.unique(keys, axis=0)) == workers
    _, metrics = trained(round_, resized, workers)
    assert np.isfinite(metrics.loss).all()


def test_unequal_workers_count_by_their_weights():
    round_ = make_round(cj.cocod("workers", weights=(1, 2)))
    state = cj.replicate(make_round(cj.cocod("workers")).init(problems.params()), N)
    state = cj.reweight(state, problems.WEIGHTS)
    apart = lambda x: x + jnp.arange(N, dtype=x.dtype).reshape(-1, *[1] * (x.ndim - 1))
    state = state._replace(params=jax.tree.map(apart, state.params))
    resized, _ = cj.workers.resize(state, round_, 2)
    chex.assert_trees_all_equal(cj.consensus(resized), cj.consensus(state))
    np.testing.assert_allclose(resized.weight, [1 / 3, 2 / 3], rtol=1e-6)


@pytest.mark.parametrize("moments", ["mean", "nearest", "reset"])
def test_moments_follow_their_policy(moments):
    round_ = make_round()
    state, _ = trained(round_)
    mu = np.asarray(optax.tree.get(state.opt_state, "mu")["w"])
    weight = np.asarray(state.weight)
    resized, _ = cj.workers.resize(state, round_, 2, moments=moments)
    found = optax.tree.get(resized.opt_state, "mu")["w"]
    expected = {
        "mean": np.broadcast_to(np.tensordot(weight, mu, axes=1), found.shape),
        "nearest": mu[[0, N // 2]],
        "reset": np.zeros_like(found),
    }[moments]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)
    np.testing.assert_array_equal(
        optax.tree.get(resized.opt_state, "count"), [problems.PERIOD] * 2
    )


@pytest.mark.parametrize(
    ("rule", "anew"),
    [
        (
            cj.rules.vrl_sgd("workers", learning_rate=0.1, period=problems.PERIOD),
            "rule_state['w']",
        ),
        (cj.cocod(cj.exchanges.narrow("workers", "int4")), "error"),
        (
            cj.rules.sparse_loco(cj.exchanges.top_k("workers", k=1, chunk=8)),
            "exchange_state['float32']",
        ),
    ],
    ids=["vrl_sgd", "narrow", "sparse_loco"],
)
def test_what_each_had_for_itself_begins_anew_and_is_named(rule, anew):
    round_ = make_round(rule, optax.sgd(0.1))
    state, _ = trained(round_)
    state, _ = trained(round_, state)
    resized, begun_anew = cj.workers.resize(state, round_, 3)
    assert any(anew in name for name in begun_anew)
    _, metrics = trained(round_, resized, 3)
    assert np.isfinite(metrics.loss).all()


def test_batch_statistics_are_those_of_the_consensus():
    loss = lambda w, statistics, batch, key: (jnp.mean((w - batch) ** 2), statistics)
    rule = cj.cocod("workers")
    round_ = cj.make_round(loss, optax.sgd(0.1), rule, period=1, stateful=True)
    state = cj.replicate(round_.init(jnp.zeros([]), {"mean": jnp.zeros([])}), 2)
    state = state._replace(model_state={"mean": jnp.array([1.0, 4.0])})
    resized, _ = cj.workers.resize(state, round_, 3)
    np.testing.assert_allclose(resized.model_state["mean"], [2.5] * 3)


def test_what_it_refuses_is_named():
    round_ = make_round()
    state, _ = trained(round_)
    with pytest.raises(ValueError, match="workers=0"):
        cj.workers.resize(state, round_, 0)
    wrong: Any = "sum"
    with pytest.raises(ValueError, match="moments='sum' must be"):
        cj.workers.resize(state, round_, 2, moments=wrong)
    with pytest.raises(ValueError, match="opt_state of the state is that of another"):
        cj.workers.resize(state, make_round(inner=optax.sgd(0.1)), 2)
    with pytest.raises(ValueError, match="rule_state of the state is that of another"):
        cj.workers.resize(state, make_round(cj.cocod("workers")), 2)
    mesh = meshes.mesh_of("2x4")
    shared = meshes.make(cj.cocod("workers"))
    on_mesh = cj.replicate(
        shared.init(meshes.sharded(meshes.params(), mesh)), mesh=mesh
    )
    with pytest.raises(ValueError, match="of workers of one device"):
        cj.workers.resize(on_mesh, shared, 4)
