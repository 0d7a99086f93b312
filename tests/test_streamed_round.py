"""Streamed exchanges with all that a round and an optimizer may be asked for."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import cocod_jax as cj
from tests import problems, reference
from tests.methods import RATE
from tests.problems import PERIOD, WEIGHTS, N

make_round = functools.partial(cj.make_round, period=PERIOD, streamed=True)
SGD = optax.sgd(RATE)


def updated(optimizer, gradient, params):
    """What the optimizer returns for workers with these gradients and parameters."""
    state = jax.vmap(optimizer.init)(params)
    return jax.vmap(optimizer.update, axis_name="workers")(gradient, state, params)[0]


@pytest.mark.parametrize("execution", ["fused", "split"])
def test_micro_batches(execution):
    """Workers take 1, 2, 1 and 2 micro-batches in every step."""
    with jax.enable_x64(True):
        several = problems.batches(np.float64, steps=2 * 2 * PERIOD)
        apart = lambda leaf: leaf.reshape(N, 2 * PERIOD, 2, *leaf.shape[2:])
        several = jax.tree.map(apart, several)
        counts = np.tile([[1], [2]], (N // 2, PERIOD))
        rule = cj.cocod("workers", WEIGHTS)
        round_ = make_round(problems.loss, SGD, rule)
        run = cj.distribute(round_, via="vmap", execution=execution)
        state = cj.replicate(round_.init(problems.params(np.float64)), N)
        for r in range(2):
            own = problems.round_batches(several, r)
            state, _ = run(state, cj.MicroBatches(own, counts))

        def gradient(params, batches):
            each = [problems.numpy_gradient(params, batch) for batch in batches]
            return jax.tree.map(lambda *g: sum(g) / len(g), *each)

        x, y = several
        data = [
            [
                [(x[i, t, m], y[i, t, m]) for m in range(1 + i % 2)]
                for t in range(2 * PERIOD)
            ]
            for i in range(N)
        ]
        x0 = problems.params(np.float64)
        loop = reference.Streamed(
            gradient,
            x0,
            problems.shares(WEIGHTS),
            [reference.MomentumSGD(x0, RATE) for _ in range(N)],
            [reference.weighted_mean] * PERIOD,
            [lambda i, m, x, s: reference.merged(m, x, s)] * PERIOD,
        ).run(data)
        chex.assert_trees_all_close(
            jax.tree.map(np.asarray, state.params),
            problems.stacked(loop.x),
            rtol=1e-10,
        )


@pytest.mark.parametrize(
    ("via", "execution"), [("vmap", "fused"), ("pmap", "split"), ("shard_map", "fused")]
)
def test_model_state_keys_and_metrics_of_ones_own(via, execution):
    """As without streaming, where the workers are equal: a merge changes nothing."""

    def loss_fn(params, model_state, batch, key):
        traces.append(1)
        noise = jax.random.uniform(key)
        loss = ((params["w"] - batch) ** 2).sum() + 0 * noise
        return loss, model_state + batch, {"noise": noise, "batch": batch}

    rule, params = cj.cocod("workers"), {"w": jnp.arange(5.0)}
    batches = np.broadcast_to(np.arange(6, dtype=np.float32), (N, 6))
    found = []
    for streamed in (False, True):
        traces: list[int] = []
        round_ = cj.make_round(
            loss_fn,
            SGD,
            rule,
            period=PERIOD,
            streamed=streamed,
            stateful=True,
            has_aux=True,
        )
        state = cj.replicate(round_.init(params, jnp.zeros([])), N)
        run = cj.distribute(round_, via=via, execution=execution)
        types = jax.tree.map(lambda x: (x.shape, x.dtype), state)
        for r in range(2):
            before = list(traces)
            state, metrics = run(state, problems.round_batches(batches, r))
        assert traces == before, "the second round was traced again"
        assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == types
        found.append((state.params, state.model_state, metrics.loss, metrics.aux))
    chex.assert_trees_all_close(*found, rtol=1e-6)
    chex.assert_shape(jax.tree.leaves(metrics.aux), (N, PERIOD))
    chex.assert_shape([*metrics[:5]], (N, PERIOD))
    assert len(np.unique(metrics.aux["noise"])) == N * PERIOD


@pytest.mark.parametrize("execution", ["fused", "split"])
def test_what_is_not_trained_is_neither_sent_nor_changed(execution):
    start = {"w": jnp.arange(5.0), "b": jnp.ones([]), "frozen": jnp.arange(7.0)}
    start["ids"] = jnp.arange(4)
    loss = lambda p, batch: (p["frozen"][0] + p["w"] - batch).sum() ** 2 + p["b"] ** 2
    trainable = {"w": True, "b": True, "frozen": False, "ids": False}
    round_ = make_round(loss, optax.adam(0.1), cj.cocod("workers"), trainable=trainable)
    state = cj.replicate(round_.init(start), N)
    # A third of 5 numbers, rounded up, and one place for the scalar.
    assert cj.summary(round_, state).sent_bytes == {"float32": 4 * 3}
    run = cj.distribute(round_, execution=execution)
    batches = np.arange(N * PERIOD, dtype=np.float32).reshape(N, PERIOD)
    state, _ = run(state, batches)
    for name in ("frozen", "ids"):
        for worker in range(N):
            np.testing.assert_array_equal(state.params[name][worker], start[name])
    alone = make_round(
        lambda p, batch: loss(start | p, batch), optax.adam(0.1), cj.cocod("workers")
    )
    trained = {"w": start["w"], "b": start["b"]}
    expected, _ = cj.distribute(alone)(cj.replicate(alone.init(trained), N), batches)
    for name, values in expected.params.items():
        np.testing.assert_allclose(state.params[name], values, rtol=1e-6)


@pytest.mark.parametrize("via", ["pmap", "shard_map"])
def test_params_and_state_can_be_donated(via):
    """The round's state keeps copies, and a run may have its buffers."""
    params = jax.tree.map(jnp.asarray, problems.params())
    rule = cj.rules.diloco(cj.mean("workers"), optax.sgd(0.7, momentum=0.9))
    round_ = make_round(problems.loss, optax.adam(0.1), rule)
    run = cj.distribute(round_, via=via, execution="fused")
    devices = jax.devices()[:N]
    state = cj.replicate(round_.init(params), N, devices=devices)
    for r in range(2):
        given = state
        state, _ = run(state, problems.round_batches(problems.batches(), r))
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given.params))
    chex.assert_tree_all_finite((params, state.params))


