"""Programs of one step, and what the compiler puts beside their exchange."""

import math

import jax
import jax.numpy as jnp
import optax
import pytest
from jax import lax
from jax.sharding import Mesh, PartitionSpec

import cocod_jax as cj
from cocod_jax.certify import ExposedError, certify
from cocod_jax.certify._hlo import Module, dims_of
from tests.marks import needs_compiler

WORKERS, PERIOD, BATCH, WIDTH = 4, 4, 64, 32
RULE = cj.cocod("workers")
SGD = optax.sgd(0.1, momentum=0.9)
OPTIONS = cj.compiler_options("gpu")


def of_all(tree):
    """The shapes of a tree of one worker, for all workers."""
    shape = lambda x: jax.ShapeDtypeStruct((WORKERS, *x.shape), x.dtype)
    return jax.tree.map(shape, tree)


PARAMS = [
    {
        "in": jax.ShapeDtypeStruct((WIDTH, 4 * WIDTH), jnp.float32),
        "out": jax.ShapeDtypeStruct((4 * WIDTH, WIDTH), jnp.float32),
    }
] * 3
BATCHES = jax.ShapeDtypeStruct((BATCH, WIDTH), jnp.float32)


def loss_fn(params, batch):
    """Of three residual blocks of two layers, as in a transformer."""
    x = batch
    for block in params:
        x = x + jnp.tanh(x @ block["in"]) @ block["out"]
    return jnp.mean((x - batch) ** 2)


def step_of(optimizer, reduce_loss=lambda loss: loss):
    """A user's step of one worker, with an optax optimizer."""

    def step(params, state, batch):
        loss, gradients = jax.value_and_grad(loss_fn)(params, batch)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, reduce_loss(loss)

    state = jax.eval_shape(optimizer.init, PARAMS)
    return step, (of_all(PARAMS), of_all(state), of_all(BATCHES))


def shard_mapped(step):
    def block(*args):
        out = step(*jax.tree.map(lambda x: x[0], args))
        return jax.tree.map(lambda x: x[None], out)

    workers = PartitionSpec("workers")
    mesh = Mesh(jax.devices()[:WORKERS], "workers")
    return jax.jit(jax.shard_map(block, mesh=mesh, in_specs=workers, out_specs=workers))


def streamed(inner=SGD, rule=RULE):
    return cj.every(PERIOD, inner, rule, streamed=True)


def reasons(certificate):
    return [reason.id for reason in certificate.reasons]


def in_shard_map(optimizer):
    step, args = step_of(optimizer)
    return shard_mapped(step), args


def in_pmap(optimizer):
    step, args = step_of(optimizer)
    return jax.pmap(step, axis_name="workers", donate_argnums=(0, 1)), args


def in_a_chain(optimizer):
    return step_of(optax.chain(optax.clip_by_global_norm(1.0), optimizer))


def in_a_round(optimizer=None, inner=SGD, rule=RULE):
    """The library's own round, which has its steps in a loop."""
    del optimizer
    round_ = cj.make_round(loss_fn, inner, rule, period=PERIOD, streamed=True)
    state = jax.eval_shape(lambda p: cj.replicate(round_.init(p), WORKERS), PARAMS)
    batches = jax.ShapeDtypeStruct((WORKERS, PERIOD, BATCH, WIDTH), jnp.float32)
    return round_, (state, batches)


@needs_compiler
@pytest.mark.parametrize("target", ["h100", "a100"])
@pytest.mark.parametrize("run", [in_shard_map, in_pmap, in_a_chain, in_a_round])
def test_a_streamed_exchange_is_hidden_beside_its_step(run, target):
    fn, args = run(streamed())
    certificate = certify(fn, *args, target=target, compiler_options=OPTIONS).check()
    (exchange,) = certificate.schedule.collectives
    model = sum(x.size * 4 for x in jax.tree.leaves(PARAMS))
    assert exchange.bytes == model / PERIOD
    # What is left of this small step is the optimizer, behind the mean.
    assert certificate.check(at_least=0.5).share == exchange.beside.work < 0.95
    with pytest.raises(ExposedError):
        certificate.check(at_least=0.95)
    assert certificate.verdict.startswith(
        f"hidden beside {exchange.beside.operations} of {exchange.beside.of} operations"
    )
    assert all(
        f.beside == f.all_work == 17 for f in certificate.flows if not f.inside_worker
    )


@needs_compiler
@pytest.mark.parametrize(
    ("run", "target", "expected"),
    [
        (in_a_round, "h100", ["starts-late"]),
        (in_a_round, "a100", ["scheduler-off"]),
        (in_a_chain, "a100", ["scheduler-off"]),
    ],
)
def test_without_the_options_it_starts_late(run, target, expected):
    fn, args = run(streamed())
    certificate = certify(fn, *args, target=target)
    assert reasons(certificate) == expected
    assert "compiler_options=cj.compiler_options()" in str(certificate)


@needs_compiler
@pytest.mark.parametrize(
    "optimizer",
    [
        optax.chain(cj.stale_mean_gradients("workers"), SGD),
        cj.per_step.acco(SGD, "workers"),
    ],
    ids=["Pipe-SGD", "ACCO"],
)
def test_gradients_are_hidden_beside_the_next_ones(optimizer):
    step, args = step_of(optimizer)
    for target in ("h100", "a100"):
        certify(step, *args, target=target, compiler_options=OPTIONS).check()


