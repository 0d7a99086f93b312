"""What exchanges and rules may do: each against its loop, on every way to run it."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import cocod_jax as cj
from tests import contract, problems, reference
from tests.marks import seldom
from tests.methods import METHODS, RATE, by_way, made
from tests.problems import PERIOD, ROUNDS, WEIGHTS, N

WAYS: dict[str, dict[str, Any]] = {
    "pmap fused": {"execution": "fused"},
    "pmap split": {"execution": "split"},
    "shard_map fused": {"via": "shard_map", "execution": "fused"},
    "vmap split": {"via": "vmap", "execution": "split"},
    "elsewhere": {},  # the exchange on devices of its own
}


def train(rule, delay, batches, weights=WEIGHTS, **way):
    round_ = cj.make_round(
        problems.loss, optax.sgd(RATE), rule, period=PERIOD, delay=delay
    )
    run = cj.distribute(round_, **way)
    state = cj.replicate(round_.init(problems.params(np.float64)), N)
    state = cj.reweight(state, weights)
    for r in range(ROUNDS):
        state, _ = run(state, problems.round_batches(batches, r))
    return state


def loop_of(loop, delay, batches):
    _, workers = reference.overlapped(
        problems.numpy_gradient,
        problems.params(np.float64),
        problems.per_worker(batches),
        problems.shares(WEIGHTS),
        PERIOD,
        delay,
        RATE,
        **loop,
    )
    return problems.stacked(workers)


def check_method(name, way, delay):
    options = dict(WAYS[way])
    if way == "elsewhere":
        options["devices"], options["exchange_devices"] = cj.execution.device_pairs()
    with jax.enable_x64(True):
        rule, loop = made(name)
        batches = problems.batches(np.float64)
        # A graph has no use for weights, and refuses unequal ones.
        weights = [1] * N if name == "gossip" else WEIGHTS
        state = train(rule, delay, batches, weights, **options)
        # The int8 exchange sends scales and shares in float32.
        tolerance = 1e-5 if name == "int8" else 1e-10
        chex.assert_trees_all_close(
            jax.tree.map(np.asarray, state.params),
            loop_of(loop, delay, batches),
            rtol=tolerance,
            atol=tolerance,
        )


@pytest.mark.parametrize(
    ("name", "way"), by_way(METHODS, ("pmap fused", "vmap split", "elsewhere"))
)
def test_methods_follow_their_loops(name, way):
    for delay in {"vmap split": (0, 2, PERIOD), "pmap fused": (PERIOD,)}.get(way, (2,)):
        check_method(name, way, delay)


@pytest.mark.matrix
@pytest.mark.parametrize("delay", range(PERIOD + 1))
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", METHODS)
def test_methods_follow_their_loops_at_every_delay(name, way, delay):
    check_method(name, way, delay)


def test_the_exchanges_state_stays_with_the_exchange():
    devices, exchange_devices = cj.execution.device_pairs()
    rule = cj.cocod(cj.exchanges.narrow("workers", "int8"))
    with jax.enable_x64(True):
        state = train(
            rule,
            2,
            problems.batches(np.float64),
            devices=devices,
            exchange_devices=exchange_devices,
        )
    for kept in jax.tree.leaves(state.exchange_state):
        assert kept.devices() == set(exchange_devices)
        assert np.asarray(kept).any()
    assert state.params["w"].devices() == set(devices)


EQUAL = {
    "diloco with outer SGD of rate 1": (
        cj.rules.diloco("workers", optax.sgd(1.0)),
        cj.cocod("workers"),
    ),
    "overlap Local SGD that pulls all the way, without momentum": (
        cj.rules.overlap_local_sgd("workers", alpha=1.0, beta=0.0),
        contract.overwriting(cj.mean("workers")),
    ),
    "slowmo without momentum": (
        cj.rules.slowmo("workers", beta=0.0),
        cj.cocod("workers"),
    ),
    "slowmo at a constant rate": (
        cj.rules.slowmo("workers", learning_rate=lambda r: 0.3),
        cj.rules.diloco("workers", optax.sgd(1.0, momentum=0.5)),
    ),
    "delay_compensated that does not": (
        cj.rules.delay_compensated("workers", optax.sgd(1.0), strength=0.0),
        cj.cocod("workers"),
    ),
    "loscar of all coordinates": (
        cj.rules.loscar("workers", 1.0),
        cj.cocod("workers"),
    ),
    "sparse_loco that sends all": (
        cj.rules.sparse_loco(cj.exchanges.top_k("workers", k=4, chunk=4)),
        cj.cocod("workers"),
    ),
    "sparse_loco with a mean": (
        cj.rules.sparse_loco(cj.mean("workers"), optax.sgd(0.7, momentum=0.9)),
        cj.rules.diloco("workers", optax.sgd(0.7, momentum=0.9)),
    ),
    "diloco that keeps nothing of its own": (
        cj.rules.diloco("workers", optax.sgd(1.0), alpha=0.0),
        contract.overwriting(cj.mean("workers")),
    ),
}


@pytest.mark.parametrize("names", EQUAL)
@pytest.mark.parametrize("delay", seldom(range(PERIOD + 1), but=(2,)))
def test_rules_that_are_others_in_a_special_case(names, delay):
    with jax.enable_x64(True):
        batches = problems.batches(np.float64)
        ours, known = (train(rule, delay, batches, via="vmap") for rule in EQUAL[names])
        chex.assert_trees_all_close(ours.params, known.params, rtol=1e-10)


EQUAL_WITHOUT_DELAY = {
    "eager_diloco": (
        cj.rules.eager_diloco("workers"),
        cj.rules.diloco("workers"),
    ),
    "co2 without penalty and clip": (
        cj.rules.co2("workers", beta=0.6, alpha=0.8),
        cj.rules.slowmo("workers", beta=0.6, alpha=0.8),
    ),
    "delay_compensated": (
        cj.rules.delay_compensated("workers"),
        cj.rules.diloco("workers"),
    ),
}


@pytest.mark.parametrize("names", EQUAL_WITHOUT_DELAY)
def test_rules_that_are_others_without_delay(names):
    with jax.enable_x64(True):
        batches = problems.batches(np.float64)
        ours, known = (
            train(rule, 0, batches, via="vmap") for rule in EQUAL_WITHOUT_DELAY[names]
        )
        chex.assert_trees_all_close(ours.params, known.params, rtol=1e-10)


def test_diloco_of_one_worker_is_lookahead():
    """Zhang et al. 2019: slow weights go a part of the way to the fast ones."""
    rule = cj.rules.diloco("workers", optax.sgd(0.5))
    round_ = cj.make_round(
        lambda w, b: 0.5 * (w - b) ** 2, optax.sgd(0.1), rule, period=5, delay=0
    )
    state = cj.replicate(round_.init(jnp.array(0.0)), 1)
    run = cj.distribute(round_, via="vmap")
    fast = slow = 0.0
    for _ in range(4):  # the merge of a round comes before its steps
        slow = slow + 0.5 * (fast - slow)
        fast = slow
        for _ in range(5):
            fast -= 0.1 * (fast - 8.0)
        state, _ = run(state, np.full([1, 5], 8.0, np.float32))
    np.testing.assert_allclose(state.params, [fast], rtol=1e-6)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("delay", seldom((1, PERIOD), but=(1,)))
def test_every_gives_the_rounds_numbers(name, delay):
    """Rules and exchanges with state, step by step."""
    with jax.enable_x64(True):
        rule, _ = made(name)
        batches = problems.batches(np.float64)
        optimizer = cj.every(PERIOD, optax.sgd(RATE), rule, delay)

        def step(params, state, batch):
            gradient = jax.grad(problems.loss)(params, batch)
            updates, state = optimizer.update(gradient, state, params)
            return optax.apply_updates(params, updates), state

        params = problems.stacked([problems.params(np.float64)] * N)
        state = jax.vmap(optimizer.init)(params)
        run = jax.jit(jax.vmap(step, axis_name="workers"))
        for t in range(problems.STEPS):
            batch = jax.tree.map(lambda b, t=t: b[:, t], batches)
            params, state = run(params, state, batch)
        round_ = cj.make_round(
            problems.loss, optax.sgd(RATE), rule, period=PERIOD, delay=delay
        )
        expected = cj.replicate(round_.init(problems.params(np.float64)), N)
        run = cj.distribute(round_, via="vmap", execution="fused")
        for r in range(ROUNDS):
            expected, _ = run(expected, problems.round_batches(batches, r))
        # int8 rounds: where two programs differ by an ulp, a code may differ by one.
        tolerance = 1e-2 if name == "int8" else 1e-9
        chex.assert_trees_all_close(
            params, expected.params, rtol=tolerance, atol=tolerance
        )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("execution", ["fused", "split"])
def test_workers_are_equal_after_a_merge_without_delay(execution, dtype):
    """m + (x - s) is m in every bit where x is s."""
    cast = lambda tree: jax.tree.map(lambda x: jnp.asarray(x, dtype), tree)
    loss = lambda p, b: problems.loss(jax.tree.map(jnp.float32, p), b)
    still = optax.set_to_zero()  # the steps after the merge
    round_ = cj.make_round(loss, still, cj.cocod("workers"), period=1, delay=0)
    state = cj.replicate(round_.init(cast(problems.params())), N)
    rng = np.random.default_rng(0)
    apart = lambda x: x + jnp.asarray(rng.normal(size=x.shape), dtype)
    state = state._replace(params=jax.tree.map(apart, state.params))
    run = cj.distribute(round_, execution=execution)
    state, _ = run(state, problems.round_batches(problems.batches(), 0, period=1))
    cj.workers.check_equal_start(state)


def test_a_leaf_may_be_left_alone():
    def merge(arriving, params, state, snapshot):
        return params | {"w": arriving["w"] + (params["w"] - snapshot["w"])}, state

    rule = cj.MergeRule(cj.mean("workers"), merge)
    round_ = cj.make_round(problems.loss, optax.set_to_zero(), rule, period=1)
    state = cj.replicate(round_.init(problems.params()), N)
    apart = lambda x: x + jnp.arange(N).reshape(-1, *[1] * (x.ndim - 1)) / 3
    before = jax.tree.map(apart, state.params)
    state, _ = cj.distribute(round_)(
        state._replace(params=before),
        problems.round_batches(problems.batches(), 0, period=1),
    )
    chex.assert_trees_all_equal(state.params["deep"], before["deep"])
    np.testing.assert_allclose(state.params["w"][0], before["w"].mean(0), rtol=1e-6)


@pytest.mark.parametrize("execution", ["fused", "split"])
def test_what_is_sent_need_not_be_like_the_parameters(execution):
    """One scalar travels: the workers agree on a common scale of a leaf."""
    rule = cj.MergeRule(
        cj.mean("workers"),
        lambda m, x, state, s: (x | {"w": x["w"] + (m - s["w"].mean())}, state),
        outgoing=lambda state, snapshot: snapshot["w"].mean(),
    )
    round_ = cj.make_round(problems.loss, optax.set_to_zero(), rule, period=2)
    state = cj.replicate(round_.init(problems.params()), N)
    apart = state.params["w"] + jnp.arange(N, dtype=jnp.float32).reshape(N, 1, 1)
    state = state._replace(params=state.params | {"w": apart})
    assert cj.summary(round_, state).sent_bytes == {"float32": 4}
    batches = problems.round_batches(problems.batches(), 0, period=2)
    state, metrics = cj.distribute(round_, execution=execution)(state, batches)
    np.testing.assert_allclose(
        state.params["w"].mean((1, 2)), apart.mean() * np.ones(N), rtol=1e-5
    )
    np.testing.assert_allclose(metrics.distance, [1.5, 0.5, 0.5, 1.5], rtol=1e-5)
    np.testing.assert_array_equal(metrics.alignment, 0)


@pytest.mark.parametrize("check_vma", [True, False])
def test_an_overwriting_merge_has_a_type_to_go_on_with(check_vma):
    """In a shard_map with types the mean is everyone's, and the state each worker's.

    A loop over rounds takes and returns one type.
    """
    rule = contract.overwriting(cj.mean("workers"))
    round_ = cj.make_round(problems.loss, optax.sgd(RATE), rule, period=PERIOD)
    state = cj.replicate(round_.init(problems.params()), N)
    rounds = jax.tree.map(
        lambda leaf: leaf.reshape(N, ROUNDS, PERIOD, *leaf.shape[2:]),
        problems.batches(),
    )

    def train_all(state, rounds):
        one = lambda tree: jax.tree.map(lambda leaf: leaf[0], tree)
        state, _ = jax.lax.scan(round_.run, one(state), one(rounds))
        return jax.tree.map(lambda leaf: leaf[None], state)

    workers = jax.P("workers")
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:N]), "workers")
    run = jax.shard_map(
        train_all,
        mesh=mesh,
        in_specs=workers,
        out_specs=workers,
        check_vma=check_vma,
    )
    scanned = jax.jit(run)(state, rounds)
    looped = cj.distribute(round_)
    for r in range(ROUNDS):
        state, _ = looped(state, problems.round_batches(problems.batches(), r))
    chex.assert_trees_all_close(scanned.params, state.params, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("face", ["update", "every"])
def test_a_state_that_keeps_what_arrives_has_a_type_to_go_on_with(face):
    """As an optax transform, in the loop of a shard_map with types."""
    rule = cj.MergeRule(
        cj.mean("workers"),
        lambda arriving, params, state, snapshot: (arriving, arriving),
        init=jnp.array,
    )
    optimizer = rule if face == "update" else cj.every(2, optax.sgd(RATE), rule)

    def train_all(params, state, targets):
        def step(carry, target):
            params, state = carry
            updates, state = optimizer.update(params - target, state, params)
            return (optax.apply_updates(params, updates), state), None

        one = lambda tree: jax.tree.map(lambda leaf: leaf[0], tree)
        (params, _), _ = jax.lax.scan(step, one((params, state)), targets[0])
        return params[None]

    params, workers = jnp.arange(float(N)), jax.P("workers")
    state = jax.vmap(optimizer.init)(params)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:N]), "workers")
    run = jax.shard_map(train_all, mesh=mesh, in_specs=workers, out_specs=workers)
    # The merge of the fourth step leaves all with one mean.
    (value,) = set(np.asarray(jax.jit(run)(params, state, jnp.ones([N, 4]))).tolist())
    assert np.isfinite(value)