def test_an_optimizer_is_compiled_once_and_its_state_donated():
    rule = cj.rules.diloco(cj.mean("workers"), optax.sgd(0.7, momentum=0.9))
    # An inner optimizer that gives the caller's own arrays for its state.
    keeping: Any = (lambda params: params, lambda updates, state, _: (updates, state))
    inner = optax.chain(optax.GradientTransformation(*keeping), optax.adam(0.01))
    optimizer = cj.every(PERIOD, inner, rule, streamed=True)
    traces = []

    def step(params, state):
        traces.append(1)
        updates, state = optimizer.update(params, state, params)
        return optax.apply_updates(params, updates), state

    step = jax.jit(jax.vmap(step, axis_name="workers"), donate_argnums=(0, 1))
    params = cj.replicate(problems.params(), N)
    state = jax.vmap(optimizer.init)(params)
    types = jax.tree.map(lambda x: (x.shape, x.dtype), state)
    for _ in range(2 * PERIOD):
        params, state = step(params, state)
    assert len(traces) == 1
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == types
    chex.assert_tree_all_finite(params)
    alone = jnp.ones(3)
    donated = jax.jit(lambda p, s: (p, s), donate_argnums=(0, 1))
    donated(alone, optimizer.init(alone))


@pytest.mark.parametrize("execution", ["fused", "split"])
def test_what_is_sent_need_not_be_like_the_piece(execution):
    """A scalar for each piece: its mean, less what the rule remembers of the piece."""
    scalar = lambda state, snapshot: snapshot["float32"].mean() - state

    def merge(arriving, params, state, snapshot):
        correction = arriving - scalar(state, snapshot)
        return jax.tree.map(lambda x: x + correction, params), state + 1

    rule = cj.MergeRule(
        cj.mean("workers"),
        merge,
        init=lambda piece: jnp.zeros([]),
        outgoing=scalar,
    )
    round_ = make_round(lambda w, b: w.sum() * b, optax.set_to_zero(), rule)
    state = cj.replicate(round_.init(jnp.zeros(PERIOD * 2)), N)
    apart = state.params + jnp.arange(N, dtype=jnp.float32)[:, None]
    run = cj.distribute(round_, execution=execution)
    batches = np.ones([N, PERIOD], np.float32)
    state, metrics = run(state._replace(params=apart), batches)
    distances = np.abs(np.arange(N) - 1.5)[:, None].repeat(PERIOD, 1)
    np.testing.assert_allclose(metrics.distance, distances, rtol=1e-6)
    state, _ = run(state, batches)
    np.testing.assert_allclose(state.params, 1.5, rtol=1e-6)
    np.testing.assert_array_equal(state.rule_state, np.full([N, PERIOD], 2))


def test_a_rule_that_sends_nothing_leaves_local_steps_alone():
    batches = problems.round_batches(problems.batches(), 0)
    found = []
    for streamed in (False, True):
        round_ = make_round(
            problems.loss, optax.adam(0.1), cj.independent(), streamed=streamed
        )
        state = cj.replicate(round_.init(problems.params()), N)
        state, metrics = cj.distribute(round_)(state, batches)
        found.append((state.params, metrics))
        assert not np.any(metrics.distance)
    chex.assert_trees_all_equal(*found)
    optimizer = cj.every(PERIOD, SGD, cj.independent(), streamed=True)
    moved = updated(optimizer, jnp.ones([N, 5]), jnp.arange(5.0 * N).reshape(N, 5))
    # What is added is a difference of parameters up to 20.
    np.testing.assert_allclose(moved, -RATE, atol=4e-6)


