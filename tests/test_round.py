"""The round against the papers' loops, on every mapping transform and execution."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import cocod_jax as cj
from cocod_jax.exchanges._wire import ravel
from cocod_jax.rounds._metrics import merge_metrics
from tests import problems, reference
from tests.marks import pairs
from tests.problems import PERIOD, ROUNDS, WEIGHTS, N

LEARNING_RATE = 0.05
MAPPINGS: dict[str, dict[str, Any]] = {
    "pmap": {"via": "pmap"},
    "shard_map": {"via": "shard_map"},
    "shard_map_unchecked": {"via": "shard_map", "check_vma": False},
    "vmap": {"via": "vmap"},
}
# float64: sums in another order. float32: the same over 12 steps, values near 1.
TOLERANCE: dict[Any, float] = {np.float64: 1e-10, np.float32: 1e-5}


def train(run, round_, batches, dtype, rounds=ROUNDS, **replicate):
    """The workers after some rounds, and the losses [N, steps]."""
    state = cj.replicate(round_.init(problems.params(dtype)), N, **replicate)
    losses = []
    for r in range(rounds):
        state, metrics = run(state, problems.round_batches(batches, r, round_.period))
        losses.append(metrics.loss)
    return state, np.concatenate(losses, axis=1)


def assert_matches(state, losses, points, workers, batches, dtype):
    data = problems.per_worker(batches)
    expected = [
        [problems.numpy_loss(points[t][i], data[i][t]) for t in range(len(points))]
        for i in range(N)
    ]
    tolerance = TOLERANCE[dtype]
    np.testing.assert_allclose(losses, expected, rtol=tolerance)
    chex.assert_trees_all_close(
        jax.tree.map(np.asarray, state.params),
        problems.stacked(workers),
        rtol=tolerance,
        atol=tolerance,
    )


@pytest.mark.parametrize(
    ("dtype", "delay", "via", "execution"),
    pairs((np.float64, np.float32), range(PERIOD + 1), [*MAPPINGS], ("fused", "split")),
)
def test_cocod_is_the_papers_algorithm(dtype, delay, via, execution):
    with jax.enable_x64(dtype is np.float64):
        # Every delay with and without weights, over the two dtypes.
        weights = WEIGHTS if (delay + (dtype is np.float64)) % 2 else None
        inner = optax.sgd(LEARNING_RATE, momentum=0.9, nesterov=True)
        rule = cj.cocod("workers", weights)
        round_ = cj.make_round(problems.loss, inner, rule, period=PERIOD, delay=delay)
        run = cj.distribute(round_, execution=execution, **MAPPINGS[via])
        batches = problems.batches(dtype)
        state, losses = train(run, round_, batches, dtype)
        points, workers = reference.cocod_sgd(
            problems.numpy_gradient,
            problems.params(np.float64),
            problems.per_worker(batches),
            problems.shares(weights),
            PERIOD,
            delay,
            learning_rate=LEARNING_RATE,
            momentum=0.9,
            nesterov=True,
        )
        assert_matches(state, losses, points, workers, batches, dtype)
        assert all(
            leaf.dtype == dtype for leaf in jax.tree.leaves((state.params, losses))
        )


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("period", [1, PERIOD])
def test_delay_zero_is_local_sgd(period, weights):
    """The round merges at its beginning, the paper at the end of the last step."""
    with jax.enable_x64(True):
        rule = cj.cocod("workers", weights)
        inner = optax.sgd(LEARNING_RATE, momentum=0.9)
        round_ = cj.make_round(problems.loss, inner, rule, period=period, delay=0)
        run = cj.distribute(round_)
        batches = problems.batches(np.float64)
        rounds = problems.STEPS // period
        state, losses = train(run, round_, batches, np.float64, rounds)
        points, workers = reference.local_sgd(
            problems.numpy_gradient,
            problems.params(np.float64),
            problems.per_worker(batches),
            problems.shares(weights),
            period,
            learning_rate=LEARNING_RATE,
            momentum=0.9,
        )
        agreed = cj.replicate(cj.consensus(state), N)
        state = state._replace(params=agreed)
        assert_matches(state, losses, points, workers, batches, np.float64)


@pytest.mark.parametrize("momentum", [None, 0.9])
def test_period_one_delay_zero_is_synchronous_sgd(momentum):
    """Also with momentum, which is linear: averaging commutes with it."""
    with jax.enable_x64(True):
        rule = cj.cocod("workers", WEIGHTS)
        inner = optax.sgd(LEARNING_RATE, momentum)
        round_ = cj.make_round(problems.loss, inner, rule, period=1, delay=0)
        batches = problems.batches(np.float64)
        state, losses = train(
            cj.distribute(round_), round_, batches, np.float64, problems.STEPS
        )
        points, workers = reference.synchronous_sgd(
            problems.numpy_gradient,
            problems.params(np.float64),
            problems.per_worker(batches),
            problems.shares(WEIGHTS),
            learning_rate=LEARNING_RATE,
            momentum=momentum or 0.0,
        )
        state = state._replace(params=cj.replicate(cj.consensus(state), N))
        assert_matches(state, losses, points, workers, batches, np.float64)


@pytest.mark.parametrize(
    ("algorithm", "execution", "dtype", "via"),
    pairs(
        ("ssgd", "pipe_sgd", "pipe_sgd_warm"),
        ("fused", "split"),
        (np.float64, np.float32),
        [*MAPPINGS],
    ),
)
def test_gradient_averaging_algorithms(algorithm, dtype, via, execution):
    """S-SGD and Pipe-SGD in a round whose rule exchanges nothing."""
    warmup = 5 if algorithm == "pipe_sgd_warm" else 0
    with jax.enable_x64(dtype is np.float64):
        if algorithm == "ssgd":
            averaging = cj.mean_gradients("workers", WEIGHTS)
            oracle, options = reference.synchronous_sgd, {}
        else:
            averaging = cj.stale_mean_gradients("workers", WEIGHTS, warmup_steps=warmup)
            oracle, options = reference.pipe_sgd, {"warmup_steps": warmup}
        inner = optax.chain(averaging, optax.sgd(LEARNING_RATE, momentum=0.9))
        round_ = cj.make_round(
            problems.loss, inner, cj.independent(), period=PERIOD, delay=0
        )
        run = cj.distribute(round_, execution=execution, **MAPPINGS[via])
        batches = problems.batches(dtype)
        state, losses = train(run, round_, batches, dtype)
        points, workers = oracle(
            problems.numpy_gradient,
            problems.params(np.float64),
            problems.per_worker(batches),
            problems.shares(WEIGHTS),
            learning_rate=LEARNING_RATE,
            momentum=0.9,
            **options,
        )
        assert_matches(state, losses, points, workers, batches, dtype)


def test_the_mean_follows_sgd_exactly():
    """mean(t+1) = mean(t) - lr * weighted mean gradient, at every local step."""
    with jax.enable_x64(True):
        p = problems.shares(WEIGHTS)
        batches = problems.batches(np.float64)
        data = problems.per_worker(batches)
        for delay in range(PERIOD + 1):
            round_ = cj.make_round(
                problems.loss,
                optax.sgd(LEARNING_RATE),
                cj.cocod("workers", WEIGHTS),
                period=PERIOD,
                delay=delay,
            )
            state = cj.replicate(round_.init(problems.params(np.float64)), N)
            over = lambda function: jax.jit(jax.vmap(function, axis_name="workers"))
            send, step, merge = map(over, (round_.send, round_.step, round_.merge))
            mean = cj.consensus(state)
            snapshot = sent = None
            for t in range(problems.STEPS):
                if t % PERIOD == 0:
                    snapshot, (sent, _) = state.params, send(state)
                if t % PERIOD == delay:
                    state, _ = merge(state, snapshot, sent)
                workers = [
                    jax.tree.map(lambda leaf, i=i: np.asarray(leaf[i]), state.params)
                    for i in range(N)
                ]
                gradients = [
                    problems.numpy_gradient(workers[i], data[i][t]) for i in range(N)
                ]
                state, _ = step(state, jax.tree.map(lambda b, t=t: b[:, t], batches))
                if (t + 1) % PERIOD == 0 and delay == PERIOD:
                    state, _ = merge(state, snapshot, sent)
                expected = jax.tree.map(
                    lambda x, g: x - LEARNING_RATE * g,
                    mean,
                    reference.weighted_mean(gradients, p),
                )
                mean = cj.consensus(state)
                chex.assert_trees_all_close(mean, expected, rtol=1e-12, atol=1e-12)


def test_mapping_transforms_agree_to_the_bit():
    """pmap and shard_map compile one worker's arithmetic: equal in every bit.

    vmap batches the matrix products, and XLA sums those in another order: a few
    units in the last place after 12 steps of float32.
    """
    batches = problems.batches()
    results = {}
    for via, options in MAPPINGS.items():
        for execution in ("fused", "split"):
            round_ = cj.make_round(
                problems.loss,
                optax.adam(0.01),
                cj.cocod("workers", WEIGHTS),
                period=PERIOD,
                delay=2,
            )
            run = cj.distribute(round_, execution=execution, **options)
            state, losses = train(run, round_, batches, np.float32)
            results[via, execution] = jax.tree.map(
                np.asarray, (state._replace(key=()), losses)
            )
    for execution in ("fused", "split"):
        expected = results["pmap", execution]
        chex.assert_trees_all_equal(results["shard_map", execution], expected)
        chex.assert_trees_all_equal(results["shard_map_unchecked", execution], expected)
        chex.assert_trees_all_close(results["vmap", execution], expected, rtol=1e-5)
    # Fused and split fuse different neighbours, and may contract a * b + c or not.
    chex.assert_trees_all_close(
        results["pmap", "split"], results["pmap", "fused"], rtol=1e-5, atol=1e-6
    )


def test_one_worker_is_the_plain_optimizer():
    """A mean over one worker changes nothing, at any delay."""
    x, y = problems.batches(workers=1)
    optimizer = optax.adam(0.01)
    params = problems.params()
    opt_state = optimizer.init(params)
    for t in range(problems.STEPS):
        gradient = jax.grad(problems.loss)(params, (x[0, t], y[0, t]))
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        params = optax.apply_updates(params, updates)
    for delay in range(PERIOD + 1):
        round_ = cj.make_round(
            problems.loss, optimizer, cj.cocod("workers"), period=PERIOD, delay=delay
        )
        run = cj.distribute(round_, via="vmap")
        state = cj.replicate(round_.init(problems.params()), 1)
        for r in range(ROUNDS):
            state, _ = run(state, problems.round_batches((x, y), r))
        chex.assert_trees_all_close(cj.consensus(state), params, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("delay", [0, 2, PERIOD])
def test_identical_workers_stay_one_worker(delay):
    x, y = problems.batches(workers=1)
    same = (np.repeat(x, N, axis=0), np.repeat(y, N, axis=0))
    round_ = cj.make_round(
        problems.loss, optax.adam(0.01), cj.cocod("workers"), period=PERIOD, delay=delay
    )
    run = cj.distribute(round_)
    state, losses = train(run, round_, same, np.float32)
    for worker in range(1, N):
        np.testing.assert_array_equal(losses[worker], losses[0])
    cj.workers.check_equal_start(state)


def test_weights_in_force_at_the_snapshot_count():
    """New weights between rounds: each merge preserves the mean of its own weights."""
    with jax.enable_x64(True):
        batches = problems.batches(np.float64)
        still = optax.sgd(0.0)
        round_ = cj.make_round(
            problems.loss, still, cj.cocod("workers"), period=2, delay=1
        )
        run = cj.distribute(round_)
        state = cj.replicate(round_.init(problems.params(np.float64)), N)
        rng = np.random.default_rng(3)
        apart = lambda leaf: leaf + rng.normal(size=leaf.shape)
        state = state._replace(params=jax.tree.map(apart, state.params))
        for weights in ((1, 2, 3, 4), (5, 1, 1, 1)):
            state = cj.reweight(state, weights)
            before = cj.consensus(state)
            state, _ = run(state, problems.round_batches(batches, 0, period=2))
            chex.assert_trees_all_close(cj.consensus(state), before, rtol=1e-12)
        # The second round found the workers equal to the first mean.
        cj.workers.check_equal_start(
            state._replace(params=jax.tree.map(lambda x: x.round(12), state.params))
        )


def test_metrics_say_what_happened():
    batches = problems.batches()
    round_ = cj.make_round(
        problems.loss, optax.sgd(0.1), cj.cocod("workers"), period=PERIOD, delay=2
    )
    state = cj.replicate(round_.init(problems.params()), N)
    run = cj.distribute(round_, via="vmap")
    state, first = run(state, problems.round_batches(batches, 0))
    assert isinstance(first, cj.RoundMetrics)
    chex.assert_shape([first.loss, first.grad_norm], (N, PERIOD))
    chex.assert_shape([first.distance, first.progress_norm], (N,))
    # All workers started from the same point: the mean of the snapshots is theirs.
    np.testing.assert_allclose(first.distance, 0, atol=1e-6)
    params = problems.params()
    for t in range(2):
        batch = jax.tree.map(lambda leaf, t=t: leaf[0, t], batches)
        gradient = jax.grad(problems.loss)(params, batch)
        np.testing.assert_allclose(
            first.grad_norm[0, t], optax.tree.norm(gradient), rtol=1e-5
        )
        params = jax.tree.map(lambda x, g: x - 0.1 * g, params, gradient)
    progress = optax.tree.norm(optax.tree.sub(params, problems.params()))
    np.testing.assert_allclose(first.progress_norm[0], progress, rtol=1e-5)
    expected = [
        optax.tree.norm(
            optax.tree.sub(
                cj.consensus(state), jax.tree.map(lambda x, i=i: x[i], state.params)
            )
        )
        for i in range(N)
    ]
    _, second = run(state, problems.round_batches(batches, 1))
    np.testing.assert_allclose(second.distance, expected, rtol=1e-5)
    assert (second.distance > 0.01).all()


@pytest.mark.parametrize(
    ("progress", "correction", "cosine"),
    [
        ([3.0, 4.0], [6.0, 8.0], 1),
        ([3.0, 4.0], [-0.3, -0.4], -1),
        ([3.0, 4.0], [-4.0, 3.0], 0),
        ([3.0, 4.0], [5.0, 0.0], 0.6),
        ([0.0, 0.0], [5.0, 0.0], 0),
        ([3.0, 4.0], [0.0, 0.0], 0),
        ([0.0, 0.0], [0.0, 0.0], 0),
        ([3.0, np.nan], [5.0, 0.0], np.nan),
    ],
)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.complex64])
def test_alignment_is_the_cosine_of_progress_and_correction(
    progress, correction, cosine, dtype
):
    round_ = cj.make_round(
        problems.loss, optax.sgd(0.1), cj.cocod("workers"), period=PERIOD
    )
    tree = lambda values: {"a": jnp.array(values[:1], dtype), "b": dtype(values[1])}
    zero = tree([0.0, 0.0])
    state = round_.init(tree(progress))
    _, metrics = jax.jit(round_.merge)(state, zero, ravel(tree(correction)))
    # bfloat16 has 8 bits for 0.3 and 0.4.
    np.testing.assert_allclose(metrics.alignment, cosine, atol=1e-4)
    assert metrics.alignment.dtype == jnp.float32
    assert not abs(metrics.alignment) > 1


@pytest.mark.parametrize("delay", [0, 2, PERIOD])
def test_every_execution_reports_the_same(delay):
    rule = cj.cocod("workers", WEIGHTS)
    round_ = cj.make_round(
        problems.loss, optax.sgd(0.1), rule, period=PERIOD, delay=delay
    )
    reports = []
    for execution in ("fused", "split"):
        state = cj.replicate(round_.init(problems.params()), N)
        run = cj.distribute(round_, execution=execution)
        for r in range(2):
            state, metrics = run(state, problems.round_batches(problems.batches(), r))
        reports.append(jax.device_get(metrics))
    chex.assert_trees_all_close(*reports, rtol=1e-5)
    assert (reports[0].alignment != 0).all() == (delay > 0)


def test_schedules_count_local_steps_over_all_rounds():
    """A warm-up of period 1, then period 3: one schedule over all of them."""
    with jax.enable_x64(True):
        # optax.linear_schedule computes in float32, whatever the parameters are.
        schedule = lambda count: 0.1 * (1 - count.astype(float) / problems.STEPS)
        batches = problems.batches(np.float64)
        rule, inner = cj.cocod("workers"), optax.sgd(schedule)
        warm, main = (
            cj.make_round(problems.loss, inner, rule, period=k, delay=0) for k in (1, 3)
        )
        state = cj.replicate(warm.init(problems.params(np.float64)), N)
        run_warm, run_main = cj.distribute(warm), cj.distribute(main)
        for t in range(3):
            state, _ = run_warm(state, problems.round_batches(batches, t, 1))
        for r in range(1, ROUNDS):
            state, _ = run_main(state, problems.round_batches(batches, r))
        assert (np.asarray(state.count) == problems.STEPS).all()

        data = problems.per_worker(batches)
        head = [worker[:3] for worker in data]
        tail = [worker[3:] for worker in data]
        p = problems.shares(None)
        numpy_schedule = lambda t: 0.1 * (1 - t / problems.STEPS)
        _, x = reference.local_sgd(
            problems.numpy_gradient,
            problems.params(np.float64),
            head,
            p,
            1,
            learning_rate=numpy_schedule,
        )
        _, x = reference.local_sgd(
            problems.numpy_gradient,
            x[0],
            tail,
            p,
            3,
            learning_rate=lambda t: numpy_schedule(t + 3),
        )
        chex.assert_trees_all_close(cj.consensus(state), x[0], rtol=1e-10)


def test_workers_and_steps_draw_different_numbers():
    def loss(params, model_state, batch, key):
        return params * batch, jax.random.uniform(key)

    round_ = cj.make_round(
        loss, optax.sgd(0.1), cj.cocod("workers"), period=1, stateful=True
    )
    drawn = []
    for seed in (0, 1):
        state = cj.replicate(
            round_.init(jnp.array(1.0), jnp.array(0.0), key=jax.random.key(seed)),
            N,
        )
        run = cj.distribute(round_)
        for _ in range(3):
            state, _ = run(state, np.ones([N, 1], np.float32))
            drawn.extend(np.asarray(state.model_state).tolist())
    assert len(set(drawn)) == 2 * 3 * N


def test_a_legacy_key_is_as_good_as_a_typed_one():
    round_ = cj.make_round(problems.loss, optax.sgd(0.1), cj.cocod("workers"), period=1)
    typed = round_.init(problems.params(), key=jax.random.key(7))
    legacy = round_.init(problems.params(), key=jax.random.PRNGKey(7))
    assert (jax.random.key_data(typed.key) == jax.random.key_data(legacy.key)).all()


@pytest.mark.parametrize("execution", ["fused", "split"])
def test_mixed_dtypes_follow_the_paper(execution):
    """float32 and float64 leaves in one tree: two buffers, one algorithm."""
    with jax.enable_x64(True):
        params = problems.params(np.float64)
        params["w"] = params["w"].astype(np.float32)
        round_ = cj.make_round(
            problems.loss,
            optax.sgd(LEARNING_RATE, momentum=0.9),
            cj.cocod("workers", WEIGHTS),
            period=PERIOD,
        )
        run = cj.distribute(round_, execution=execution)
        batches = problems.batches(np.float64)
        state = cj.replicate(round_.init(params), N)
        for r in range(ROUNDS):
            state, _ = run(state, problems.round_batches(batches, r))
        _, workers = reference.cocod_sgd(
            problems.numpy_gradient,
            jax.tree.map(np.float64, params),
            problems.per_worker(batches),
            problems.shares(WEIGHTS),
            PERIOD,
            learning_rate=LEARNING_RATE,
            momentum=0.9,
        )
        assert state.params["w"].dtype == np.float32
        assert state.params["b"].dtype == np.float64
        tolerance = TOLERANCE[np.float32]  # the weakest leaf sets it for all
        chex.assert_trees_all_close(
            jax.tree.map(np.float64, state.params),
            problems.stacked(workers),
            rtol=tolerance,
            atol=tolerance,
        )


@pytest.mark.parametrize("execution", ["fused", "split"])
def test_bfloat16_parameters_keep_their_dtype(execution):
    to_bf16 = lambda tree: jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), tree)
    params = to_bf16(problems.params())
    params["w"] = params["w"].astype(jnp.float32)  # mixed dtypes in one tree
    round_ = cj.make_round(
        lambda p, b: problems.loss(jax.tree.map(jnp.float32, p), b),
        optax.sgd(0.05, momentum=0.9),
        cj.cocod("workers"),
        period=PERIOD,
    )
    state = cj.replicate(round_.init(params), N)
    before = jax.tree.map(lambda x: x.dtype, state)
    state, _ = cj.distribute(round_, execution=execution)(
        state, problems.round_batches(problems.batches(), 0)
    )
    assert jax.tree.map(lambda x: x.dtype, state) == before
    chex.assert_trees_all_equal_dtypes(cj.consensus(state), params)


def test_a_state_is_complete_after_init():
    """Structure, shapes and dtypes are final: a scan over rounds takes the state."""
    round_ = cj.make_round(
        problems.loss, optax.adam(0.01), cj.cocod("workers"), period=PERIOD
    )
    rounds = jax.tree.map(
        lambda leaf: leaf.reshape(N, ROUNDS, PERIOD, *leaf.shape[2:]),
        problems.batches(),
    )
    state = cj.replicate(round_.init(problems.params()), N)

    def train_all(state, rounds):
        return jax.lax.scan(round_.run, state, rounds)

    scanned, _ = jax.pmap(train_all, axis_name="workers")(state, rounds)
    looped, _ = train(cj.distribute(round_), round_, problems.batches(), np.float32)
    chex.assert_trees_all_close(scanned.params, looped.params, rtol=1e-5, atol=1e-6)


def test_types_are_final_after_init():
    """Python numbers, too, whose dtype is weak at first."""
    round_ = cj.make_round(
        lambda p, b: (p["x"] * b - p["y"]) ** 2,
        optax.adam(0.01),
        cj.cocod("workers"),
        period=1,
    )
    state = cj.replicate(round_.init({"x": 1.0, "y": jnp.array(2.0)}), 2)
    types = jax.tree.map(jax.typeof, state)
    state, _ = jax.jit(jax.vmap(round_.run, axis_name="workers"))(
        state, jnp.ones([2, 1])
    )
    assert jax.tree.map(jax.typeof, state) == types


def test_non_finite_values_spread_by_the_merge_only():
    """A worker with a NaN batch poisons the others at the next merge, not before."""
    x, y = problems.batches()
    x = x.copy()
    x[0, 0] = np.nan
    round_ = cj.make_round(
        problems.loss, optax.sgd(0.1), cj.cocod("workers"), period=PERIOD
    )
    run = cj.distribute(round_)
    state = cj.replicate(round_.init(problems.params()), N)
    state, _ = run(state, problems.round_batches((x, y), 0))
    healthy = np.isfinite(np.asarray(state.params["w"])).all(axis=(1, 2))
    assert healthy.tolist() == [False, True, True, True]


@pytest.mark.parametrize("several", [False, True])
def test_complex_parameters_descend(several):
    """Towards the workers' targets as their real and imaginary parts would alone."""
    loss = lambda w, target: jnp.sum(jnp.abs(w - target) ** 2)
    run_to = {}
    for dtype in (jnp.complex64, jnp.float32):
        target = jnp.array([[[1 + 2j]], [[-3 + 1j]]], jnp.complex64)  # [N, 1, 1]
        start = jnp.array([4 - 5j], jnp.complex64)
        if dtype == jnp.float32:
            as_pair = lambda z: jnp.stack([z.real, z.imag], axis=-1)
            target, start = as_pair(target), as_pair(start)
        batches = jnp.repeat(target, 2, axis=1)  # [N, period, ...]
        if several:
            batches = cj.MicroBatches(batches[:, :, None], np.ones([2, 2], int))
        round_ = cj.make_round(
            loss, optax.sgd(0.1, momentum=0.5), cj.cocod("workers"), period=2
        )
        state = cj.replicate(round_.init(start), 2)
        run = cj.distribute(round_)
        for _ in range(3):
            state, _ = run(state, batches)
        run_to[dtype] = state.params
    pairs = run_to[jnp.complex64].view(jnp.float32).reshape(2, 1, 2)
    # Sums of squares in another order.
    np.testing.assert_allclose(pairs, run_to[jnp.float32], rtol=1e-5)


