"""Workers of several devices: the numbers of workers of one device, and nothing gathered.

Sums over a worker's devices have another order than sums on one device, so that
float32 numbers agree to a few units in the last place after every step.
"""

import functools
import logging
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import cocod_jax as cj
from cocod_jax.certify._hlo import replica_groups
from cocod_jax.exchanges._shards import shards_of

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
    "diloco": lambda: cj.rules.diloco("workers"),
    "vrl_sgd": lambda: cj.rules.vrl_sgd("workers"),
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
    inner = optax.adam(0.05)
    return cj.make_round(
        loss, inner, rule, period=PERIOD, streamed=streamed, **options
    )


def train(run, state, rounds):
    for batches in rounds:
        state, metrics = run(state, batches)
    return state, metrics


def assert_close(tree, other, **tolerance):
    check = functools.partial(np.testing.assert_allclose, **(tolerance or CLOSE))
    jax.tree.map(lambda x, y: check(np.asarray(x), np.asarray(y)), tree, other)


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(
    ("name", "rule"),
    [("2x4", "cocod"), ("4x2", "diloco"), ("2x2x2", "vrl_sgd")]
    + [
        pytest.param(name, rule, marks=pytest.mark.matrix)
        for name in MESHES
        for rule in RULES
        if (name, rule) not in (("2x4", "cocod"), ("4x2", "diloco"), ("2x2x2", "vrl_sgd"))
    ],
)
def test_the_numbers_are_those_of_workers_of_one_device(name, rule, streamed):
    mesh = mesh_of(name)
    workers = mesh.shape["workers"]
    round_ = make(RULES[rule](), streamed)
    rounds = draw_batches(workers, 3)
    one = cj.replicate(round_.init(params()), workers)
    expected, metrics = train(cj.distribute(round_), one, rounds)
    state = cj.replicate(round_.init(sharded(params(), mesh)), mesh=mesh)
    run = cj.distribute(round_, via="shard_map", mesh=mesh)
    after, own_metrics = train(run, state, [on_mesh(b, mesh) for b in rounds])
    assert_close(after.params, expected.params)
    assert_close(after.opt_state, expected.opt_state)
    assert_close(own_metrics, metrics, rtol=1e-4, atol=1e-5)
    assert_close(cj.consensus(after), cj.consensus(expected))


@pytest.fixture(scope="module", params=[False, True], ids=["whole", "streamed"])
def trained(request):
    """A mesh, a round, what it began with, and what came out after two rounds."""
    mesh = mesh_of("2x4")
    round_ = make(cj.rules.diloco("workers"), streamed=request.param)
    state = cj.replicate(round_.init(sharded(params(), mesh)), mesh=mesh)
    run = cj.distribute(round_, via="shard_map", mesh=mesh)
    rounds = [on_mesh(b, mesh) for b in draw_batches(2, 2)]
    first, _ = run(state, rounds[0])
    return mesh, round_, state, run, first, rounds[1]


def test_the_state_keeps_its_place_and_gives_its_memory(trained):
    mesh, _, before, _, after, _ = trained
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before.params))
    placed = jax.tree.map(lambda leaf: leaf.sharding, before)
    assert jax.tree.map(lambda leaf: leaf.sharding, after) == placed
    specs = specs_of(mesh)
    for name, leaf in after.params.items():
        assert tuple(leaf.sharding.spec) == ("workers", *specs[name])
        assert after.opt_state[0].mu[name].sharding == leaf.sharding


def test_a_second_round_compiles_nothing(trained, caplog):
    *_, run, after, batches = trained
    copy = jax.tree.map(jnp.copy, after)  # run takes its memory
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        run(copy, batches)
    assert "Finished XLA compilation of jit(run)" not in caplog.text
    assert "Compiling jit(block)" not in caplog.text


def collectives(hlo):
    """Kind, groups and elements of every collective in a compiled program."""
    kinds = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "permute")
    return [
        (kind, replica_groups(line), line)
        for line in hlo.splitlines()
        for kind in kinds
        if f" {kind}(" in line or f" {kind}-start(" in line
    ]


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_each_device_sends_its_shards_and_no_leaf_is_gathered(streamed):
    mesh = mesh_of("2x4")
    round_ = make(cj.cocod("workers"), streamed)
    state = cj.replicate(round_.init(sharded(params(), mesh)), mesh=mesh)
    own = round_.of_shards(shards_of(state.params, "workers", of_all=True))

    def exchanged(state):
        one = jax.tree.map(lambda leaf: leaf[0], state)
        snapshot = own.snapshot(one)
        sent, _ = own.send(one)
        merged, _ = own.merge(one, snapshot, sent)
        return jax.tree.map(lambda leaf: leaf[None], merged.params)

    over = jax.shard_map(
        exchanged,
        mesh=mesh,
        in_specs=P("workers"),
        out_specs=P("workers"),
        axis_names={"workers"},
        check_vma=False,
    )
    found = collectives(jax.jit(over).lower(state).compile().as_text())
    ((kind, groups, line),) = found
    assert kind == "all-reduce"
    assert groups == ((0, 4), (1, 5), (2, 6), (3, 7))
    whole = params()
    each = sum(
        math.ceil(leaf.size / (4 if name in ("in", "out") else 1) / (PERIOD if streamed else 1))
        for name, leaf in whole.items()
    )
    assert f"f32[{each}]" in line


def test_the_consensus_and_the_state_stay_sharded(trained):
    mesh, _, _, _, after, _ = trained
    mean = cj.consensus(after)
    assert tuple(mean["in"].sharding.spec)[:1] == ("fsdp",)
    assert mean["in"].addressable_data(0).shape == (D // 4, H)


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_an_optimizer_in_a_users_own_shard_map(streamed):
    """With inner axes left to the compiler, the user says how they are shared."""
    mesh = mesh_of("2x4")
    rule = cj.rules.diloco("workers")
    optimizer = cj.every(
        PERIOD, optax.adam(0.05), rule, streamed=streamed, specs=specs_of(mesh)
    )

    @jax.jit
    @functools.partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=P("workers"),
        out_specs=P("workers"),
        axis_names={"workers"},
        check_vma=False,
    )
    def step(params, state, batch):
        params, state, batch = jax.tree.map(lambda x: x[0], (params, state, batch))
        gradient = jax.grad(loss)(params, batch)
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        return jax.tree.map(lambda x: x[None], (params, state))

    first = sharded(params(), mesh)
    carried = cj.replicate((first, optimizer.init(first)), mesh=mesh)
    (batches,) = draw_batches(2)
    for t in range(PERIOD):
        carried = step(*carried, on_mesh(batches[:, t : t + 1], mesh)[:, 0])
    round_ = make(rule, streamed)
    state = cj.replicate(round_.init(params()), 2)
    expected, _ = cj.distribute(round_)(state, batches)
    assert_close(carried[0], expected.params)


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_explicit_axes_within_a_worker(streamed):
    mesh = mesh_of("2x4", AxisType.Explicit)
    round_ = make(cj.rules.diloco("workers"), streamed, loss=explicit_loss)
    state = cj.replicate(round_.init(sharded(params(), mesh)), mesh=mesh)
    run = cj.distribute(round_, via="shard_map", mesh=mesh)
    (batches,) = draw_batches(2)
    after, _ = run(state, on_mesh(batches, mesh))
    plain = make(cj.rules.diloco("workers"), streamed)
    expected, _ = cj.distribute(plain)(
        cj.replicate(plain.init(params()), 2), batches
    )
    assert_close(after.params, expected.params)
    assert tuple(after.params["in"].sharding.spec)[:2] == ("workers", "fsdp")
