"""Workers that hear of some of the others: of neighbours, or of their own group."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cocod_jax as cj
from cocod_jax.certify import certify
from tests import meshes, problems
from tests.marks import needs_compiler
from tests.problems import N

LAZY = np.array([[2, 2, 0, 0], [2, 1, 1, 0], [0, 1, 2, 1], [0, 0, 1, 3]]) / 4
GROUPS = np.kron(np.eye(2), np.full((2, 2), 0.5))


def matrix_of(graph, workers):
    """The weights of a graph that has a name."""
    ahead = {"ring": [-1, 1], "exponential": [1, 2, 4, 8, 16]}[graph]
    heard = np.eye(workers, dtype=bool)
    for i in range(workers):
        for d in ahead:
            if abs(d) < workers:
                heard[i, (i + d) % workers] = True
    return heard / heard.sum(axis=1, keepdims=True)


def gossip(graph):
    return cj.exchanges.gossip("workers", graph)


def average(exchange, tree, mapped=jax.vmap):
    return mapped(exchange.average, axis_name="workers")(tree)


def rows(workers, seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda leaf: rng.normal(size=(workers, *leaf.shape))
    return jax.tree.map(draw, problems.params())


def by_matrix(matrix, tree):
    return jax.tree.map(lambda x: np.tensordot(matrix, x, axes=1), tree)


@pytest.mark.parametrize("workers", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("graph", ["ring", "exponential"])
def test_graphs_with_a_name_are_their_matrices(graph, workers):
    matrix = matrix_of(graph, workers)
    np.testing.assert_allclose(matrix.sum(axis=0), 1)
    with jax.enable_x64(True):
        tree = rows(workers)
        for exchange in (gossip(graph), gossip(matrix)):
            chex.assert_trees_all_close(
                average(exchange, tree), by_matrix(matrix, tree), rtol=1e-10, atol=1e-12
            )


@pytest.mark.parametrize("mapped", [jax.vmap, jax.pmap])
@pytest.mark.parametrize("graph", [LAZY, GROUPS, np.roll(np.eye(N), 1, axis=1)])
def test_any_matrix_is_applied_row_by_row(graph, mapped):
    tree = rows(N)
    chex.assert_trees_all_close(
        average(gossip(graph), tree, mapped),
        by_matrix(np.array(graph), tree),
        rtol=1e-5,
        atol=1e-6,
    )


@settings(max_examples=20, deadline=None)
@given(
    orders=st.lists(st.permutations(range(N)), min_size=1, max_size=4),
    shares=st.lists(st.integers(1, 9), min_size=4, max_size=4),
)
def test_the_mean_is_kept_by_every_mixture_of_permutations(orders, shares):
    """Birkhoff: all doubly stochastic matrices are such mixtures."""
    shares = np.array(shares[: len(orders)]) / sum(shares[: len(orders)])
    permutations = [np.eye(N)[list(order)] for order in orders]
    matrix = np.tensordot(shares, permutations, axes=1)
    x = np.arange(N, dtype=np.float32) ** 2
    result = average(gossip(matrix), x)
    np.testing.assert_allclose(result.mean(), x.mean(), rtol=1e-6)
    # A float32 sum of differences up to 9.
    np.testing.assert_allclose(result, matrix @ x, atol=1e-5)


def test_equal_workers_stay_equal_in_every_bit():
    tree = problems.stacked([problems.params()] * N)
    chex.assert_trees_all_equal(
        jax.tree.map(np.asarray, average(gossip(LAZY), tree)), tree
    )


def trained(rule, **way):
    round_ = cj.make_round(problems.loss, optax.sgd(0.05), rule, period=2)
    state = cj.replicate(round_.init(problems.params()), N)
    run = cj.distribute(round_, **way)
    for r in range(3):
        state, _ = run(state, problems.round_batches(problems.batches(), r, 2))
    return state


def test_all_with_equal_weights_is_the_mean():
    complete = gossip(np.full((N, N), 1 / N))
    chex.assert_trees_all_close(
        trained(cj.cocod(complete)).params,
        trained(cj.cocod("workers")).params,
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.parametrize(
    "way", [{"execution": "split"}, {"via": "shard_map"}, {"via": "vmap"}]
)
def test_workers_agree_in_the_long_run(way):
    """Merges without steps: the mean stays, and the rest dies out."""
    rule, still = cj.cocod(gossip("ring")), optax.set_to_zero()
    round_ = cj.make_round(problems.loss, still, rule, period=1)
    tree = jax.tree.map(lambda x: x.astype(np.float32), rows(N))
    state = cj.replicate(round_.init(problems.params()), N)._replace(params=tree)
    run, batches = cj.distribute(round_, **way), problems.batches(steps=1)
    for _ in range(30):  # 1/3 of the differences stays, each time
        state, _ = run(state, batches)
    expected = jax.tree.map(lambda x: np.broadcast_to(x.mean(axis=0), x.shape), tree)
    chex.assert_trees_all_close(state.params, expected, rtol=1e-5, atol=1e-6)


def test_narrow_numbers_are_averaged_in_float32_and_others_stay():
    tree = {"x": jnp.array([256, 1, 1, 2], jnp.bfloat16), "n": jnp.arange(N)}
    result = average(gossip(np.full((N, N), 1 / N)), tree)
    np.testing.assert_array_equal(result["n"], tree["n"])
    assert result["x"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(result["x"].astype(jnp.float32), 65)


@needs_compiler
@pytest.mark.parametrize("streamed", [False, True])
def test_four_permutations_are_in_flight_together(streamed):
    period, width, workers = 4, 64, 16
    loss = lambda w, batch: jnp.mean((jnp.tanh(batch @ w) @ w - batch) ** 2)
    round_ = cj.make_round(
        loss,
        optax.sgd(0.1, momentum=0.9),
        cj.cocod(gossip("exponential")),
        period=period,
        streamed=streamed,
    )
    init = lambda: cj.replicate(round_.init(jnp.ones([width, width])), workers)
    state = jax.eval_shape(init)
    batches = jax.ShapeDtypeStruct((workers, period, 64, width), jnp.float32)
    options = cj.compiler_options("gpu")
    certificate = certify(
        round_, state, batches, target="h100", hosts=2, compiler_options=options
    ).check()
    found = certificate.schedule.collectives
    assert [c.kind for c in found] == ["collective-permute"] * 4
    size = 4 * width**2 // (period if streamed else 1)
    assert cj.summary(round_, state).sent_bytes == {"float32": 4 * size}


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        ("star", "graph='star' must be one of ring, exponential, or a matrix"),
        ([[1, 0], [1, 0]], r"column 0 of graph has the sum 2: \[1.0, 1.0\]"),
        ([[0.5, 0.4], [0.5, 0.6]], r"row 0 of graph has the sum 0.9"),
        ([[1.5, -0.5], [-0.5, 1.5]], r"row 0 of graph has the sum 1: \[1.5, -0.5\]"),
        ([[np.nan]], "row 0 of graph has the sum nan"),
        ([[1, 0]], "must be a square matrix"),
        ([[1], [0, 1]], "must be a square matrix"),
        ([], "must be a square matrix"),
        (3, "graph=3 must be a square matrix"),
    ],
)
def test_what_is_no_graph_is_refused(graph, message):
    with pytest.raises(ValueError, match=message):
        gossip(graph)


def test_a_matrix_has_a_row_for_each_worker():
    with pytest.raises(ValueError, match="graph has 4 rows, but axis 'workers' has 3"):
        average(gossip(LAZY), np.zeros(3))


def test_one_axis():
    make: Any = cj.exchanges.gossip
    with pytest.raises(TypeError, match=r"axis_name=\('a', 'b'\) must be a string"):
        make(("a", "b"), "ring")
    within: Any = cj.exchanges.within
    with pytest.raises(TypeError, match="axis_name=3 must be a string"):
        within(3, 2)


@pytest.mark.parametrize("mapped", [jax.vmap, jax.pmap])
def test_within_a_group_all_take_its_mean(mapped):
    tree = rows(N)
    for size, matrix in ((2, GROUPS), (1, np.eye(N)), (N, np.full((N, N), 1 / N))):
        chex.assert_trees_all_close(
            average(cj.exchanges.within("workers", size), tree, mapped),
            by_matrix(matrix, tree),
            rtol=1e-5,
            atol=1e-6,
        )


def test_workers_of_a_group_count_by_their_weights():
    tree, weights = rows(N), jnp.array([1.0, 3, 2, 0]) / 6
    matrix = np.kron(np.eye(2), np.ones((2, 2))) * np.asarray(weights)
    matrix /= matrix.sum(axis=1, keepdims=True)
    exchange = cj.exchanges.within("workers", 2)
    averaged = jax.vmap(exchange.average, axis_name="workers")
    chex.assert_trees_all_close(
        averaged(tree, weights), by_matrix(matrix, tree), rtol=1e-5, atol=1e-6
    )
    # A group that is away altogether keeps what it has.
    whole = jax.tree.map(lambda x: x.astype(np.float32), tree)
    away = averaged(whole, jnp.array([0.5, 0.5, 0, 0]))
    second = lambda tree: jax.tree.map(lambda x: np.asarray(x[2:]), tree)
    chex.assert_trees_all_equal(second(away), second(whole))
    constructed = cj.exchanges.within("workers", 2, (1, 3, 2, 2))
    assert constructed.weights == (1 / 8, 3 / 8, 2 / 8, 2 / 8)


def test_a_group_is_one_all_reduce():
    exchange = cj.exchanges.within("workers", 2)
    over_workers = jax.pmap(exchange.average, axis_name="workers")
    hlo: Any = jax.jit(over_workers).lower(np.zeros([N, 5], np.float32)).compile()
    assert hlo.as_text().count(" all-reduce(") == 1
    assert "replica_groups={{0,1},{2,3}}" in hlo.as_text()


@pytest.mark.parametrize(
    "way",
    [
        {"execution": "split"},
        {"via": "shard_map", "check_vma": False},
        {"via": "vmap"},
    ],
)
def test_groups_train_as_two_runs_would(way):
    state = trained(cj.cocod(cj.exchanges.within("workers", 2)), **way)
    alone = cj.make_round(problems.loss, optax.sgd(0.05), cj.cocod("workers"), period=2)
    run = cj.distribute(alone, via="vmap")
    for group in (slice(0, 2), slice(2, 4)):
        own = cj.replicate(alone.init(problems.params()), 2)
        for r in range(3):
            batches = problems.round_batches(problems.batches(), r, 2)
            own, _ = run(own, jax.tree.map(lambda x, g=group: x[g], batches))
        of_group = jax.tree.map(lambda x, g=group: x[g], state.params)
        chex.assert_trees_all_close(of_group, own.params, rtol=1e-5, atol=1e-6)


NEAR = cj.cocod(cj.exchanges.within("workers", 2))
IN_LOOPS: dict[str, Any] = {
    "streamed": (optax.sgd(0.05), NEAR, True),
    "every": (cj.every(2, optax.sgd(0.05), NEAR, delay=1), cj.independent(), False),
    "gradients": (
        optax.chain(cj.mean_gradients(NEAR.exchange), optax.sgd(0.05)),
        cj.cocod("workers"),
        False,
    ),
}


@pytest.mark.parametrize("name", IN_LOOPS)
def test_groups_are_simulated_in_loops_and_branches_too(name):
    """There JAX traces their sums before it knows of vmap."""
    optimizer, rule, streamed = IN_LOOPS[name]
    round_ = cj.make_round(problems.loss, optimizer, rule, period=2, streamed=streamed)
    reached = []
    for via in ("vmap", "pmap"):
        state = cj.replicate(round_.init(problems.params()), N)
        run = cj.distribute(round_, via=via)
        for r in range(3):
            batches = problems.round_batches(problems.batches(), r, 2)
            state, _ = run(state, batches)
        reached.append(jax.tree.map(np.asarray, state.params))
    chex.assert_trees_all_close(*reached, rtol=1e-5, atol=1e-6)


def test_groups_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="size=3, but axis 'workers' has 4 workers"):
        average(cj.exchanges.within("workers", 3), np.zeros(N))
    with pytest.raises(ValueError, match="size=0 must be an integer of at least 1"):
        cj.exchanges.within("workers", 0)
    with pytest.raises(ValueError, match=r"turn the check off: cj\.distribute"):
        trained(cj.cocod(cj.exchanges.within("workers", 2)), via="shard_map")


def test_workers_of_several_devices_gossip_too():
    """Each device with those that have the same parts."""
    mesh, rule = meshes.mesh_of("4x2"), cj.cocod(gossip("ring"))
    rounds = meshes.draw_batches(4, 2)
    round_ = meshes.make(rule)
    alone = cj.replicate(round_.init(meshes.params()), 4)
    expected, _ = meshes.train(cj.distribute(round_), alone, rounds)
    state = cj.replicate(round_.init(meshes.sharded(meshes.params(), mesh)), mesh=mesh)
    run = cj.distribute(round_, via="shard_map", mesh=mesh)
    state, _ = meshes.train(run, state, [meshes.on_mesh(b, mesh) for b in rounds])
    meshes.assert_close(state.params, expected.params)
