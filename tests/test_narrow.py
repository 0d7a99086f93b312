"""Few bits a number: what they hold, what they leave out, and what travels."""

import functools
import re
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

import cocod_jax as cj
from cocod_jax.certify import certify
from cocod_jax.exchanges import _codecs
from cocod_jax.exchanges._codecs import CODECS, Codec
from experiments import mesh_certificate
from tests import contract, merges, meshes, problems
from tests.marks import needs_compiler
from tests.problems import PERIOD, WEIGHTS, N
from tests.test_mesh_workers import of_one_device
from tests.test_per_step import over_mesh

LEVELS = {"int8": 127, "int4": 7}
BYTES = {"bf16": 2 * 8, "fp8": 8 + 4, "int8": 8 + 4, "int4": 4 + 4}  # of a block of 8
# The largest error, as a share of the block's largest number: half a step, and the
# rounding of the scale.
ERRORS = {"bf16": 2**-8, "fp8": 2**-4, "int8": 0.501 / 127, "int4": 0.501 / 7}


def narrow(numbers, block=8, weights=None):
    return cj.exchanges.narrow("workers", numbers, block=block, weights=weights)


def exchanging(exchange, mapped=jax.vmap):
    """``(state, tree) -> (mean, state)`` over all workers."""

    def one(state, tree):
        sent, state = exchange.send(state, tree, None)
        return exchange.receive(sent, tree), state

    return mapped(one, axis_name="workers")


def states(exchange, tree):
    """Of all workers, who had the mean of the tree in common at first."""
    first = jax.tree.map(lambda leaf: leaf.mean(axis=0), tree)
    return cj.replicate(exchange.init(first), N)


def rows(seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    draw = lambda leaf: rng.normal(size=(N, *leaf.shape)).astype(dtype)
    return jax.tree.map(draw, problems.params())


@functools.cache
def compiled(numbers):
    return tuple(map(jax.jit, CODECS[numbers]))


numbers_of_a_block = st.lists(st.floats(width=32), min_size=8, max_size=8)


@settings(max_examples=100, deadline=None)
@given(block=numbers_of_a_block)
@pytest.mark.parametrize("numbers", CODECS)
def test_a_block_is_rounded_in_proportion_to_its_largest(numbers, block):
    block = np.array(block, np.float32)
    encode, decode = compiled(numbers)
    encoded = encode(block)
    assert encoded.dtype == jnp.uint8
    assert encoded.shape == (BYTES[numbers],)
    decoded = np.asarray(decode(encoded), np.float64)
    if not np.isfinite(block).all():
        assert not np.isfinite(decoded[~np.isfinite(block)]).any()
        return
    largest = np.abs(block).max().astype(np.float64)
    # XLA's CPUs take subnormal numbers for zero; bfloat16 ends at 3.4e38.
    error = np.abs(decoded - block)
    close = error <= ERRORS[numbers] * largest + 1e-36
    assert np.all(close | (np.abs(block) > 3.38e38)), (block, decoded)


def test_pairs_of_integers_keep_their_signs():
    block = np.arange(-7, 9, dtype=np.float32).clip(-7, 7)
    decoded = CODECS["int4"].decode(CODECS["int4"].encode(jnp.array(block)))
    np.testing.assert_array_equal(decoded, block)


@pytest.mark.parametrize("mapped", [jax.vmap, jax.pmap, over_mesh])
@pytest.mark.parametrize("numbers", CODECS)
def test_an_average_needs_no_common_start(numbers, mapped):
    """Each worker has a tree of its own, and one exchange is all there is."""
    tree = rows()
    averaged = mapped(narrow(numbers).average, axis_name="workers")(tree)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(tree))
    # Each worker rounds its N-th, and the sum is rounded once more.
    error = 2 * ERRORS[numbers] * largest
    mean = jax.tree.map(lambda leaf: leaf.mean(axis=0), tree)
    chex.assert_trees_all_close(averaged, problems.stacked([mean] * N), atol=error)


@pytest.mark.parametrize("numbers", LEVELS)
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_the_mean_is_that_of_the_loop(numbers, weights):
    """In blocks of 2, of which each worker has a chunk of two."""
    with jax.enable_x64(True):
        exchange = narrow(numbers, 2, weights)
        tree = rows(dtype=np.float64)
        state = states(exchange, tree)
        first = jax.tree.map(lambda leaf: leaf.mean(axis=0), tree)
        loop = merges.NarrowMean(first, N, LEVELS[numbers], 2)
        exchanged = jax.jit(exchanging(exchange))
        for seed in range(5):
            tree = rows(seed, np.float64)
            mean, state = exchanged(state, tree)
            trees = [jax.tree.map(lambda x, i=i: x[i], tree) for i in range(N)]
            expected = loop(trees, problems.shares(weights))
            # Scales and sums are float32.
            chex.assert_trees_all_close(
                mean, problems.stacked([expected] * N), rtol=1e-5, atol=1e-6
            )


