"""Micro-batches: each worker takes as many as it can, and the weights follow."""

import logging

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import cocod_jax as cj
from cocod_jax.certify import certify, dataflow
from tests import reference
from tests.marks import needs_compiler
from tests.test_execution import COMBINATIONS
from tests.test_round import MAPPINGS

N, PERIOD, ROUNDS, MICRO = 4, 3, 3, 2
STEPS = PERIOD * ROUNDS
COUNTS = (3, 1, 2, 1)
MAX = max(COUNTS)
LEARNING_RATE = 0.1


def params(dtype=np.float32):
    return {"w": np.array([1.0, -2.0, 0.5], dtype), "b": dtype(0.3)}


def loss(params, batch):
    x, y = batch
    return 0.5 * jnp.mean((x @ params["w"] + params["b"] - y) ** 2)


def sample_gradient(params, sample):
    """In NumPy, of a single sample."""
    x, y = sample
    residual = x @ params["w"] + params["b"] - y
    return {"w": residual * x, "b": residual}


def data(dtype=np.float32):
    """(x [N, STEPS, MAX, MICRO, 3], y [N, STEPS, MAX, MICRO]); workers see other data.

    What no worker may read is NaN.
    """
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, STEPS, MAX, MICRO, 3)).astype(dtype)
    y = (rng.normal(size=x.shape[:-1]) + np.arange(N).reshape(N, 1, 1, 1)).astype(dtype)
    for worker, count in enumerate(COUNTS):
        x[worker, :, count:], y[worker, :, count:] = np.nan, np.nan
    return x, y


def counts(per_worker=COUNTS, period=PERIOD):
    return np.repeat(np.array(per_worker, np.int32)[:, None], period, axis=1)


def micro_batches(batches, r=0, per_worker=COUNTS):
    steps = slice(r * PERIOD, (r + 1) * PERIOD)
    part = jax.tree.map(lambda leaf: leaf[:, steps], batches)
    return cj.MicroBatches(part, counts(per_worker))


def in_one(batches, r, worker_count=MAX):
    """The same samples as one batch for each step: [N, PERIOD, count * MICRO, ...]."""
    part = micro_batches(batches, r).data
    flat = lambda leaf: leaf[:, :, :worker_count].reshape(
        N, PERIOD, -1, *leaf.shape[4:]
    )
    return jax.tree.map(flat, part)


MOMENTUM = optax.sgd(LEARNING_RATE, momentum=0.9)


def make_round(loss=loss, inner=MOMENTUM, weights=COUNTS, period=PERIOD, **options):
    rule = cj.cocod("workers", weights)
    return cj.make_round(loss, inner, rule, period=period, **options)


@pytest.mark.parametrize("execution", ["fused", "split"])
@pytest.mark.parametrize("via", MAPPINGS)
def test_proportional_sampling_is_the_papers(via, execution):
    """Also: what is skipped is NaN here, and reaches nobody."""
    with jax.enable_x64(True):
        batches = data(np.float64)
        round_ = make_round()
        run = cj.distribute(round_, execution=execution, **MAPPINGS[via])
        state = cj.replicate(round_.init(params(np.float64)), N)
        losses = []
        for r in range(ROUNDS):
            state, metrics = run(state, micro_batches(batches, r))
            losses.append(metrics.loss)

        x, y = batches
        samples = [
            [
                [(x[i, t, j, n], y[i, t, j, n]) for j in range(m) for n in range(MICRO)]
                for t in range(STEPS)
            ]
            for i, m in enumerate(COUNTS)
        ]
        points, workers = reference.proportional_cocod_sgd(
            sample_gradient,
            params(np.float64),
            samples,
            PERIOD,
            learning_rate=LEARNING_RATE,
            momentum=0.9,
        )
        expected = jax.tree.map(lambda *leaves: np.stack(leaves), *workers)
        chex.assert_trees_all_close(state.params, expected, rtol=1e-10)
        residual = lambda p, s: s[0] @ p["w"] + p["b"] - s[1]
        expected = [
            [
                np.mean([residual(points[t][i], s) ** 2 for s in samples[i][t]]) / 2
                for t in range(STEPS)
            ]
            for i in range(N)
        ]
        np.testing.assert_allclose(np.hstack(losses), expected, rtol=1e-10)


@pytest.mark.parametrize(("period", "delay"), [(1, 1), (4, 4), (4, 2), (4, 0)])
def test_weights_by_count_find_the_optimum_of_all_samples(period, delay):
    """With equal weights the workers agree on another point: the paper's reason.

    All losses have one curvature, so that drift moves the fixed point of neither.
    """
    samples = np.array([[1.0, 2.0, 3.0], [9.0, 0.0, 0.0]], np.float32)
    every_step = np.repeat(samples[:, None, :, None], period, axis=1)
    batches = cj.MicroBatches(every_step, counts((3, 1), period))
    found = {}
    for weights in ((3, 1), None):
        distance = lambda w, batch: 0.5 * jnp.mean((w - batch) ** 2)
        round_ = make_round(distance, optax.sgd(0.2), weights, period, delay=delay)
        state = cj.replicate(round_.init(jnp.array(0.0)), 2)
        run = cj.distribute(round_)
        for _ in range(100):
            state, _ = run(state, batches)
        found[weights] = float(cj.consensus(state))
    assert found[3, 1] == pytest.approx((1 + 2 + 3 + 9) / 4, rel=1e-5)
    assert found[None] == pytest.approx((2 + 9) / 2, rel=1e-5)


