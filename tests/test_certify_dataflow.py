"""What a program allows: read from its jaxpr, on any machine."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from jax import lax
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

import cocod_jax as cj
from cocod_jax.certify import CollectiveFlow, dataflow

PERIOD, WORKERS = 8, 4
W = jax.ShapeDtypeStruct((WORKERS, 16, 16), jnp.float32)
BATCHES = jax.ShapeDtypeStruct((WORKERS, PERIOD, 4, 16), jnp.float32)
PRODUCTS = "matrix products"
BYTES = 16 * 16 * 4


def mean(x):
    return lax.pmean(x, "workers")


def loss_fn(w, batch):
    return jnp.mean((batch @ w) ** 2)


def step(w, batch):
    loss, gradient = jax.value_and_grad(loss_fn)(w, batch)
    return w - 0.1 * gradient, loss


def cocod(w, batches):
    m = mean(w)
    x, losses = lax.scan(step, w, batches)
    return m + (x - w), losses


def local_sgd(w, batches):
    return lax.scan(step, mean(w), batches)


def average_after(w, batches):
    x, losses = lax.scan(step, w, batches)
    return mean(x), losses


def just_in_time(w, batches):
    m = mean(w)
    x, _ = lax.scan(step, w, batches[:3])
    x, _ = lax.scan(step, m + (x - w), batches[3:])
    return x


def synchronous_sgd(w, batches):
    def synchronous_step(w, batch):
        return w - 0.1 * mean(jax.grad(loss_fn)(w, batch)), None

    return lax.scan(synchronous_step, w, batches)


def with_reduced_loss(w, batches):
    x, losses = cocod(w, batches)
    return x, mean(losses.mean())


def in_a_conditional(w, batches):
    x, losses = lax.scan(step, w, batches)
    m = lax.cond(losses[0] > 0, mean, lambda w: w, w)
    return m + (x - w), losses


def several_rounds(w, batches):
    return lax.scan(cocod, w, jnp.stack([batches] * 5))


def with_search(w, batches):
    """A loop that is no local step: it multiplies no matrices."""
    x, losses = cocod(w, batches)
    return x, lax.fori_loop(0, 30, lambda _, n: n + losses[0], 0.0)


def flow(before=0, beside=0, after=0, **where):
    where: dict[str, Any] = {"in_conditional": False, "in_loop": False} | where
    return CollectiveFlow("psum", "float32", BYTES, before, beside, after, **where)


@pytest.mark.parametrize(
    ("round_", "expected"),
    [
        (cocod, flow(beside=8)),
        (local_sgd, flow(after=8)),
        (average_after, flow(before=8)),
        (just_in_time, flow(beside=3, after=5)),
        (synchronous_sgd, flow(before=2, in_loop=True, unit=PRODUCTS)),
        (in_a_conditional, flow(before=8, in_conditional=True)),
        (several_rounds, flow(beside=8)),
        (with_search, flow(beside=8)),
    ],
)
def test_position_among_the_local_steps(round_, expected):
    assert dataflow(round_, W, BATCHES) == (expected,)


def test_the_per_step_optimizer_sends_in_a_conditional():
    """In a program of one step, and in a loop over steps."""
    tx = cj.every(PERIOD, optax.sgd(0.1), cj.cocod("workers"))

    def one_step(w, batch):
        return tx.update(jax.grad(loss_fn)(w, batch), tx.init(w), w)

    def many_steps(w, batches):
        return lax.scan(lambda w, batch: (one_step(w, batch)[0], None), w, batches)

    batch = BATCHES.update(shape=(WORKERS, 4, 16))
    (alone,) = dataflow(one_step, W, batch)
    (looped,) = dataflow(many_steps, W, BATCHES)
    assert (alone.in_conditional, alone.in_loop) == (True, False)
    assert (looped.in_conditional, looped.in_loop) == (True, True)


def test_a_metric_reduced_in_the_round_waits_for_the_steps():
    exchange, metric = dataflow(with_reduced_loss, W, BATCHES)
    assert exchange == flow(beside=8)
    assert (metric.bytes, metric.before, metric.beside) == (4, 8, 0)


def shard_mapped(round_, check_vma):
    """Varying parameters in and out; the stale mean is cast to varying."""

    def one_worker(w, batches):
        x, losses = round_(w[0], batches[0])
        return x[None], losses[None]

    spec = PartitionSpec("workers")
    return jax.jit(
        jax.shard_map(
            one_worker,
            mesh=AbstractMesh((WORKERS,), ("workers",), axis_types=(AxisType.Auto,)),
            in_specs=spec,
            out_specs=spec,
            check_vma=check_vma,
        )
    )


@pytest.mark.parametrize(
    "run",
    [
        jax.pmap(cocod, axis_name="workers"),
        shard_mapped(cocod, check_vma=True),
        shard_mapped(cocod, check_vma=False),
        jax.pmap(jax.checkpoint(cocod), axis_name="workers"),
        jax.jit(jax.pmap(cocod, axis_name="workers")),
    ],
    ids=["pmap", "shard_map", "shard_map without vma", "remat", "jit"],
)
def test_every_mapping_transform(run):
    (collective,) = dataflow(run, W, BATCHES)
    assert collective._replace(name="psum") == flow(beside=8)


def test_custom_derivatives_are_looked_through():
    @jax.custom_vjp
    def passed(x):
        return x

    passed.defvjp(lambda x: (x, None), lambda _, g: (g,))
    through = lambda w, batches: cocod(passed(w), batches)
    assert dataflow(through, W, BATCHES) == (flow(beside=8),)


def test_other_collectives_are_found():
    def gossip(w, batches):
        received = lax.ppermute(w, "workers", [(i, (i + 1) % 4) for i in range(4)])
        gathered = lax.all_gather(w.astype(jnp.bfloat16), "workers")
        x, _ = lax.scan(step, w, batches)
        return received + gathered.sum(0) + x

    found = dataflow(gossip, W, BATCHES)
    assert [(f.name, f.dtype, f.bytes, f.beside) for f in found] == [
        ("ppermute", "float32", BYTES, 8),
        ("all_gather", "bfloat16", BYTES // 2, 8),
    ]


@pytest.mark.parametrize("delay", [0, 1, 5, 8])
@pytest.mark.parametrize("inner", [optax.sgd(0.1, momentum=0.9), optax.adamw(1e-3)])
def test_the_library_sends_before_the_steps(delay, inner):
    rule = cj.cocod("workers")
    round_ = cj.make_round(loss_fn, inner, rule, period=PERIOD, delay=delay)
    replicate = lambda w: cj.replicate(round_.init(w), WORKERS)
    state = jax.eval_shape(replicate, jnp.ones([16, 16]))
    (collective,) = dataflow(round_, state, BATCHES)
    assert collective[3:6] == (0, delay, PERIOD - delay)


def test_a_round_is_mapped_over_the_axis_of_its_rule():
    round_ = cj.make_round(loss_fn, optax.sgd(0.1), cj.cocod("peers"), period=PERIOD)
    replicate = lambda w: cj.replicate(round_.init(w), WORKERS)
    state = jax.eval_shape(replicate, jnp.ones([16, 16]))
    (collective,) = dataflow(round_, state, BATCHES)
    assert collective.beside == PERIOD
    assert dataflow(round_, state, BATCHES, axis_name="peers") == (collective,)
    with pytest.raises(ValueError, match=r"'workers', but the rule .* 'peers'"):
        dataflow(round_, state, BATCHES, axis_name="workers")


@pytest.mark.parametrize("optimizer", ["ssgd", "cocod"])
def test_a_loop_over_micro_batches_is_no_loop_over_rounds(optimizer):
    """A round is known to be one: a loop in a loop is inside of its local step."""
    rule, delay, inner = cj.cocod("workers"), PERIOD, optax.sgd(0.1)
    if optimizer == "ssgd":
        rule, delay = cj.independent(), 0
        inner = optax.chain(cj.mean_gradients("workers"), inner)
    round_ = cj.make_round(loss_fn, inner, rule, period=PERIOD, delay=delay)
    replicate = lambda w: cj.replicate(round_.init(w), WORKERS)
    state = jax.eval_shape(replicate, jnp.ones([16, 16]))
    data = BATCHES.update(shape=(WORKERS, PERIOD, 3, 4, 16))
    count = jnp.ones([WORKERS, PERIOD], jnp.int32)
    (collective,) = dataflow(round_, state, cj.MicroBatches(data, count))
    assert collective.in_loop is (optimizer == "ssgd")
    assert collective.beside == (PERIOD if optimizer == "cocod" else 0)


def test_a_program_that_sends_nothing_has_no_flow():
    assert dataflow(lambda w, batches: lax.scan(step, w, batches), W, BATCHES) == ()


def test_arguments_without_a_common_axis_of_workers_are_named():
    with pytest.raises(ValueError, match=r"leading axes of args are .*3.*4"):
        dataflow(cocod, W, BATCHES.update(shape=(3, PERIOD, 4, 16)))
