"""Workers of several devices have the numbers of workers of one, and gather nothing.

Sums over a worker's devices have another order than sums on one device, so that
float32 numbers agree to a few units in the last place after every step.
"""

import functools
import itertools
import logging
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding

import cocod_jax as cj
from cocod_jax.certify import certify
from cocod_jax.certify._hlo import replica_groups
from cocod_jax.exchanges._shards import shards_of
from experiments import mesh_certificate
from tests.marks import needs_compiler
from tests.meshes import (
    BATCH,
    MESHES,
    PERIOD,
    RULES,
    D,
    H,
    P,
    assert_close,
    draw_batches,
    explicit_loss,
    loss,
    make,
    mesh_of,
    on_mesh,
    params,
    sharded,
    specs_of,
    train,
)


def split(tree, mesh):
    """A worker's parameters with a leaf for what each of its devices has."""

    def parts(leaf, spec):
        blocks = [leaf]
        for axis, name in enumerate(spec):
            count = 1 if name is None else mesh.shape[name]
            blocks = [b for block in blocks for b in np.split(block, count, axis)]
        return blocks

    return {name: parts(tree[name], spec) for name, spec in specs_of(mesh).items()}


def join(tree, mesh):
    """The inverse of ``split``."""

    def whole(blocks, spec):
        for axis, name in reversed(list(enumerate(spec))):
            count = 1 if name is None else mesh.shape[name]
            groups = [blocks[i : i + count] for i in range(0, len(blocks), count)]
            blocks = [jnp.concatenate(group, axis) for group in groups]
        return blocks[0]

    return {name: whole(tree[name], spec) for name, spec in specs_of(mesh).items()}


def of_one_device(rule, streamed, mesh, rounds):
    """Parameters and metrics of workers of one device, after the same rounds.

    Streamed, a piece is a k-th of what each device has. A leaf for each of these has
    the same pieces on one device.
    """
    workers = mesh.shape["workers"]
    if not streamed:
        round_, first = make(rule), params()
        joined = lambda tree: tree
    else:
        joined = functools.partial(join, mesh=mesh)
        round_ = make(rule, True, lambda p, batch: loss(joined(p), batch))
        first = split(params(), mesh)
    state = cj.replicate(round_.init(first), workers)
    state, metrics = train(cj.distribute(round_), state, rounds)
    return jax.vmap(joined)(state.params), metrics


QUICK = [("2x4", "diloco"), ("2x2x2", "vrl_sgd")]
CASES = [
    pytest.param(*case, marks=[] if case in QUICK else [pytest.mark.matrix])
    for case in itertools.product(MESHES, RULES)
]


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(("name", "rule"), CASES)
def test_the_numbers_are_those_of_workers_of_one_device(name, rule, streamed):
    mesh, rule = mesh_of(name), RULES[rule]()
    workers = mesh.shape["workers"]
    rounds = draw_batches(workers, 3)
    expected, expected_metrics = of_one_device(rule, streamed, mesh, rounds)
    round_ = make(rule, streamed)
    state = cj.replicate(round_.init(sharded(params(), mesh)), mesh=mesh)
    run = cj.distribute(round_, via="shard_map", mesh=mesh)
    state, metrics = train(run, state, [on_mesh(b, mesh) for b in rounds])
    assert_close(state.params, expected)
    # The norm of a piece counts what devices have in common for each of them.
    names = ("loss", "grad_norm") if streamed else cj.RoundMetrics._fields
    for field in names:
        own, other = getattr(metrics, field), getattr(expected_metrics, field)
        assert_close(own, other, rtol=1e-4, atol=1e-5)
    mean = jax.tree.map(lambda leaf: leaf.mean(axis=0), expected)
    assert_close(cj.consensus(state), mean)


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
        assert after.opt_state[0].trace[name].sharding == leaf.sharding


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
    own = round_.over(shards_of(state.params, "workers", of_all=True))

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
    assert groups == [[0, 4], [1, 5], [2, 6], [3, 7]]
    whole = params()
    each = sum(
        math.ceil(
            leaf.size
            / (4 if name in ("in", "out") else 1)
            / (PERIOD if streamed else 1)
        )
        for name, leaf in whole.items()
    )
    assert f"f32[{each}]" in line