@pytest.mark.parametrize("numbers", CODECS)
def test_the_sum_of_all_means_is_off_by_the_last_errors(numbers):
    """Workers that stay where they are: the average finds their mean."""
    exchange, tree, rounds = narrow(numbers), rows(), 64
    state, total = states(exchange, jax.tree.map(np.zeros_like, tree)), 0.0
    exchanged = jax.jit(exchanging(exchange))
    for _ in range(rounds):
        mean, state = exchanged(state, tree)
        total = jax.tree.map(jnp.add, mean, total) if _ else mean
    average = jax.tree.map(lambda x: x[0] / rounds, total)
    expected = jax.tree.map(lambda x: x.mean(axis=0), tree)
    # Errors are below the largest difference, 4, of two roundings; float32 sums.
    bound = 2 * 4 * ERRORS[numbers] / rounds + 1e-5
    chex.assert_trees_all_close(average, expected, rtol=0, atol=bound)
    # What is left out is all that is missing.
    errors = state["float32"].error.sum(axis=0)
    missing = jax.flatten_util.ravel_pytree(
        jax.tree.map(lambda t, e: rounds * e - t[0], total, expected)
    )[0]
    np.testing.assert_allclose(errors, missing, atol=1e-4)


@pytest.mark.parametrize("numbers", CODECS)
def test_equal_workers_lose_nothing(numbers):
    """A trained model is not rounded to 4 bits by its first exchange."""
    exchange = narrow(numbers)
    one = problems.params()
    tree = problems.stacked([one] * N)
    mean, state = jax.jit(exchanging(exchange))(states(exchange, tree), tree)
    chex.assert_trees_all_equal(jax.tree.map(np.asarray, mean), tree)
    assert not state["float32"].error.any()


@pytest.mark.parametrize("numbers", CODECS)
def test_all_workers_have_the_same_bits(numbers):
    exchange = narrow(numbers, weights=WEIGHTS)
    tree = rows()
    exchanged = exchanging(exchange, jax.pmap)
    _, state = exchanged(states(exchange, tree), tree)
    mean, state = exchanged(state, tree)
    for leaf in jax.tree.leaves((mean, state["float32"].reference)):
        np.testing.assert_array_equal(leaf, np.broadcast_to(leaf[:1], leaf.shape))


WHOLE = Codec(
    lambda x: _codecs._as_bytes(x.astype(jnp.float32)),
    lambda raw: _codecs._from_bytes(raw, jnp.float32),
)


@pytest.mark.parametrize("block", [2, 4, 256])
def test_without_rounding_it_is_the_mean_to_the_bit(block, monkeypatch):
    """Of numbers and shares whose sums are exact in float32, in any order."""
    monkeypatch.setitem(CODECS, "bf16", WHOLE)
    exchange, rng = narrow("bf16", block, WEIGHTS), np.random.default_rng(0)
    draw = lambda leaf: rng.integers(-999, 999, (N, *leaf.shape)).astype(np.float32)
    trees = [jax.tree.map(draw, problems.params()) for _ in range(3)]
    exact = jax.vmap(cj.mean("workers", WEIGHTS).average, axis_name="workers")
    state = cj.replicate(exchange.init(jax.tree.map(np.round, problems.params())), N)
    exchanged = jax.jit(exchanging(exchange))
    for tree in trees:
        mean, state = exchanged(state, tree)
        chex.assert_trees_all_equal(mean, exact(tree))
        assert not state["float32"].error.any()


