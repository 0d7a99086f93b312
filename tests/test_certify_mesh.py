"""Workers of several devices: their own collectives, and the exchange between them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import cocod_jax as cj
from cocod_jax.certify import certify, dataflow
from cocod_jax.certify._hlo import replica_groups
from cocod_jax.certify._nvidia import gpus
from tests.marks import needs_compiler

WORKERS, INSIDE, STEPS = 2, 4, 8
AXES = ("workers", "fsdp")
SIZES = (WORKERS, INSIDE)
WORKER_OF_DEVICE = (0, 0, 0, 0, 1, 1, 1, 1)
W = jax.ShapeDtypeStruct((WORKERS, 64, 64), jnp.float32)
BATCHES = jax.ShapeDtypeStruct((WORKERS, STEPS, 32, 64), jnp.float32)
W_SPEC = PartitionSpec("workers", "fsdp")
BATCH_SPEC = PartitionSpec("workers", None, "fsdp")


def mesh_of(devices):
    return Mesh(np.reshape(devices, SIZES), AXES, axis_types=(AxisType.Auto,) * 2)


def spread(x, spec, mesh=None):
    return x.update(sharding=NamedSharding(mesh or mesh_of(jax.devices()), spec))


def loss_fn(w, batch):
    return jnp.mean(jnp.tanh(batch @ w) ** 2)


def step(w, batch):
    return w - 0.1 * jax.grad(loss_fn)(w, batch), None


def cocod(w, batches, step=step):
    m = lax.pmean(w, "workers")
    return m + (lax.scan(step, w, batches)[0] - w)


def blocks(one_worker):
    return lambda w, batches: one_worker(w[0], batches[0])[None]


def inner_axes_automatic(mesh, **jit):
    """Manual over the workers only; the compiler parts each worker's arrays."""
    run = jax.shard_map(
        blocks(cocod),
        mesh=mesh,
        in_specs=PartitionSpec("workers"),
        out_specs=PartitionSpec("workers"),
        axis_names={"workers"},
        check_vma=False,
    )
    return jax.jit(run, **jit)


def inner_axes_by_hand(mesh, one_worker):
    """Manual over all axes: the function of one device, with collectives of its own."""
    specs = {"in_specs": (W_SPEC, BATCH_SPEC), "out_specs": W_SPEC}
    return jax.jit(
        jax.shard_map(blocks(one_worker), mesh=mesh, check_vma=False, **specs)
    )


def step_by_hand(w, batch):
    """All-gathers the weights, and reduce-scatters their gradient, in a worker."""
    whole = lax.all_gather(w, "fsdp", tiled=True)
    gradient = jax.grad(loss_fn)(whole, batch)
    return w - 0.1 * lax.psum_scatter(gradient, "fsdp", tiled=True) / INSIDE, None


def step_over_all(w, batch):
    """A step of synchronous SGD, over all devices of all workers."""
    w, _ = step_by_hand(w, batch)
    return lax.pmean(w, "workers"), None


def sorted_groups(hlo):
    """The kind and the groups of every collective in a compiled text."""
    kinds = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all")
    return sorted(
        (kind, str(replica_groups(line)))
        for line in hlo.splitlines()
        for kind in kinds
        if f" {kind}(" in line or f" {kind}-start(" in line
    )


@pytest.fixture(scope="module")
def compiled_by_jit():
    """The program with automatic inner axes, compiled as a user on GPUs would."""
    mesh = mesh_of(gpus("h100", WORKERS * INSIDE, 1))
    args = spread(W, W_SPEC, mesh), spread(BATCHES, BATCH_SPEC, mesh)
    return inner_axes_automatic(mesh).lower(*args).compile().as_text()


