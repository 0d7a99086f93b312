"""``every``: the round's numbers from an ordinary per-step optimizer."""

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
from tests import problems, reference
from tests.marks import seldom
from tests.problems import PERIOD, STEPS, WEIGHTS, N


def train(optimizer, dtype=np.float32, mapping=jax.pmap, steps=STEPS):
    """The workers' parameters [N, ...] after a plain training loop."""
    batches = problems.batches(dtype)

    def step(params, state, batch):
        gradient = jax.grad(problems.loss)(params, batch)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    step = mapping(step, axis_name="workers")
    params = cj.replicate(problems.params(dtype), N)
    state = jax.vmap(optimizer.init)(params)
    for t in range(steps):
        params, state = step(
            params, state, jax.tree.map(lambda leaf, t=t: leaf[:, t], batches)
        )
    return jax.tree.map(np.asarray, params)


def over_mesh(function, axis_name, check_vma=True):
    """``shard_map`` with the interface of ``pmap``."""

    def block(*args):
        result = function(*jax.tree.map(lambda leaf: leaf[0], args))
        return jax.tree.map(lambda leaf: leaf[None], result)

    spec = jax.P(axis_name)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:N]), axis_name)
    return jax.jit(
        jax.shard_map(
            block, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=check_vma
        )
    )


over_mesh_unchecked = functools.partial(over_mesh, check_vma=False)


@pytest.mark.parametrize(
    ("mapping", "delay"),
    seldom(
        itertools.product(
            (jax.pmap, jax.vmap, over_mesh, over_mesh_unchecked), range(PERIOD + 1)
        ),
        but=[
            *((jax.vmap, delay) for delay in range(PERIOD + 1)),
            *((jax.pmap, 2), (over_mesh, 1), (over_mesh_unchecked, 3)),
        ],
    ),
)
def test_every_is_the_papers_algorithm(delay, mapping):
    with jax.enable_x64(True):
        rule = cj.cocod("workers", WEIGHTS)
        inner = optax.sgd(0.05, momentum=0.9)
        params = train(cj.every(PERIOD, inner, rule, delay), np.float64, mapping)
        arguments = (
            problems.numpy_gradient,
            problems.params(np.float64),
            problems.per_worker(problems.batches(np.float64)),
            problems.shares(WEIGHTS),
            PERIOD,
        )
        options = {"learning_rate": 0.05, "momentum": 0.9}
        if delay == 0:
            _, workers = reference.local_sgd(*arguments, **options)
        else:
            _, workers = reference.cocod_sgd(*arguments, delay, **options)
        chex.assert_trees_all_close(
            params, problems.stacked(workers), rtol=1e-10, atol=1e-12
        )


