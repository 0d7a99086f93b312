"""The problem that workers of several devices train on, and how those share it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import cocod_jax as cj

PERIOD, BATCH, D, H = 4, 8, 16, 24
P = PartitionSpec
CLOSE = {"rtol": 2e-5, "atol": 2e-6}
MESHES = {
    "2x4": ((2, 4), ("workers", "fsdp")),
    "4x2": ((4, 2), ("workers", "fsdp")),
    "2x2x2": ((2, 2, 2), ("workers", "fsdp", "tensor")),
}
RULES = {
    "cocod": lambda: cj.cocod("workers"),
    "finite": lambda: cj.cocod(cj.exchanges.finite("workers")),
    "diloco": lambda: cj.rules.diloco("workers"),
    "eager_diloco": lambda: cj.rules.eager_diloco("workers"),
    "co2": lambda: cj.rules.co2("workers"),
    "vrl_sgd": lambda: cj.rules.vrl_sgd("workers", learning_rate=0.05, period=PERIOD),
}


def mesh_of(name, kind=AxisType.Auto):
    shape, axes = MESHES[name]
    return jax.make_mesh(shape, axes, axis_types=(kind,) * len(axes))


def params():
    rng = np.random.default_rng(0)
    draw = lambda *shape: (rng.normal(size=shape) / 4).astype(np.float32)
    return {"in": draw(D, H), "bias": draw(H), "out": draw(H, 4), "scale": draw()}


def specs_of(mesh):
    """The larger leaves over the devices of a worker, each in another way."""
    tensor = "tensor" if "tensor" in mesh.axis_names else None
    return {"in": P("fsdp", tensor), "bias": P(), "out": P("fsdp"), "scale": P()}


def sharded(tree, mesh, specs=None):
    on = lambda spec: NamedSharding(mesh, spec)
    specs = specs_of(mesh) if specs is None else specs
    is_spec = lambda node: isinstance(node, P)
    return jax.device_put(tree, jax.tree.map(on, specs, is_leaf=is_spec))


def loss(params, batch, whole=lambda leaf: leaf):
    w = jax.tree.map(whole, params)
    hidden = jnp.tanh(batch @ w["in"] + w["bias"][None])
    return jnp.mean((w["scale"] * (hidden @ w["out"]) - 1) ** 2)


def explicit_loss(params, batch):
    """With explicit axes the user says where a leaf is gathered for a step."""
    return loss(params, batch, whole=lambda leaf: jax.sharding.reshard(leaf, P()))


def draw_batches(workers, rounds=1):
    rng = np.random.default_rng(1)
    shape = (rounds, workers, PERIOD, BATCH, D)
    return rng.normal(size=shape).astype(np.float32)


def on_mesh(batches, mesh):
    """Each worker's batch over the devices of its first axis within."""
    return jax.device_put(batches, NamedSharding(mesh, P("workers", None, "fsdp")))


def make(rule, streamed=False, loss=loss, **options):
    inner = optax.sgd(0.05, momentum=0.9)
    return cj.make_round(loss, inner, rule, period=PERIOD, streamed=streamed, **options)


def train(run, state, rounds):
    metrics = None
    for batches in rounds:
        state, metrics = run(state, batches)
    return state, metrics


def assert_close(tree, other, **tolerance):
    check = functools.partial(np.testing.assert_allclose, **(tolerance or CLOSE))
    jax.tree.map(lambda x, y: check(np.asarray(x), np.asarray(y)), tree, other)