@pytest.mark.parametrize(
    ("loss_fn", "stateful", "message"),
    [
        (lambda w: w, False, r"loss_fn\(w\) must take \(params, batch\): too many"),
        (lambda w, batch: w, True, r"must take \(params, model_state, batch, key\)"),
        (
            lambda w, s, batch, key: (w, s),
            False,
            r"must take \(params, batch\): missing",
        ),
        (lambda w, batch: (w, batch), False, r"its loss, a scalar; .* a tuple\."),
        (lambda w, batch: w[None], False, r"a scalar; it returned .* shape \(1,\)\."),
        (lambda w, batch: None, False, r"it returned a NoneType"),
        (lambda w, s, b, key: w, True, r"\(loss, model_state\), .* shape \(\)\."),
        (lambda w, s, b, key: (s, w), True, r"it returned a dict as the loss"),
    ],
)
def test_a_loss_function_of_another_form_is_refused(loss_fn, stateful, message):
    def train():
        rule = cj.cocod("workers")
        round_ = cj.make_round(
            loss_fn, optax.sgd(0.1), rule, period=2, stateful=stateful
        )
        model_state = {"n": jnp.zeros(2)} if stateful else None
        state = cj.replicate(round_.init(jnp.zeros([]), model_state), 2)
        cj.distribute(round_, via="vmap")(state, np.zeros([2, 2]))

    with pytest.raises(TypeError, match=message):
        train()