@pytest.mark.parametrize("numbers", CODECS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_spreads(numbers, value):
    """As in a mean, no worker goes on as if nothing had happened."""
    exchange, tree = narrow(numbers), rows()
    state = states(exchange, tree)
    tree["b"][2] = value
    mean, _ = jax.jit(exchanging(exchange))(state, tree)
    assert not np.isfinite(mean["b"]).any()


@pytest.mark.parametrize("numbers", CODECS)
def test_bytes_travel(numbers):
    """Of N chunks of one block, and of one chunk."""
    exchange, size = narrow(numbers), N * 8
    tree = np.zeros([N, size], np.float32)
    exchanged = exchanging(exchange, jax.pmap)
    lowered = jax.jit(exchanged).lower(states(exchange, tree), tree)
    hlo = lowered.compile().as_text()
    assert hlo is not None
    found = re.findall(r"= (\(?\w+\[[^=]*?) (all-to-all|all-gather)\(", hlo)
    assert {kind for _, kind in found} == {"all-to-all", "all-gather"}
    assert all(set(re.findall(r"(\w+)\[", shape)) == {"u8"} for shape, _ in found)
    round_ = cj.make_round(
        lambda w, b: (w * b).sum(), optax.sgd(0.1), cj.cocod(exchange), period=2
    )
    state = cj.replicate(round_.init(jnp.zeros(size)), N)
    assert cj.summary(round_, state).sent_bytes == {"uint8": BYTES[numbers] * (N + 1)}


@pytest.mark.parametrize("numbers", ["fp8", "int4"])
@pytest.mark.parametrize("streamed", [False, True])
def test_it_trains_as_well(numbers, streamed, monkeypatch):
    """The mean of the workers ends where that of an exact exchange does."""
    coded, mean = narrow(numbers), cj.mean("workers")
    if streamed:  # what is exact is merged as late
        monkeypatch.setitem(CODECS, "bf16", WHOLE)
        mean = narrow("bf16")

    def train(exchange):
        round_ = cj.make_round(
            problems.loss,
            optax.sgd(0.05, momentum=0.5),
            cj.cocod(exchange),
            period=PERIOD,
            streamed=streamed,
        )
        run = cj.distribute(round_, via="vmap")
        state = cj.replicate(round_.init(problems.params()), N)
        batches = problems.round_batches(problems.batches(), 0)
        for _ in range(60):
            state, metrics = run(state, batches)
        return cj.consensus(state), metrics.loss.mean()

    (coded, loss), (exact, least) = train(coded), train(mean)
    # Both have converged: what is rounded, the way of a round, is the same each time.
    chex.assert_trees_all_close(coded, exact, rtol=0.05, atol=0.05)
    np.testing.assert_allclose(loss, least, rtol=0.02)


def test_a_streamed_round_begins_with_nothing_to_merge():
    """Its first step only sends; also that of a state for fewer workers."""
    rule = contract.overwriting(narrow("int8"))
    loss = lambda w, batch: (w * batch).sum()
    inner = optax.sgd(1.0)
    round_ = cj.make_round(loss, inner, rule, period=2, streamed=True)
    run = cj.distribute(round_, via="vmap")
    state = cj.replicate(round_.init(jnp.ones(4)), N)
    for workers in (N, N - 1):
        state, begun_anew = cj.workers.resize(state, round_, workers)
        assert "exchange_state.filled" in begun_anew
        start = np.asarray(state.params)
        state, metrics = run(state, jnp.full([workers, 2, 4], 0.25))
        # Workers are equal: what the first piece sent is what arrives.
        np.testing.assert_array_equal(state.params, start - [0, 0, 0.5, 0.5])
        np.testing.assert_allclose(metrics.progress_norm, [[0, 0.5 * 2**0.5]] * workers)
        assert not metrics.distance.any()


@needs_compiler
@pytest.mark.parametrize("numbers", CODECS)
def test_both_collectives_are_hidden(numbers):
    period, width = 8, 64
    loss = lambda w, batch: jnp.mean((jnp.tanh(batch @ w) - batch) ** 2)
    round_ = cj.make_round(
        loss, optax.sgd(0.1, momentum=0.9), cj.cocod(narrow(numbers)), period=period
    )
    init = lambda: cj.replicate(round_.init(jnp.ones([width, width])), N)
    batches = jax.ShapeDtypeStruct((N, period, 16, width), jnp.float32)
    certificate = certify(round_, jax.eval_shape(init), batches, target="h100").check()
    to_all, gather = certificate.schedule.collectives
    assert (to_all.kind, gather.kind) == ("all-to-all", "all-gather")
    assert to_all.steps == gather.steps == period / 2
    # What a worker receives: all chunks, or its own from all.
    assert to_all.dtype == gather.dtype == "u8"
    assert to_all.bytes == gather.bytes == width**2 // 8 * BYTES[numbers]


def test_what_is_refused():
    make: Any = cj.exchanges.narrow
    with pytest.raises(TypeError, match=r"axis_name=\('a', 'b'\) must be a string"):
        make(("a", "b"), "int8")
    with pytest.raises(ValueError, match="numbers='int2' must be one of bf16, fp8"):
        make("workers", "int2")
    with pytest.raises(ValueError, match="block=3 must be an even number"):
        cj.exchanges.narrow("workers", "int8", block=3)
    with pytest.raises(ValueError, match="block=0 must be an integer of at least 1"):
        cj.exchanges.narrow("workers", "int8", block=0)
    with pytest.raises(ValueError, match="dtype complex64 is to be sent in int8"):
        narrow("int8").init(jnp.ones(3, jnp.complex64))
    streamed = functools.partial(
        cj.every, inner=optax.sgd(1.0), rule=cj.cocod(narrow("int8")), streamed=True
    )
    with pytest.raises(ValueError, match="period=1, but streamed, a piece"):
        streamed(1)
    with pytest.raises(ValueError, match=r"delay=1, .* merged after two steps"):
        streamed(2, delay=1)


def on_a_mesh(rule, streamed):
    """A mesh, a round, the state that it begins with, and what runs it."""
    mesh, round_ = meshes.mesh_of("2x4"), meshes.make(rule, streamed)
    first = meshes.sharded(meshes.params(), mesh)
    state = cj.replicate(round_.init(first), mesh=mesh)
    return mesh, round_, state, cj.distribute(round_, via="shard_map", mesh=mesh)


@pytest.mark.parametrize("streamed", [False, True])
def test_workers_of_several_devices_have_the_numbers_of_one(streamed, monkeypatch):
    """Without rounding: with it, blocks have other neighbours on one device."""
    monkeypatch.setitem(CODECS, "bf16", WHOLE)
    rule = cj.rules.diloco(narrow("bf16"))
    mesh, _, state, run = on_a_mesh(rule, streamed)
    rounds = meshes.draw_batches(2, 3)
    expected, _ = of_one_device(rule, streamed, mesh, rounds)
    state, _ = meshes.train(run, state, [meshes.on_mesh(b, mesh) for b in rounds])
    meshes.assert_close(state.params, expected)


@pytest.mark.parametrize("streamed", [False, True])
def test_the_devices_of_a_worker_agree_on_what_they_all_have(streamed):
    mesh, round_, state, run = on_a_mesh(cj.cocod(narrow("int4", 64)), streamed)
    # A device has 24 numbers that all have, 96 and 24 for itself, and 1 that all have,
    # or a fourth of each. Each leaf begins a block; each worker's chunk is a half.
    blocks = 1 + 1 + 1 + 1 if streamed else 1 + 2 + 1 + 1 + 1
    sent = cj.summary(round_, state).sent_bytes
    assert sent == {"uint8": (64 // 2 + 4) * (blocks + blocks // 2)}
    rng = np.random.default_rng(0)
    apart = lambda x: x + rng.normal(size=x.shape).astype(np.float32)
    moved = lambda x: jax.device_put(apart(np.asarray(x)), x.sharding)
    state = state._replace(params=jax.tree.map(moved, state.params))
    (batches,) = meshes.draw_batches(2)
    state, _ = run(state, meshes.on_mesh(batches, mesh))
    for name in ("bias", "scale"):
        for shard in state.params[name].addressable_shards:
            own = np.asarray(state.params[name])[shard.index]
            np.testing.assert_array_equal(shard.data, own)


@needs_compiler
def test_both_collectives_are_hidden_beside_steps_that_communicate():
    mesh, width = meshes.mesh_of("2x4"), 256
    round_ = cj.make_round(
        mesh_certificate.loss_fn,
        mesh_certificate.ADAMW,
        cj.cocod(narrow("int8", 256)),
        period=2,
        streamed=True,
    )
    blocks = [(np.ones([width, 4 * width]), np.ones([4 * width, width]))] * 2
    params = jax.tree.map(np.float32, blocks)
    shared = jax.device_put(params, NamedSharding(mesh, PartitionSpec("fsdp")))
    state = cj.replicate(round_.init(shared), mesh=mesh)
    batches = jax.ShapeDtypeStruct(
        (2, 2, 4096, width),
        jnp.float32,
        sharding=NamedSharding(mesh, PartitionSpec("workers", None, "fsdp")),
    )
    certificate = certify(
        round_,
        state,
        batches,
        target="h100",
        hosts=2,
        compiler_options=cj.compiler_options("gpu"),
    ).check()
    sent = certificate.schedule.collectives
    assert {c.kind for c in sent} == {"all-to-all", "all-gather"}
    # Half of the parameters, a fourth of which each device has.
    assert {c.bytes for c in sent} == {4 * width**2 * 4 // 2 // 4 * 260 // 256}
    assert min(c.beside.work for c in sent) > 0.9
