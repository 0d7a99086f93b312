"""Streamed exchanges, of a piece in every step, against a loop in NumPy."""

import functools
import itertools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import cocod_jax as cj
from cocod_jax.rounds._types import of_whole_rounds, on_host
from tests import problems, reference
from tests.methods import RATE, STREAMED, by_way
from tests.methods import made as made_whole
from tests.problems import PERIOD, ROUNDS, STEPS, WEIGHTS, N
from tests.test_per_step import over_mesh, over_mesh_unchecked

INNER: dict[str, Any] = {
    "momentum": (
        lambda: optax.sgd(RATE, momentum=0.9),
        lambda x: reference.MomentumSGD(x, RATE, 0.9),
    ),
    "adamw": (
        lambda: optax.adamw(RATE),
        lambda x: reference.AdamW(x, RATE),
    ),
    "sgd": (lambda: optax.sgd(RATE), lambda x: reference.MomentumSGD(x, RATE)),
}
ROUND_WAYS: dict[str, dict[str, Any]] = {
    "pmap fused": {"via": "pmap", "execution": "fused"},
    "pmap split": {"via": "pmap", "execution": "split"},
    "shard_map fused": {"via": "shard_map", "execution": "fused"},
    "shard_map split": {"via": "shard_map", "execution": "split"},
    "unchecked fused": {
        "via": "shard_map",
        "execution": "fused",
        "check_vma": False,
    },
    "vmap fused": {"via": "vmap", "execution": "fused"},
    "vmap split": {"via": "vmap", "execution": "split"},
    "elsewhere": {},  # the exchange on devices of its own
}
EVERY_WAYS = {
    "every pmap": jax.pmap,
    "every shard_map": over_mesh,
    "every unchecked": over_mesh_unchecked,
    "every vmap": jax.vmap,
}
WAYS = [*ROUND_WAYS, *EVERY_WAYS]
# Sums in another order: float64, and float32 over a dozen steps with values near 1.
TOLERANCE: dict[Any, float] = {np.float64: 1e-10, np.float32: 1e-5}


def train_rounds(round_, options, batches, params, rounds=ROUNDS, weights=None):
    options = dict(options)
    if not options:
        options["devices"], options["exchange_devices"] = cj.execution.device_pairs()
    run = cj.distribute(round_, **options)
    state = cj.replicate(round_.init(params), N)
    if weights is not None:
        state = cj.reweight(state, weights)
    reports = []
    for r in range(rounds):
        own = problems.round_batches(batches, r, round_.period)
        state, metrics = run(state, own)
        reports.append(jax.tree.map(np.asarray, metrics))
    joined = jax.tree.map(lambda *leaves: np.concatenate(leaves, axis=1), *reports)
    return state, joined


def train_steps(optimizer, mapping, batches, params, steps, loss=problems.loss):
    """A plain training loop around ``every``."""

    def step(params, state, batch):
        value, gradient = jax.value_and_grad(loss)(params, batch)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    run = mapping(step, axis_name="workers")
    run = jax.jit(run) if mapping is jax.vmap else run
    params = cj.replicate(params, N)
    state, losses = jax.vmap(optimizer.init)(params), []
    for t in range(steps):
        batch = jax.tree.map(lambda leaf, t=t: leaf[:, t], batches)
        params, state, loss_now = run(params, state, batch)
        losses.append(np.asarray(loss_now))
    return params, np.stack(losses, axis=1)


def trained(way, rule, inner, period, batches, dtype=np.float64):
    """The workers' parameters, and the losses [N, steps], on any way to run it."""
    params, rounds = problems.params(dtype), batches[0].shape[1] // period
    if way in EVERY_WAYS:
        optimizer = cj.every(period, inner, rule, streamed=True)
        mapping = EVERY_WAYS[way]
        return train_steps(optimizer, mapping, batches, params, rounds * period)
    round_ = cj.make_round(problems.loss, inner, rule, period=period, streamed=True)
    state, metrics = train_rounds(round_, ROUND_WAYS[way], batches, params, rounds)
    return state.params, metrics.loss