def test_a_transform_of_gradients_is_no_rule():
    rule: Any = cj.mean_gradients("workers")
    with pytest.raises(TypeError, match=r"with the rule cj\.independent\(\)"):
        cj.make_round(problems.loss, optax.sgd(0.1), rule, period=2)


OTHER_TREES = {
    "two trees": lambda tree: (tree, tree),
    "other shapes": lambda x: x[None],
}


@pytest.mark.parametrize("other", OTHER_TREES)
@pytest.mark.parametrize("execution", ["fused", "split"])
@pytest.mark.parametrize("part", ["receive", "merge"])
def test_parts_that_return_another_tree_are_refused(part, execution, other):
    exchange, change = cj.mean("workers"), OTHER_TREES[other]
    merge = lambda arriving, params, state, snapshot: (params, state)
    if part == "receive":
        receive = lambda sent, like: change(cj.mean("workers").receive(sent, like))
        rule = cj.MergeRule(exchange._replace(receive=receive), merge)
        message = "arriving and what was sent must have the same"
    else:
        rule = cj.MergeRule(exchange, lambda m, x, state, s: (change(x), state))
        message = "what merge returned and the parameters must have the same"
    round_ = cj.make_round(
        lambda w, batch: jnp.mean((w - batch) ** 2), optax.sgd(0.1), rule, period=2
    )
    state = cj.replicate(round_.init(jnp.zeros(3)), 2)
    with pytest.raises(ValueError, match=message):
        cj.distribute(round_, execution=execution)(state, np.zeros([2, 2, 3]))