@pytest.mark.parametrize("execution", ["fused", "split"])
def test_all_micro_batches_are_one_large_batch(execution):
    with jax.enable_x64(True):
        x, y = data(np.float64)
        batches = np.nan_to_num(x, nan=1.0), np.nan_to_num(y, nan=1.0)
        results = []
        for of_round in (
            lambda r: micro_batches(batches, r, [MAX] * N),
            lambda r: in_one(batches, r),
        ):
            round_ = make_round(inner=optax.adam(0.1), weights=None)
            run = cj.distribute(round_, execution=execution)
            state = cj.replicate(round_.init(params(np.float64)), N)
            losses = []
            for r in range(ROUNDS):
                state, metrics = run(state, of_round(r))
                losses.append(metrics.loss)
            results.append((state.params, state.opt_state, losses))
        chex.assert_trees_all_close(*results, rtol=1e-10)


def test_synchronous_sgd_takes_unequal_batches_too():
    """The weighted mean of the workers' gradients is that of all samples."""
    x, y = batches = data()
    inner = optax.chain(cj.mean_gradients("workers", COUNTS), optax.sgd(0.1))
    round_ = cj.make_round(loss, inner, cj.independent(), period=PERIOD)
    state = cj.replicate(round_.init(params()), N)
    run = cj.distribute(round_)
    expected = params()
    for r in range(ROUNDS):
        state, _ = run(state, micro_batches(batches, r))
    for t in range(STEPS):
        parts = [(x[i, t, :m], y[i, t, :m]) for i, m in enumerate(COUNTS)]
        every = tuple(
            np.concatenate([part.reshape(-1, *part.shape[2:]) for part in leaves])
            for leaves in zip(*parts, strict=True)
        )
        gradient = jax.grad(loss)(expected, every)
        expected = jax.tree.map(lambda p, g: p - 0.1 * g, expected, gradient)
    chex.assert_trees_all_close(cj.consensus(state), expected, rtol=1e-5)


@pytest.mark.parametrize(("via", "execution"), COMBINATIONS)
def test_skipped_work_is_not_done(via, execution):
    """Counted where it runs, and by a model state that counts micro-batches."""
    calls = []

    def counting(params, model_state, batch, key):
        jax.debug.callback(lambda: calls.append(1))
        return loss(params, batch), model_state + 1

    round_ = make_round(counting, stateful=True)
    run = cj.distribute(round_, via=via, execution=execution)
    state = cj.replicate(round_.init(params(), jnp.array(0)), N)
    state, _ = run(state, micro_batches(data()))
    jax.effects_barrier()
    assert state.model_state.tolist() == [PERIOD * m for m in COUNTS]
    # Under vmap all go on until the last is done, and one call stands for all.
    assert len(calls) == PERIOD * (MAX if via == "vmap" else sum(COUNTS))


def test_every_micro_batch_draws_from_a_key_of_its_own():
    def drawing(params, model_state, batch, key):
        n, drawn = model_state
        bits = jax.random.key_data(key)
        return loss(params, batch), (n + 1, drawn.at[n].set(bits))

    round_ = make_round(drawing, stateful=True)
    model_state = (0, jnp.zeros([PERIOD * MAX, 2], jnp.uint32))
    state = cj.replicate(round_.init(params(), model_state), N)
    state, _ = cj.distribute(round_)(state, micro_batches(data()))
    drawn = []
    for i, m in enumerate(COUNTS):
        keys = np.asarray(state.model_state[1])[i, : PERIOD * m].tolist()
        in_step = lambda t, i=i: jax.random.fold_in(state.key[i], t)
        expected = [
            jax.random.key_data(jax.random.fold_in(in_step(t), j)).tolist()
            for t in range(PERIOD)
            for j in range(m)
        ]
        assert keys == expected
        drawn += map(tuple, keys)
    assert len(set(drawn)) == len(drawn) == PERIOD * sum(COUNTS)


def test_narrow_gradients_are_summed_in_float32():
    """300 times 1.0078125: bfloat16 would stop counting at 256."""
    value = 1.0078125
    rise = lambda w, batch: w * batch.mean().astype(jnp.bfloat16)
    round_ = make_round(rise, optax.sgd(1.0), None, period=1)
    state = cj.replicate(round_.init(jnp.zeros([], jnp.bfloat16)), 1)
    batches = np.full([1, 1, 300, 1], value, np.float32)
    count = np.array([[300]])
    before = jax.tree.map(lambda leaf: leaf.dtype, state)
    state, metrics = cj.distribute(round_)(state, cj.MicroBatches(batches, count))
    assert jax.tree.map(lambda leaf: leaf.dtype, state) == before
    assert metrics.loss.dtype == jnp.bfloat16
    assert float(state.params[0]) == -value