def in_turn(run, exchange):
    """A streamed program whose exchange is two collectives in turn."""
    rule = cj.cocod(exchange)
    if run is in_a_round:
        return in_a_round(rule=rule)
    return run(streamed(rule=rule))


@needs_compiler
@pytest.mark.parametrize("target", ["h100", "a100"])
@pytest.mark.parametrize("run", [in_shard_map, in_a_round])
def test_each_of_two_collectives_has_a_step(run, target):
    fn, args = in_turn(run, cj.exchanges.narrow("workers", "int8"))
    certificate = certify(fn, *args, target=target, compiler_options=OPTIONS).check()
    found = {c.kind: c for c in certificate.schedule.collectives}
    assert found.keys() == {"all-to-all", "all-gather"}
    model = sum(x.size for x in jax.tree.leaves(PARAMS))
    for collective in found.values():
        assert collective.dtype == "u8"
        assert collective.beside.products == 1
        sent = model // PERIOD * (1 + 4 / 256)  # the last blocks are filled up
        assert sent <= collective.bytes < sent + WORKERS * 260


@needs_compiler
def test_without_a_step_between_two_collectives_one_is_exposed():
    exchange = cj.exchanges.narrow("workers", "int8")._replace(phases=None)
    fn, args = in_turn(in_shard_map, exchange)
    certificate = certify(fn, *args, target="h100", compiler_options=OPTIONS)
    assert reasons(certificate) == ["chained"]
    round_ = cj.make_round(loss_fn, SGD, cj.cocod(exchange), period=PERIOD)
    state = jax.eval_shape(lambda p: cj.replicate(round_.init(p), WORKERS), PARAMS)
    batches = jax.ShapeDtypeStruct((WORKERS, PERIOD, BATCH, WIDTH), jnp.float32)
    certificate = certify(round_, state, batches, target="h100")
    assert reasons(certificate) == ["chained"]
    assert [f.chained for f in certificate.flows] == [False, True]


@needs_compiler
def test_the_options_hide_a_single_step_of_a_whole_round_too():
    """Without them the exchange starts in the middle of it."""
    round_ = cj.make_round(loss_fn, SGD, RULE, period=PERIOD, delay=1)
    state = jax.eval_shape(lambda p: cj.replicate(round_.init(p), WORKERS), PARAMS)
    batches = jax.ShapeDtypeStruct((WORKERS, PERIOD, BATCH, WIDTH), jnp.float32)
    certificate = certify(
        round_, state, batches, target="h100", compiler_options=OPTIONS
    ).check()
    assert certificate.verdict == "hidden behind 1 of 4 local steps"


@needs_compiler
def test_a_step_that_has_a_loop_of_its_own():
    """The loop over micro-batches is one operation of the step."""
    round_, (state, batches) = in_a_round(inner=optax.adamw(1e-3))
    data = batches.update(shape=(WORKERS, PERIOD, 2, BATCH // 2, WIDTH))
    batches = cj.MicroBatches(data, jnp.full([WORKERS, PERIOD], 2))
    certificate = certify(
        round_, state, batches, target="h100", compiler_options=OPTIONS
    ).check()
    (flow,) = certificate.flows
    assert (flow.before, flow.after) == (0, 0)
    assert flow.beside >= 17


def decides_in_each_step():
    return step_of(cj.every(PERIOD, SGD, RULE))


def with_mean_loss():
    return step_of(streamed(), reduce_loss=lambda loss: lax.pmean(loss, "workers"))


def synchronous_sgd():
    return step_of(optax.chain(cj.mean_gradients("workers"), SGD))


def merges_first():
    """Local SGD in every step, which begins at the mean."""

    def step(params, batch):
        params = jax.tree.map(lambda x: lax.pmean(x, "workers"), params)
        gradients = jax.grad(loss_fn)(params, batch)
        return optax.apply_updates(params, gradients)

    return step, (of_all(PARAMS), of_all(BATCHES))


@needs_compiler
@pytest.mark.parametrize(
    ("program", "expected"),
    [
        (decides_in_each_step, "conditional"),
        (
            lambda: step_of(streamed(), lambda x: lax.pmean(x, "workers")),
            "reduced-metric",
        ),
        (
            lambda: step_of(optax.chain(cj.mean_gradients("workers"), SGD)),
            "waits-for-steps",
        ),
        (merges_first, "steps-wait"),
    ],
    ids=lambda x: x if isinstance(x, str) else "program",
)
def test_what_the_options_do_not_cure(program, expected):
    fn, args = program()
    certificate = certify(fn, *args, target="h100", compiler_options=OPTIONS)
    assert reasons(certificate) == [expected]
    with pytest.raises(ExposedError, match=expected):
        certificate.check()


def test_a_compiled_step_reads_and_sends_its_piece_only():
    """A k-th of each leaf is cut out, and a k-th of the model travels."""
    step, args = step_of(streamed())
    hlo = shard_mapped(step).lower(*args).compile().as_text()
    assert hlo is not None
    module = Module(hlo, range(WORKERS))
    instructions = [i for body in module.computations.values() for i in body]
    (sent,) = [i for i in instructions if i.kind]
    sizes = [leaf.size for leaf in jax.tree.leaves(PARAMS)]
    assert dims_of(sent.shape) == [sum(sizes) // PERIOD]
    cut = [dims_of(i.shape) for i in instructions if i.opcode == "dynamic-slice"]
    assert len(cut) >= len(sizes)
    assert {math.prod(dims) for dims in cut} == {n // PERIOD for n in sizes}
    assert all(math.prod(dims_of(i.shape)) < sum(sizes) for i in instructions)