@pytest.mark.parametrize("period", [0, -1, 1.5, "4", None, True])
def test_a_bad_period_is_refused(period):
    with pytest.raises(ValueError, match=r"period=.* at least 1"):
        cj.make_round(problems.loss, optax.sgd(0.1), cj.cocod("workers"), period=period)


@pytest.mark.parametrize("delay", [-1, 5, 1.5, True])
def test_a_bad_delay_is_refused(delay):
    with pytest.raises(ValueError, match=r"delay="):
        cj.make_round(
            problems.loss, optax.sgd(0.1), cj.cocod("workers"), period=4, delay=delay
        )


def test_numbers_of_numpy_are_numbers():
    """A sweep over np.arange is as good as one over a range."""
    make = lambda period, delay: cj.make_round(
        problems.loss, optax.sgd(0.1), cj.cocod("workers"), period=period, delay=delay
    )
    round_ = make(np.int64(4), np.int32(2))
    assert (round_.period, round_.delay) == (4, 2)
    assert type(round_.period) is type(round_.delay) is int


def test_a_model_state_needs_a_loss_that_takes_it():
    round_ = cj.make_round(problems.loss, optax.sgd(0.1), cj.cocod("workers"), period=1)
    with pytest.raises(ValueError, match="stateful=True"):
        round_.init(problems.params(), jax.random.key(0))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"loss_fn": None}, "loss_fn=None must be a function"),
        ({"rule": optax.sgd(0.1)}, "rule=.* must be a MergeRule"),
        ({"inner": optax.sgd}, "inner=.* must be an optax transform"),
        ({"inner": cj.cocod("workers")}, "inner=.* must be an optax transform"),
    ],
)
def test_every_part_is_what_it_should_be(parts, message):
    good = {"loss_fn": problems.loss, "inner": optax.sgd(0.1)}
    good["rule"] = cj.cocod("workers")
    options: Any = good | parts
    with pytest.raises(TypeError, match=message):
        cj.make_round(**options, period=4)