@pytest.mark.parametrize(("via", "execution"), COMBINATIONS)
def test_other_counts_compile_nothing(via, execution, caplog):
    round_ = make_round()
    run = cj.distribute(round_, via=via, execution=execution)
    state = cj.replicate(round_.init(params()), N)
    state, _ = run(state, micro_batches(data()))
    given_away = state.params["w"]
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        state, metrics = run(state, micro_batches(data(), 1, (1, 1, 1, 1)))
        jax.block_until_ready((state.params, metrics))
    assert [r.message for r in caplog.records if "ompil" in r.message] == []
    assert given_away.is_deleted() is (execution == "fused")
    assert np.isfinite(metrics.loss).all()


@pytest.mark.parametrize("execution", ["fused", "split"])
def test_convolutions_take_the_fast_kernel_inside_the_loop(execution):
    """The one that XLA has on CPUs; see cocod_jax/rounds/_convolutions.py."""
    kernel = np.random.default_rng(0).normal(size=(3, 3, 1, 2)).astype(np.float32)

    def convolve(w, images):
        numbers = ("NHWC", "HWIO", "NHWC")
        out = jax.lax.conv_general_dilated(
            images, w, (2, 2), "SAME", dimension_numbers=numbers
        )
        return jnp.mean(jnp.tanh(out) ** 2)

    round_ = make_round(convolve, optax.sgd(0.1))
    state = cj.replicate(round_.init(kernel), N)
    images = np.random.default_rng(1).normal(size=(N, PERIOD, MAX, MICRO, 6, 6, 1))
    batches = cj.MicroBatches(images.astype(np.float32), counts())
    run, args = round_.run, (state, batches)
    if execution == "split":
        run, args = round_.step, (state, jax.tree.map(lambda b: b[:, 0], batches))
    compiled = jax.pmap(run, axis_name="workers").lower(*args).compile().as_text()
    forms = [line for line in compiled.splitlines() if " convolution(" in line]
    assert len(forms) >= 2  # forward and backward
    assert all("dim_labels=b01f_01io->b01f" in line for line in forms)


@pytest.mark.parametrize("execution", ["fused", "split"])
@pytest.mark.parametrize("count", [0, MAX + 1, 1000])
def test_counts_out_of_range(count, execution):
    """Refused where the numbers are at hand; on a device the loss says so."""
    round_ = make_round()
    run = cj.distribute(round_, execution=execution)
    batches = micro_batches(data(), 0, (1, count, 1, 1))
    state = cj.replicate(round_.init(params()), N)
    with pytest.raises(ValueError, match=r"batches\.count reaches .* of the 3 micro"):
        run(state, batches)
    on_device = batches._replace(count=jnp.asarray(batches.count))
    _, metrics = run(state, on_device)
    assert np.isnan(metrics.loss).all(axis=1).tolist() == [False, True, False, False]


@pytest.mark.parametrize("execution", ["fused", "split"])
def test_shapes_that_do_not_fit_are_refused(execution):
    round_ = make_round()
    run = cj.distribute(round_, execution=execution)
    state = cj.replicate(round_.init(params()), N)
    good = micro_batches(data())
    x, y = good.data
    for bad, message in [
        (good._replace(data=(x[:, :2], y)), r"batches\.data\[0\] has shape .*period=3"),
        (good._replace(count=good.count[:, :2]), r"batches\.count has shape \(4, 2\)"),
        (good._replace(data=(x, y[:, :, :2])), r"axis 2 counts the micro-batches"),
        (good._replace(data=(x, y[:, :, 0, 0])), r"axis 2 counts the micro-batches"),
        (good._replace(data=()), r"batches\.data has shapes \(\)"),
        (good._replace(count=good.count * 1.0), r"dtype float64; .* be integers"),
        (good._replace(count=good.count[..., None]), r"integers with 2 axes"),
    ]:
        with pytest.raises(ValueError, match=message):
            run(state, bad)


def network(delay=None):
    """A round of a two-layer network, and the shapes that it takes."""
    loss = lambda w, batch: jnp.mean((jnp.tanh(batch @ w["in"]) @ w["out"]) ** 2)
    round_ = make_round(loss, period=8, delay=delay)
    params = {"in": jnp.ones([32, 64]), "out": jnp.ones([64, 8])}
    state = jax.eval_shape(lambda p: cj.replicate(round_.init(p), N), params)
    images, count = jnp.ones([N, 8, MAX, 16, 32]), jnp.ones([N, 8], int)
    return round_, state, cj.MicroBatches(images, count)


@pytest.mark.parametrize("delay", [0, 5, 8])
def test_the_exchange_depends_on_no_micro_batch(delay):
    (collective,) = dataflow(*network(delay))
    assert collective[3:8] == (0, delay, 8 - delay, False, False)


@needs_compiler
def test_the_exchange_is_hidden_behind_steps_of_unknown_length():
    certificate = certify(*network(), target="h100").check()
    assert certificate.verdict == "hidden behind 8 of 8 local steps"