@needs_compiler
@pytest.mark.parametrize("known_from", ["arrays", "jit"])
def test_the_program_is_the_one_that_would_run(
    known_from, compiled_by_jit, monkeypatch
):
    """Inner axes that shard_map leaves to the compiler stay sharded."""
    from cocod_jax.certify import _certify

    mesh = mesh_of(jax.devices())
    if known_from == "arrays":
        run = inner_axes_automatic(mesh)
        args = spread(W, W_SPEC), spread(BATCHES, BATCH_SPEC)
    else:
        on = functools.partial(NamedSharding, mesh)
        run = inner_axes_automatic(mesh, in_shardings=(on(W_SPEC), on(BATCH_SPEC)))
        args = W, BATCHES
    texts = []
    compile_program = _certify.compile_program

    def kept(*args, **options):
        compiled = compile_program(*args, **options)
        texts.append(compiled.hlo)
        return compiled

    monkeypatch.setattr(_certify, "compile_program", kept)
    certificate = certify(run, *args, target="h100")
    expected = sorted_groups(compiled_by_jit)
    assert sorted_groups(texts[0]) == expected
    assert len({groups for _, groups in expected}) == 2  # within workers, and between
    assert (certificate.devices, certificate.workers) == (8, 2)
    (exchange,) = certificate.schedule.collectives
    assert exchange.bytes == 64 * 64 * 4 / INSIDE
    assert {c.place for c in certificate.schedule.inside_workers} >= {"loop"}


def test_a_loop_that_communicates_inside_a_worker_is_one_of_local_steps():
    one_device = functools.partial(cocod, step=step_by_hand)
    run = inner_axes_by_hand(mesh_of(jax.devices()), one_device)
    *inner, exchange = dataflow(run, W, BATCHES)
    assert exchange[3:6] == (0, STEPS, 0)
    assert not exchange.inside_worker
    assert [(f.name, f.in_loop, f.inside_worker) for f in inner] == [
        ("all_gather", True, True),
        ("reduce_scatter", True, True),
    ]
    assert str(inner[0]).endswith("in the local loop, inside a worker")


def test_a_loop_that_communicates_between_workers_too_is_none():
    run = inner_axes_by_hand(
        mesh_of(jax.devices()), lambda w, b: lax.scan(step_over_all, w, b)[0]
    )
    *inner, exchange = dataflow(run, W, BATCHES)
    assert (exchange.in_loop, exchange.inside_worker) == (True, False)
    assert [f.inside_worker for f in inner] == [True, True]


def test_the_axis_of_workers_can_have_another_name():
    """Then the other axis is the one inside a worker."""
    one_device = functools.partial(cocod, step=step_by_hand)
    run = inner_axes_by_hand(mesh_of(jax.devices()), one_device)
    flows = dataflow(run, W, BATCHES, axis_name="fsdp")
    assert [f.inside_worker for f in flows] == [False, False, True]
    flows = dataflow(run, W, BATCHES, axis_name="other")
    assert not any(f.inside_worker for f in flows)


@needs_compiler
def test_the_verdict_is_about_the_exchange_between_workers():
    """On H100 the compiler does not hide it behind steps that communicate."""
    one_device = functools.partial(cocod, step=step_by_hand)
    run = inner_axes_by_hand(mesh_of(jax.devices()), one_device)
    certificate = certify(run, W, BATCHES, target="h100")
    assert len(certificate.schedule.collectives) == 1
    assert certificate.schedule.steps == STEPS
    assert [r.id for r in certificate.reasons] == ["inner-collectives"]
    assert "inside a worker, not to be hidden: 1 all-gather, 1 reduce-scatter" in str(
        certificate
    )


@needs_compiler
def test_a_round_keeps_the_sharding_of_its_workers():
    round_ = cj.make_round(loss_fn, optax.sgd(0.1), cj.cocod("workers"), period=STEPS)
    state = jax.eval_shape(
        lambda w: cj.replicate(round_.init(w), WORKERS), W.update(shape=W.shape[1:])
    )
    on_workers = lambda x: spread(x, PartitionSpec("workers"))
    state = jax.tree.map(on_workers, state)._replace(params=spread(W, W_SPEC))
    batches = spread(BATCHES, BATCH_SPEC)
    certificate = certify(round_, state, batches, target="h100")
    assert (certificate.devices, certificate.workers) == (8, 2)
    assert certificate.schedule.inside_workers