def test_a_run_starts_from_one_key():
    round_ = cj.make_round(problems.loss, optax.sgd(0.1), cj.cocod("workers"), period=1)
    with pytest.raises(TypeError, match="key=0 must be a PRNG key"):
        round_.init(problems.params(), key=0)
    with pytest.raises(ValueError, match=r"key has shape \(2,\)"):
        round_.init(problems.params(), key=jax.random.split(jax.random.key(0)))


@pytest.mark.parametrize("execution", ["fused", "split"])
def test_batches_must_hold_one_batch_per_step(execution):
    round_ = cj.make_round(
        problems.loss, optax.sgd(0.1), cj.cocod("workers"), period=PERIOD
    )
    state = cj.replicate(round_.init(problems.params()), N)
    run = cj.distribute(round_, execution=execution)
    with pytest.raises(ValueError, match=r"batches\[0\] has shape .*period=3"):
        run(state, problems.round_batches(problems.batches(), 0, period=2))


def test_many_leaves_report_what_few_do():
    """Small leaves are joined then; the numbers are those of one vector."""
    rng = np.random.default_rng(0)
    draw = lambda: rng.normal(size=150 * 20 + 2**14).astype(np.float32)
    cut = lambda x: [*np.split(x[: 150 * 20], 150), x[150 * 20 :]]
    trees = [draw() for _ in range(4)]
    few, many = (merge_metrics(*map(form, trees)) for form in (lambda x: [x], cut))
    # Sums of 20,000 squares in float32, taken in another order.
    chex.assert_trees_all_close(many, few, rtol=1e-5, atol=1e-6)