def cocod_loop(period, optimizer, batches, weights=WEIGHTS):
    """CoCoD-SGD piece by piece."""
    x0 = problems.params(np.float64)
    merge = lambda i, m, x, s: reference.merged(m, x, s)
    loop = reference.Streamed(
        problems.numpy_gradient,
        x0,
        problems.shares(weights),
        [optimizer(x0) for _ in range(N)],
        [reference.weighted_mean] * period,
        [merge] * period,
    )
    return loop.run(problems.per_worker(batches))


def assert_follows(params, losses, loop, batches, tolerance):
    close = functools.partial(
        chex.assert_trees_all_close, rtol=tolerance, atol=tolerance
    )
    close(jax.tree.map(np.asarray, params), problems.stacked(loop.x))
    data = problems.per_worker(batches)
    expected = [
        [problems.numpy_loss(x[i], data[i][t]) for t, x in enumerate(loop.points)]
        for i in range(N)
    ]
    close(losses, np.array(expected))


@functools.cache
def expected_loop(period, inner, steps=STEPS):
    batches = problems.batches(np.float64, steps=steps)
    return cocod_loop(period, INNER[inner][1], batches)


@pytest.mark.parametrize("period", range(1, 6))
def test_streaming_follows_its_loop_at_every_period(period):
    """Leaves of 6, 1, 2 and 4 numbers: 4 divides one of them, 5 none."""
    with jax.enable_x64(True):
        batches = problems.batches(np.float64, steps=3 * period)
        rule, inner = cj.cocod("workers", WEIGHTS), INNER["momentum"][0]()
        params, losses = trained("vmap fused", rule, inner, period, batches)
        loop = expected_loop(period, "momentum", 3 * period)
        assert_follows(params, losses, loop, batches, 1e-10)


def check_way(way, inner, dtype, period=PERIOD):
    with jax.enable_x64(dtype is np.float64):
        batches = problems.batches(dtype)
        rule = cj.cocod("workers", WEIGHTS)
        params, losses = trained(way, rule, INNER[inner][0](), period, batches, dtype)
        assert_follows(
            params, losses, expected_loop(period, inner), batches, TOLERANCE[dtype]
        )
        assert all(leaf.dtype == dtype for leaf in jax.tree.leaves((params, losses)))


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_run_follows_the_loop(way):
    check_way(way, "adamw", np.float64)


@pytest.mark.matrix
@pytest.mark.parametrize(
    ("way", "inner", "dtype", "period"),
    [*itertools.product(WAYS, INNER, TOLERANCE, (1, 2, 3, 4))],
)
def test_all_ways_follow_the_loop(way, inner, dtype, period):
    check_way(way, inner, dtype, period)


def made(name):
    """The rule, and its loop: what it does with each piece."""
    k_th = functools.partial(reference.k_th, problems.params(np.float64), k=PERIOD)
    loops = [made_whole(name, k_th(f=f))[1] for f in range(PERIOD)]
    keys = loops[0]
    return made_whole(name)[0], {key: [loop[key] for loop in loops] for key in keys}


@pytest.mark.parametrize(
    ("name", "way"), by_way(STREAMED, ("shard_map fused", "elsewhere", "every vmap"))
)
def test_methods_follow_their_loops_piece_by_piece(name, way):
    with jax.enable_x64(True):
        rule, pieces = made(name)
        batches = problems.batches(np.float64)
        x0 = problems.params(np.float64)
        params, _ = trained(way, rule, optax.sgd(RATE), PERIOD, batches)
        optimizers = [reference.MomentumSGD(x0, RATE) for _ in range(N)]
        loop = reference.Streamed(
            problems.numpy_gradient,
            x0,
            problems.shares(None),
            optimizers,
            **pieces,
            delay=1 if rule.exchange.phases is None else 2,
        ).run(problems.per_worker(batches))
        # The int8 exchange sends scales and shares in float32. Where `every` differs by
        # an ulp, a code may differ by one.
        lossy = 1e-2 if way in EVERY_WAYS else 1e-5
        tolerance = lossy if name == "int8" else 1e-10
        chex.assert_trees_all_close(
            jax.tree.map(np.asarray, params),
            problems.stacked(loop.x),
            rtol=tolerance,
            atol=tolerance,
        )