def test_the_consensus_and_the_state_stay_sharded(trained):
    *_, after, _ = trained
    mean = cj.consensus(after)
    assert tuple(mean["in"].sharding.spec)[:1] == ("fsdp",)
    assert mean["in"].addressable_data(0).shape == (D // 4, H)


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_an_optimizer_in_a_users_own_shard_map(streamed):
    """With inner axes left to the compiler, the user says how they are shared."""
    mesh = mesh_of("2x4")
    rule = cj.rules.diloco("workers")
    optimizer = cj.every(
        PERIOD,
        optax.sgd(0.05, momentum=0.9),
        rule,
        streamed=streamed,
        specs=specs_of(mesh),
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
    expected, _ = of_one_device(rule, streamed, mesh, batches[None])
    assert_close(carried[0], expected)


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_explicit_axes_within_a_worker(streamed):
    mesh = mesh_of("2x4", AxisType.Explicit)
    round_ = make(cj.rules.diloco("workers"), streamed, loss=explicit_loss)
    state = cj.replicate(round_.init(sharded(params(), mesh)), mesh=mesh)
    run = cj.distribute(round_, via="shard_map", mesh=mesh)
    (batches,) = draw_batches(2)
    after, _ = run(state, on_mesh(batches, mesh))
    rule = cj.rules.diloco("workers")
    expected, _ = of_one_device(rule, streamed, mesh, batches[None])
    assert_close(after.params, expected)
    assert tuple(after.params["in"].sharding.spec)[:2] == ("workers", "fsdp")
    mean = jax.tree.map(lambda leaf: leaf.mean(axis=0), expected)
    assert_close(cj.consensus(after), mean)


def test_the_summary_and_the_data_flow_are_those_of_a_device(trained):
    _, round_, *_, after, _ = trained
    found = cj.summary(round_, after)
    shares = {"in": 4, "out": 4, "bias": 1, "scale": 1}
    pieces = PERIOD if round_.streamed else 1
    each = sum(
        math.ceil(leaf.size // shares[name] / pieces) for name, leaf in params().items()
    )
    assert found.sent_bytes == {"float32": 4 * each}
    assert (found.workers, found.devices) == (2, 4)
    assert "Each device sends" in str(found)


def test_workers_of_unequal_speed_on_a_mesh():
    mesh = mesh_of("2x4")
    rng = np.random.default_rng(3)
    data = rng.normal(size=(2, PERIOD, 3, BATCH, D)).astype(np.float32)
    batches = cj.MicroBatches(data, np.array([[1] * PERIOD, [3] * PERIOD], np.int32))
    placed = cj.MicroBatches(
        jax.device_put(data, NamedSharding(mesh, P("workers", None, None, "fsdp"))),
        batches.count,
    )
    round_ = make(cj.cocod("workers", weights=(1, 3)))
    one = cj.replicate(round_.init(params()), 2)
    expected, _ = cj.distribute(round_)(one, batches)
    state = cj.replicate(round_.init(sharded(params(), mesh)), mesh=mesh)
    after, _ = cj.distribute(round_, via="shard_map", mesh=mesh)(state, placed)
    assert_close(after.params, expected.params)
    assert_close(cj.consensus(after), cj.consensus(expected))


def test_only_what_is_trained_is_sent_and_other_leaves_stay_shared():
    mesh = mesh_of("2x4")
    train_out = {"in": False, "bias": False, "out": True, "scale": False}
    round_ = make(cj.cocod("workers"), streamed=True, trainable=train_out)
    state = cj.replicate(round_.init(sharded(params(), mesh)), mesh=mesh)
    assert cj.summary(round_, state).sent_bytes == {"float32": 4 * H * 4 // 4 // PERIOD}
    run = cj.distribute(round_, via="shard_map", mesh=mesh)
    (batches,) = draw_batches(2)
    after, _ = run(state, on_mesh(batches, mesh))
    np.testing.assert_array_equal(after.params["in"][1], params()["in"])
    assert (np.asarray(after.params["out"][0]) != params()["out"]).any()
    assert tuple(after.params["in"].sharding.spec) == ("workers", "fsdp", None)


class Network(nnx.Module):
    """Two layers that say themselves how their kernels are shared."""

    def __init__(self, rngs):
        kernel = nnx.with_partitioning(nnx.initializers.lecun_normal(), ("fsdp", None))
        self.first = nnx.Linear(D, H, kernel_init=kernel, rngs=rngs)
        self.second = nnx.Linear(H, 4, kernel_init=kernel, rngs=rngs)

    def __call__(self, x):
        return self.second(nnx.tanh(self.first(x)))


def test_a_flax_network_that_says_how_it_is_shared():
    mesh = mesh_of("2x4")
    with jax.set_mesh(mesh):
        graph, values = nnx.split(Network(nnx.Rngs(0)), nnx.Param)
        specs = nnx.get_partition_spec(values)
    values = jax.tree.map(
        lambda leaf, spec: jax.device_put(leaf, NamedSharding(mesh, spec)),
        nnx.as_pure(values),
        nnx.as_pure(specs),
    )

    def network_loss(values, batch):
        return jnp.mean((nnx.merge(graph, values)(batch) - 1) ** 2)

    round_ = make(cj.cocod("workers"), streamed=True, loss=network_loss)
    state = cj.replicate(round_.init(values), mesh=mesh)
    run = cj.distribute(round_, via="shard_map", mesh=mesh)
    losses = []
    for _ in range(5):
        state, metrics = run(state, on_mesh(draw_batches(2)[0], mesh))
        losses.append(float(metrics.loss.mean()))
    assert losses[-1] < losses[0] / 2
    assert tuple(state.params["first"]["kernel"].sharding.spec)[:2] == (
        "workers",
        "fsdp",
    )


def bad(round_, state, mesh):
    other = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    over = functools.partial(cj.distribute, round_)
    on_workers = NamedSharding(mesh, P("workers"))
    no_mesh: Any = (2, 4)
    return {
        "none of them is 'workers'": lambda: over(via="shard_map", mesh=other),
        "mesh belongs to via='shard_map'": lambda: over(mesh=mesh),
        "leave execution out": lambda: over(
            via="shard_map", mesh=mesh, execution="split"
        ),
        "devices were given beside a mesh": lambda: over(
            via="shard_map", mesh=mesh, devices=jax.devices()
        ),
        "must be a jax.sharding.Mesh": lambda: over(via="shard_map", mesh=no_mesh),
        "workers=3, but axis 'workers'": lambda: cj.replicate(state, 3, mesh=mesh),
        "workers is missing": lambda: cj.replicate(state),
        "is sharded over 'workers'": lambda: cj.replicate(
            jax.device_put(np.zeros(8), on_workers), mesh=mesh
        ),
    }


@pytest.mark.parametrize(
    "message",
    [
        "none of them is 'workers'",
        "mesh belongs to via='shard_map'",
        "leave execution out",
        "devices were given beside a mesh",
        "must be a jax.sharding.Mesh",
        "workers=3, but axis 'workers'",
        "workers is missing",
        "is sharded over 'workers'",
    ],
)
def test_what_a_mesh_cannot_do_is_said(message):
    mesh = mesh_of("2x4")
    round_ = make(cj.cocod("workers"))
    calls = bad(round_, round_.init(params()), mesh)
    with pytest.raises((ValueError, TypeError), match=message):
        calls[message]()


def test_a_rule_that_sends_something_else_is_refused():
    mesh = mesh_of("2x4")
    rule = cj.MergeRule(
        cj.mean("workers"),
        lambda arriving, params, state, snapshot: (arriving["own"], state),
        outgoing=lambda state, snapshot: {"own": snapshot},
    )
    with pytest.raises(ValueError, match=r"\['own'\]\['bias'\].*none of the param"):
        make(rule).init(sharded(params(), mesh))
    with pytest.raises(ValueError, match=r"\['float32'\].*none of the param"):
        make(cj.rules.loscar("workers", 0.1)).init(sharded(params(), mesh))


@needs_compiler
@pytest.mark.parametrize("name", ["round, streamed", "every, streamed"])
def test_streamed_workers_are_hidden_beside_steps_that_communicate(name):
    fn, args = mesh_certificate.PROGRAMS[name](4096)
    options = mesh_certificate.OPTIONS["early start"]
    found = certify(fn, *args, target="h100", hosts=2, compiler_options=options)
    (exchange,) = found.schedule.collectives
    assert exchange.beside.work > 0.9
    assert not found.reasons
    assert {c.place for c in found.schedule.inside_workers}
    late = certify(fn, *args, target="h100", hosts=2)
    assert [r.id for r in late.reasons] == ["starts-late"]


def test_a_state_that_was_made_while_jax_traced_is_refused():
    """Its rows would have the right shapes and belong to other numbers."""
    mesh = mesh_of("2x4")
    rule = cj.rules.easgd("workers")
    first = sharded({"w": params()["in"]}, mesh, {"w": P("fsdp")})
    round_ = make(rule, streamed=True, loss=lambda p, batch: jnp.sum(p["w"] ** 2))
    run = cj.distribute(round_, via="shard_map", mesh=mesh)
    (batches,) = draw_batches(2)
    run(cj.replicate(round_.init(first), mesh=mesh), batches)
    traced = cj.replicate(jax.jit(round_.init)(first), mesh=mesh)
    with pytest.raises(ValueError, match=r"round_.init\(params\) outside of jax.jit"):
        run(traced, batches)
    optimizer = cj.every(4, optax.sgd(0.1), rule, streamed=True, specs=P("fsdp"))
    with pytest.raises(ValueError, match=r"init outside of jax\.jit and jax\.vmap"):
        jax.jit(optimizer.init)(first)


def test_a_replaced_rule_is_the_one_that_runs():
    mesh = mesh_of("2x4")
    round_ = make(cj.rules.diloco("workers"))._replace(rule=cj.cocod("workers"))
    state = cj.replicate(
        make(cj.cocod("workers")).init(sharded(params(), mesh)), mesh=mesh
    )
    rounds = draw_batches(2)
    after, _ = cj.distribute(round_, via="shard_map", mesh=mesh)(state, rounds[0])
    expected, _ = of_one_device(cj.cocod("workers"), False, mesh, rounds)
    assert_close(after.params, expected)


def test_a_state_of_the_wrong_place_is_moved_to_its_workers():
    """One made without the mesh, of parameters that are on it."""
    mesh = mesh_of("2x4")
    round_ = make(cj.cocod("workers"))
    state = cj.replicate(round_.init(sharded(params(), mesh)), 2)
    run = cj.distribute(round_, via="shard_map", mesh=mesh)
    after, _ = run(state, draw_batches(2)[0])
    for leaf in jax.tree.leaves(after):
        assert leaf.sharding.spec[:1] == ("workers",)


def test_what_does_not_run_on_a_mesh_says_so(trained):
    mesh, round_, _, run, after, batches = trained
    with pytest.raises(ValueError, match="cannot be traced"):
        jax.eval_shape(run, after, batches)
    with pytest.raises(ValueError, match="times workers of one device each"):
        cj.measure(round_, after, batches)
    on_workers = jax.device_put(
        np.zeros([2, 3], np.float32), NamedSharding(mesh, P("workers"))
    )
    with pytest.raises(ValueError, match="shared over 'workers'"):
        round_.init({"w": on_workers})