def test_a_correction_takes_gradients_wider_than_the_parameters():
    """A master gradient in float32, of parameters in bfloat16."""
    rule = cj.rules.vrl_sgd("workers", learning_rate=RATE, period=2)
    optimizer = cj.every(2, optax.sgd(1.0), rule, streamed=True)
    params = {"w": jnp.zeros([N, 3], jnp.bfloat16), "b": jnp.zeros([N, 2])}
    third = jnp.float32(1 / 3)
    gradient = {"w": jnp.full([N, 3], third), "b": jnp.full([N, 2], third)}
    moved = updated(optimizer, gradient, params)
    # The piece's half is what bfloat16 parameters moved by, the other half as it came.
    np.testing.assert_array_equal(moved["w"][:, 2:], -gradient["w"][:, 2:])
    np.testing.assert_allclose(moved["w"], -1 / 3, rtol=2**-8)
    assert all(leaf.dtype == jnp.float32 for leaf in moved.values())


def test_numbers_are_parameters_and_integers_stay():
    optimizer = cj.every(2, SGD, cj.cocod("workers"), streamed=True)
    jax.eval_shape(optimizer.init, {"python": 1.0, "numpy": np.float32(1)})
    optimizer.init({"python": 1.0, "numpy": np.float32(1), "none": None})
    make_round(lambda w, b: w * b, SGD, cj.cocod("workers")).init(1.0)
    params = {"w": jnp.arange(float(N)), "ids": jnp.tile(jnp.arange(3), (N, 1))}
    gradient = {"w": jnp.zeros(N), "ids": jnp.zeros([N, 3], int)}
    moved = updated(optimizer, gradient, params)
    np.testing.assert_allclose(params["w"] + moved["w"], 1.5)
    np.testing.assert_array_equal(moved["ids"], 0)


@pytest.mark.parametrize(
    ("params", "error", "words"),
    [
        ({"ids": jnp.arange(3)}, ValueError, "no floating-point leaf to average"),
        ({"name": "bn"}, TypeError, r"params\['name'\] is 'bn', of type str"),
    ],
)
def test_parameters_that_cannot_travel_are_refused(params, error, words):
    optimizer = cj.every(2, SGD, cj.cocod("workers"), streamed=True)
    with pytest.raises(error, match=words):
        optimizer.init(params)


def make_every(*args, period=PERIOD, **options):
    return cj.every(period, *args, **{"streamed": True} | options)


WHOLE_MODEL = {
    "rule": cj.cocod("workers")._replace(streams=False),
    "exchange": cj.cocod(cj.mean("workers")._replace(streams=False)),
}


@pytest.mark.parametrize("part", WHOLE_MODEL)
def test_what_needs_the_whole_model_is_refused(part):
    rule: Any = WHOLE_MODEL[part]
    assert not rule.streams
    words = r"needs the whole model at once \(streams=False\).*streamed=True"
    for make in (functools.partial(make_round, problems.loss), make_every):
        with pytest.raises(ValueError, match=words):
            make(SGD, rule)
        make(SGD, rule, streamed=False)


@pytest.mark.parametrize("delay", [0, 2, PERIOD])
def test_the_delay_is_one(delay):
    rule = cj.cocod("workers")
    for make in (functools.partial(make_round, problems.loss), make_every):
        make(SGD, rule, delay=1)
        with pytest.raises(ValueError, match=rf"delay={delay}, but with streamed"):
            make(SGD, rule, delay=delay)
        with pytest.raises(ValueError, match="period=0"):
            make(SGD, rule, period=0)


def test_a_streamed_round_says_so():
    round_ = make_round(problems.loss, SGD, cj.cocod("workers"))
    assert (round_.streamed, round_.period, round_.delay) == (True, PERIOD, 1)
    assert not make_round(
        problems.loss, SGD, cj.cocod("workers"), streamed=False
    ).streamed


@pytest.mark.parametrize("trainable", [None, lambda leaf: leaf.ndim > 0])
def test_the_split_execution_takes_no_array_of_the_caller(trainable):
    """It overwrites the parameters that a step has made, and none that came in."""
    round_ = make_round(problems.loss, SGD, cj.cocod("workers"), trainable=trainable)
    run = cj.distribute(round_, via="vmap", execution="split")
    state = cj.replicate(round_.init(problems.params()), N)
    before = jax.tree.map(np.array, state.params)
    after, _ = run(state, problems.round_batches(problems.batches(), 0))
    run(after, problems.round_batches(problems.batches(), 1))
    for kept in (state, after):
        assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(kept.params))
    chex.assert_trees_all_equal(jax.tree.map(np.array, state.params), before)