@pytest.mark.parametrize("inner", [optax.adamw(0.01), optax.sgd(0.05, 0.9)])
@pytest.mark.parametrize("delay", seldom(range(PERIOD + 1), but=(1, PERIOD)))
def test_every_and_the_round_agree(delay, inner):
    rule = cj.cocod("workers", WEIGHTS)
    params = train(cj.every(PERIOD, inner, rule, delay))
    round_ = cj.make_round(problems.loss, inner, rule, period=PERIOD, delay=delay)
    run = cj.distribute(round_)
    state = cj.replicate(round_.init(problems.params()), N)
    for r in range(STEPS // PERIOD):
        state, _ = run(state, problems.round_batches(problems.batches(), r))
    expected = state.params
    if delay == 0:  # every has merged already
        expected = cj.replicate(cj.consensus(state), N)
    # float32 over 12 steps; every returns differences from params, the round does not.
    chex.assert_trees_all_close(params, expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("delay", [1, PERIOD])
def test_narrow_parameters_are_the_rounds_in_every_bit(delay):
    """Updates in float32 land where the round's merge did, in bfloat16."""
    loss = lambda p, b: problems.loss(jax.tree.map(jnp.float32, p), b)
    narrow = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), problems.params())
    rule, inner = cj.cocod("workers", WEIGHTS), optax.sgd(0.05, 0.9)
    optimizer = cj.every(PERIOD, inner, rule, delay)

    def step(params, state, batch):
        gradient = jax.grad(loss)(params, batch)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    # Workers so far apart that bfloat16 does not hold what a merge adds.
    rng = np.random.default_rng(0)
    draw = lambda x: jnp.asarray(rng.normal(size=x.shape, scale=10), x.dtype)
    start = jax.tree.map(draw, problems.stacked([narrow] * N))
    params, state = start, jax.vmap(optimizer.init)(start)
    run: Any = jax.pmap(step, axis_name="workers")
    for t in range(STEPS):
        batch = jax.tree.map(lambda b, t=t: b[:, t], problems.batches())
        params, state = run(params, state, batch)
    round_ = cj.make_round(loss, inner, rule, period=PERIOD, delay=delay)
    expected = cj.replicate(round_.init(narrow), N)._replace(params=start)
    run = cj.distribute(round_)
    for r in range(STEPS // PERIOD):
        expected, _ = run(expected, problems.round_batches(problems.batches(), r))
    chex.assert_trees_all_equal(params, expected.params)


def test_in_a_chain_with_injected_hyperparameters():
    """Before, inside and around: the learning rate stays within reach."""
    rule = cj.cocod("workers")
    plain = train(cj.every(PERIOD, optax.sgd(0.05), rule))
    inside = cj.every(PERIOD, optax.inject_hyperparams(optax.sgd)(0.05), rule)
    around = optax.inject_hyperparams(
        lambda learning_rate: cj.every(PERIOD, optax.sgd(learning_rate), rule)
    )(learning_rate=0.05)
    chain = optax.chain(
        optax.clip_by_global_norm(1e6), cj.every(PERIOD, optax.sgd(0.05), rule)
    )
    for optimizer in (inside, around, chain):
        # A learning rate in the state is traced: other constants are folded.
        chex.assert_trees_all_close(train(optimizer), plain, rtol=1e-5, atol=1e-6)


def test_masked_leaves_are_not_averaged():
    is_shared = lambda tree: {k: k != "b" for k in tree}
    shared = optax.masked(
        cj.every(1, optax.sgd(0.05), cj.cocod("workers"), delay=0), is_shared
    )
    is_own = lambda tree: {k: k == "b" for k in tree}
    own = optax.masked(optax.sgd(0.05), is_own)
    params = train(optax.chain(shared, own))
    assert len(set(params["b"].tolist())) == N
    np.testing.assert_allclose(params["w"], params["w"][:1].repeat(N, 0), rtol=1e-5)


def test_extra_arguments_reach_the_inner_optimizer():
    seen = []

    def update(updates, state, params=None, **extra_args):
        seen.append(set(extra_args))
        return updates, state

    spy = optax.GradientTransformationExtraArgs(
        lambda params: optax.EmptyState(), update
    )
    optimizer = cj.every(2, spy, cj.cocod("workers"))
    step = lambda x: optimizer.update(x, optimizer.init(x), x, value=x)[0]
    jax.vmap(step, axis_name="workers")(jnp.zeros(N))
    assert seen == [{"value"}]


def test_no_recompilation_and_stable_types():
    optimizer = cj.every(PERIOD, optax.adam(0.01), cj.cocod("workers"))
    params = cj.replicate(problems.params(), N)
    state = jax.vmap(optimizer.init)(params)
    types = jax.tree.map(lambda x: (x.shape, x.dtype), state)
    traces = []

    def step(gradient, state, params):
        traces.append(1)
        return optimizer.update(gradient, state, params)

    step = jax.jit(jax.vmap(step, axis_name="workers"))
    for _ in range(2 * PERIOD):
        updates, state = step(params, state, params)
        params = optax.apply_updates(params, updates)
    assert len(traces) == 1
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == types


def test_params_and_state_can_be_donated():
    """The state copies what it keeps: no buffer is given away twice."""
    optimizer = cj.every(2, optax.sgd(0.1, momentum=0.9), cj.cocod("workers"))

    def step(params, state):
        updates, state = optimizer.update(params, state, params)
        return optax.apply_updates(params, updates), state

    step = jax.jit(jax.vmap(step, axis_name="workers"), donate_argnums=(0, 1))
    params = cj.replicate(problems.params(), N)
    state = jax.vmap(optimizer.init)(params)
    for _ in range(4):
        params, state = step(params, state)
    chex.assert_tree_all_finite(params)
    alone = jnp.ones(3)
    donated = jax.jit(lambda p, s: (p, s), donate_argnums=(0, 1))
    donated(alone, optimizer.init(alone))


def test_a_non_finite_gradient_does_not_reach_the_snapshot():
    """Until the merge, a step with inf touches its own worker's parameters only."""
    optimizer = cj.every(3, optax.sgd(0.1), cj.cocod("workers"))
    params = jnp.zeros([N, 2])
    state = jax.vmap(optimizer.init)(params)
    update: Any = jax.vmap(optimizer.update, axis_name="workers")
    gradient = jnp.zeros([N, 2]).at[0].set(jnp.inf)
    updates, state = update(gradient, state, params)
    assert np.isfinite(np.asarray(updates)).all(axis=1).tolist() == [
        False,
        True,
        True,
        True,
    ]
    assert np.isfinite(np.asarray(state.snapshot)).all()


@pytest.mark.parametrize("shared", [True, False])
def test_gradients_that_shard_map_has_summed_are_refused(shared):
    """Gradients of parameters that all workers share."""
    optimizer = cj.every(2, optax.sgd(0.1), cj.cocod("workers"))

    def step(w, state, target):
        if not shared:
            w, state = jax.tree.map(lambda leaf: leaf[0], (w, state))
        gradient = jax.grad(lambda w: 0.5 * (w - target[0]) ** 2)(w)
        updates, state = optimizer.update(gradient, state, w)
        return jax.tree.map(lambda leaf: leaf[None], updates)

    w = jnp.zeros([])
    given = w, optimizer.init(w)
    spec = jax.P() if shared else jax.P("workers")
    run = jax.shard_map(
        step,
        mesh=jax.sharding.Mesh(np.array(jax.devices()[:N]), "workers"),
        in_specs=(spec, spec, jax.P("workers")),
        out_specs=jax.P("workers"),
    )
    targets = jnp.arange(float(N))
    if shared:
        with pytest.raises(ValueError, match=r"'workers'.*check_vma=False"):
            run(*given, targets)
    else:
        params, state = cj.replicate(given, N)
        updates = run(params, state, targets)
        np.testing.assert_allclose(updates, 0.1 * targets)


def test_a_guard_within_keeps_the_workers_in_step():
    """The worker that skips a step takes part in the exchange, and they end equal."""
    inner = optax.apply_if_finite(optax.sgd(0.1), 3)
    optimizer = cj.every(2, inner, cj.cocod("workers"))
    params = jnp.ones(N)
    state = jax.vmap(optimizer.init)(params)
    update: Any = jax.vmap(optimizer.update, axis_name="workers")
    for t in range(4):
        gradient = jnp.ones(N).at[1].set(jnp.nan if t == 1 else 1.0)
        updates, state = update(gradient, state, params)
        params = params + updates
    # One step of one worker is missing, and all bear it.
    np.testing.assert_allclose(params, 0.6 + 0.1 / N, rtol=1e-6)


def test_errors():
    rule = cj.cocod("workers")
    no_rule: Any = optax.sgd(0.1)
    with pytest.raises(ValueError, match="period=0"):
        cj.every(0, optax.sgd(0.1), rule)
    with pytest.raises(ValueError, match="delay=3"):
        cj.every(2, optax.sgd(0.1), rule, delay=3)
    with pytest.raises(TypeError, match="MergeRule"):
        cj.every(2, optax.sgd(0.1), no_rule)
    with pytest.raises(TypeError, match="optax transform"):
        cj.every(2, rule, rule)
    optimizer = cj.every(2, optax.sgd(0.1), rule)
    with pytest.raises(ValueError, match="params was None"):
        optimizer.update(jnp.zeros(()), optimizer.init(jnp.zeros(())))
    with pytest.raises(ValueError, match="is not bound"):
        optimizer.update(jnp.zeros(()), optimizer.init(jnp.zeros(())), jnp.zeros(()))