def test_rule_and_exchange_remember_each_piece():
    """Leading axes: the workers, and the pieces."""
    exchange = cj.exchanges.narrow("workers", "int8")
    rule = cj.rules.diloco(exchange, optax.sgd(0.7, momentum=0.9))
    make = functools.partial(cj.make_round, problems.loss, optax.sgd(RATE), rule)
    state = cj.replicate(make(period=PERIOD, streamed=True).init(problems.params()), N)
    optimizer = cj.every(PERIOD, optax.sgd(RATE), rule, streamed=True)
    of_every: Any = jax.vmap(optimizer.init)(cj.replicate(problems.params(), N))
    for holder in (state, of_every):
        # A third of 6, 1, 2 and 4 numbers, rounded up.
        chex.assert_shape(holder.exchange_state.rows["float32"].error, (N, PERIOD, 6))
        chex.assert_shape(holder.rule_state.anchor["float32"], (N, PERIOD, 6))


@pytest.mark.parametrize("execution", ["fused", "split"])
def test_new_weights_count_from_the_next_piece_on(execution):
    with jax.enable_x64(True):
        batches = problems.batches(np.float64)
        round_ = cj.make_round(
            problems.loss,
            optax.sgd(RATE, momentum=0.9),
            cj.cocod("workers", WEIGHTS),
            period=PERIOD,
            streamed=True,
        )
        run = cj.distribute(round_, via="vmap", execution=execution)
        state = cj.replicate(round_.init(problems.params(np.float64)), N)
        for r in range(ROUNDS):
            if r == 2:
                state = cj.reweight(state, (4, 1, 1, 2))
            state, _ = run(state, problems.round_batches(batches, r))
        data, half = problems.per_worker(batches), 2 * PERIOD
        loop = cocod_loop(
            PERIOD,
            INNER["momentum"][1],
            jax.tree.map(lambda leaf: leaf[:, :half], batches),
        )
        loop.p = problems.shares((4, 1, 1, 2))
        loop.run([own[half:] for own in data], start=half)
        chex.assert_trees_all_close(
            jax.tree.map(np.asarray, state.params),
            problems.stacked(loop.x),
            rtol=1e-10,
        )


@pytest.mark.parametrize("way", ["vmap fused", "pmap split"])
def test_metrics_are_those_of_the_steps_pieces(way):
    with jax.enable_x64(True):
        batches = problems.batches(np.float64)
        round_ = cj.make_round(
            problems.loss,
            optax.sgd(RATE, momentum=0.9),
            cj.cocod("workers", WEIGHTS),
            period=PERIOD,
            streamed=True,
        )
        params = problems.params(np.float64)
        _, metrics = train_rounds(round_, ROUND_WAYS[way], batches, params)
    loop = expected_loop(PERIOD, "momentum")
    flat = lambda tree: np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])
    for t, i in itertools.product(range(STEPS), range(N)):
        arriving, reached, snapshot = loop.merges[t]
        s = flat(snapshot[i])
        correction, progress = flat(arriving) - s, flat(reached[i]) - s
        norms = np.linalg.norm(correction), np.linalg.norm(progress)
        cosine = correction @ progress / (np.prod(norms) or 1)
        close = functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12)
        close(metrics.distance[i, t], norms[0])
        close(metrics.progress_norm[i, t], norms[1])
        if norms[0] > 1e-9:  # the first step begins with equal workers
            close(metrics.alignment[i, t], cosine)


