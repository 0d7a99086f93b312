"""Workers that are not finite are left out, and healed by what arrives."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import cocod_jax as cj
from tests import merges, problems
from tests.problems import PERIOD, ROUNDS, WEIGHTS, N

ADAM = optax.adamw(optax.linear_schedule(0.01, 0.05, 20))
RULES = {
    "cocod": lambda exchange: cj.cocod(exchange),
    "diloco": lambda exchange: cj.rules.diloco(exchange),
    "vrl_sgd": lambda exchange: cj.rules.vrl_sgd(
        exchange, learning_rate=0.05, period=PERIOD
    ),
}
WAYS = {
    "fused": {"execution": "fused"},
    "split": {"execution": "split"},
    "streamed": {"streamed": True},
    "streamed split": {"streamed": True, "execution": "split"},
}


def finite(weights=None):
    return cj.exchanges.finite("workers", weights)


def rows(seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda leaf: rng.normal(size=(N, *leaf.shape))
    return jax.tree.map(draw, problems.params())


def broken(tree, workers, value=np.nan):
    """One number of each of these workers is not finite."""
    w = np.array(tree["w"])
    for worker in workers:
        w[worker].flat[worker] = value
    return tree | {"w": w}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("workers", [(), (1,), (0, 3)])
def test_the_mean_is_that_of_the_others(workers, value):
    with jax.enable_x64(True):
        tree = broken(rows(), workers, value)
        average = jax.vmap(finite(WEIGHTS).average, axis_name="workers")
        trees = [jax.tree.map(lambda x, i=i: x[i], tree) for i in range(N)]
        expected = merges.finite_mean(trees, problems.shares(WEIGHTS))
        chex.assert_trees_all_close(
            average(tree), problems.stacked([expected] * N), rtol=1e-12
        )


def test_dtypes_decide_together():
    """What is finite of a worker that is not does not count either."""
    with jax.enable_x64(True):
        tree = {
            "wide": jnp.array([1.0, jnp.nan, 3.0]),
            "single": jnp.array([1, 50, 3], jnp.float32),
        }
        result = jax.vmap(finite().average, axis_name="workers")(tree)
    np.testing.assert_array_equal(result["single"], 2)
    np.testing.assert_array_equal(result["wide"], 2)


def test_nobody_is_left():
    result = jax.vmap(finite().average, axis_name="workers")(jnp.full([N, 2], jnp.inf))
    assert np.isnan(result).all()


def trainer(rule, streamed=False, **way):
    round_ = cj.make_round(
        problems.loss, ADAM, RULES[rule](finite()), period=PERIOD, streamed=streamed
    )
    state = cj.replicate(round_.init(problems.params()), N)
    return state, cj.distribute(round_, **way)


def train(run, state, batches, rounds=range(ROUNDS)):
    alarm, sentences, taking_part = cj.DriftAlarm(), [], []
    for r in rounds:
        state, metrics = run(state, problems.round_batches(batches, r))
        sentences.append(alarm(metrics))
        taking_part.append(np.isfinite(metrics.distance))
    return state, sentences, taking_part


def is_finite(tree):
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return all(np.isfinite(leaf).all() for leaf in floats)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "rule",
    [pytest.param(r, marks=[pytest.mark.matrix] * (r != "cocod")) for r in RULES],
)
def test_a_gradient_that_is_not_finite_costs_one_worker_a_round(rule, way):
    """All that the worker has is finite again, and its alarm names it."""
    state, run = trainer(rule, **WAYS[way])
    x, y = problems.batches()
    x[2, 1, 0, 0] = np.nan  # in the first round
    state, sentences, taking_part = train(run, state, (x, y))
    assert is_finite((state.params, state.opt_state, state.rule_state))
    assert sentences[0] is not None
    assert "loss of worker 2" in sentences[0]
    np.testing.assert_array_equal(state.opt_state[0].count, ROUNDS * PERIOD)
    # Its snapshot counted, and the merge of that round healed it. Streamed, its next
    # pieces do not count, until a merge of each has healed it.
    missed = sum(t[2].size - t[2].sum() for t in taking_part)
    assert missed == (PERIOD - 1 if "streamed" in way else 0)
    assert np.all([t[[0, 1, 3]].all() for t in taking_part])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("workers", [(1,), (0, 2)])
def test_parameters_that_are_not_finite_are_replaced(workers, way):
    state, run = trainer("cocod", **WAYS[way])
    state = state._replace(params=broken(state.params, workers, np.inf))
    state, sentences, taking_part = train(run, state, problems.batches())
    assert is_finite((state.params, state.opt_state))
    named = ", ".join(map(str, workers))
    assert f"distance of worker {named}" in sentences[0]
    well = [i for i in range(N) if i not in workers]
    assert np.all([t[well].all() for t in taking_part])
    assert taking_part[-1].all()


@pytest.mark.parametrize("way", ["fused", "streamed"])
def test_when_all_are_broken_the_alarm_says_so(way):
    state, run = trainer("cocod", **WAYS[way])
    nothing = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), state.params)
    state = state._replace(params=nothing)
    state, sentences, taking_part = train(run, state, problems.batches())
    assert all(np.isnan(leaf).all() for leaf in jax.tree.leaves(state.params))
    assert not np.any(taking_part[-1])
    assert "loss of worker 0, 1, 2, 3" in sentences[0]
    assert "If all workers are named, the run has diverged" in sentences[0]


def test_when_all_break_in_one_round_they_go_back_to_its_start():
    state, run = trainer("cocod")
    x, y = problems.batches()
    x[:, 1, 0, 0] = np.nan
    after, sentences, _ = train(run, state, (x, y), rounds=[0])
    start = problems.stacked([problems.params()] * N)
    chex.assert_trees_all_close(after.params, start, rtol=1e-6)
    assert "loss of worker 0, 1, 2, 3" in sentences[0]


def test_batch_statistics_of_a_step_without_a_gradient_are_not_kept():
    def loss(w, seen, batch, key):
        return 0.5 * (w - batch) ** 2, {
            "mean": seen["mean"] + batch,
            "n": seen["n"] + 1,
        }

    rule = cj.cocod(finite())
    round_ = cj.make_round(loss, optax.sgd(0.1), rule, period=2, stateful=True)
    first = round_.init(jnp.array(1.0), {"mean": jnp.array(0.0), "n": jnp.array(0)})
    batches = np.array([[1.0, 1.0], [1.0, np.nan]], np.float32)
    state, _ = cj.distribute(round_)(cj.replicate(first, 2), batches)
    np.testing.assert_array_equal(state.model_state["mean"], [2, 1])
    np.testing.assert_array_equal(state.model_state["n"], 2)


def test_what_is_not_trained_is_left_alone():
    loss = lambda p, batch: jnp.sum(p["w"] * batch) + p["frozen"]
    round_ = cj.make_round(
        loss,
        optax.sgd(0.1),
        cj.cocod(finite()),
        period=1,
        trainable={"w": True, "frozen": False},
    )
    state = cj.replicate(round_.init({"w": jnp.ones(3), "frozen": jnp.array(5.0)}), 2)
    state, _ = cj.distribute(round_)(state, np.array([[1], [np.nan]], np.float32))
    np.testing.assert_array_equal(state.params["frozen"], 5)
    np.testing.assert_array_equal(state.params["w"][1], 1)  # the others' snapshot


def test_every_keeps_the_others_from_harm():
    """A worker that skips its bad steps stays; one that is broken is left out."""
    inner = optax.apply_if_finite(ADAM, 10)
    optimizer = cj.every(PERIOD, inner, cj.cocod(finite()))

    def step(params, state, batch):
        gradient = jax.grad(problems.loss)(params, batch)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    params = broken(problems.stacked([problems.params()] * N), [3])
    state = jax.vmap(optimizer.init)(params)
    run = jax.jit(jax.vmap(step, axis_name="workers"))
    x, y = problems.batches()
    x[1, 1, 0, 0] = np.nan
    for t in range(2 * PERIOD):
        params, state = run(params, state, (x[:, t], y[:, t]))
    well = jax.tree.map(lambda leaf: leaf[:3], params)
    assert is_finite(well)
    assert not is_finite(params)


def test_what_heals_must_be_like_the_parameters():
    rule = cj.MergeRule(
        finite(),
        lambda m, x, state, s: (x, state),
        outgoing=lambda state, snapshot: snapshot["w"].mean(),
    )
    round_ = cj.make_round(problems.loss, optax.sgd(0.1), rule, period=PERIOD)
    state = cj.replicate(round_.init(problems.params()), N)
    with pytest.raises(ValueError, match="what arrives and what it heals"):
        cj.distribute(round_)(state, problems.round_batches(problems.batches(), 0))