def test_the_pieces_of_a_round_report_as_one_merge():
    """To loggers and alarms, which have one row for each round."""
    rng = np.random.default_rng(0)
    progress, correction = rng.normal(size=(2, N, PERIOD, 5))
    norm = lambda vectors: np.linalg.norm(vectors, axis=-1)
    products = (progress * correction).sum(axis=-1)
    cosine = products / norm(progress) / norm(correction)
    zero: Any = np.zeros([N, PERIOD])
    pieces = cj.RoundMetrics(zero, zero, norm(correction), norm(progress), cosine)
    whole = of_whole_rounds(on_host(pieces))
    whole_norm = lambda vectors: norm(vectors.reshape(N, -1))
    np.testing.assert_allclose(whole.distance, whole_norm(correction))
    np.testing.assert_allclose(whole.progress_norm, whole_norm(progress))
    expected = products.sum(axis=1) / whole_norm(progress) / whole_norm(correction)
    np.testing.assert_allclose(whole.alignment, expected)


DTYPES = {
    "single": np.float32,
    "half": jnp.bfloat16,
    "narrow": np.float16,
    "complex": np.complex64,
    "double": np.float64,
}


def mixed(x64):
    """Leaves of several dtypes, none of which two or three divides, and a scalar."""
    rng = np.random.default_rng(2)
    draw = lambda: rng.normal(size=7) + 1j * rng.normal(size=7)
    tree = {name: draw().astype(np.complex128) for name in DTYPES}
    tree = {n: x if n == "complex" else x.real for n, x in tree.items()}
    tree = tree | {"scalar": np.array(0.5)}
    dtypes = DTYPES | {"scalar": jnp.bfloat16}
    if not x64:
        del tree["double"]
    # What the leaves can hold is the start of both.
    return {name: np.asarray(x, dtypes[name]) for name, x in tree.items()}


@pytest.mark.parametrize("way", ["vmap fused", "vmap split", "every vmap"])
@pytest.mark.parametrize("x64", [False, True])
def test_each_dtype_is_a_buffer_and_keeps_its_digits(x64, way):
    targets = np.random.default_rng(3).normal(size=(N, 6)).astype(np.float32)

    def loss(params, target):
        off = lambda x: x.astype(jnp.promote_types(x.dtype, np.float32)) - target
        square = lambda x: (jnp.abs(off(x)) ** 2).sum().astype(np.float32)
        return 0.5 * sum(map(square, jax.tree.leaves(params)))

    with jax.enable_x64(x64):
        start, rule, inner = mixed(x64), cj.cocod("workers"), optax.sgd(0.25)
        if way in EVERY_WAYS:
            conj = optax.stateless(lambda g, _: optax.tree.conj(g))
            optimizer = cj.every(2, optax.chain(conj, inner), rule, streamed=True)
            params, _ = train_steps(optimizer, jax.vmap, targets, start, 6, loss)
        else:
            round_ = cj.make_round(loss, inner, rule, period=2, streamed=True)
            state, _ = train_rounds(round_, ROUND_WAYS[way], targets, start, 3)
            params = state.params
            piece = jax.eval_shape(jax.vmap(round_.snapshot), state)
            # Half of 7, rounded up, and the scalar's place.
            sizes = {"float32": 4, "bfloat16": 5, "float16": 4, "complex64": 4}
            sizes |= {"float64": 4} if x64 else {}
            assert {d: x.shape[1] for d, x in piece.items()} == sizes
            assert {d: x.dtype.name for d, x in piece.items()} == {d: d for d in sizes}
        params = jax.tree.map(np.asarray, params)
    wide = {
        name: x.astype(complex if name == "complex" else float)
        for name, x in start.items()
    }
    loop = reference.Streamed(
        lambda params, target: jax.tree.map(lambda x: x - float(target), params),
        wide,
        problems.shares(None),
        [reference.MomentumSGD(wide, 0.25) for _ in range(N)],
        [reference.weighted_mean] * 2,
        [lambda i, m, x, s: reference.merged(m, x, s)] * 2,
    ).run(targets.tolist())
    for name, expected in problems.stacked(loop.x).items():
        assert params[name].dtype == start[name].dtype
        # Every step rounds twice, and each of six may be off by half a unit.
        tolerance = 8 * float(jnp.finfo(start[name].dtype).eps)
        np.testing.assert_allclose(
            params[name].astype(expected.dtype),
            expected,
            rtol=tolerance,
            atol=tolerance,
            err_msg=name,
        )
