"""Gradient averaging as optax transforms; their numbers are in test_round.py."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import cocod_jax as cj
from tests.problems import N

TRANSFORMS = {
    "mean": cj.mean_gradients("workers"),
    "of_exchange": cj.mean_gradients(cj.mean("workers")),
    "stale": cj.stale_mean_gradients("workers"),
    "stale_warm": cj.stale_mean_gradients("workers", warmup_steps=2),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_composes_with_optax(name):
    """In a chain, masked, with extra arguments; state types stay what they were."""
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.masked(TRANSFORMS[name], {"w": True, "own": False}),
        optax.adam(0.1),
    )
    params = {"w": jnp.ones([N, 3], jnp.bfloat16), "own": jnp.ones([N])}
    state = jax.vmap(optimizer.init)(params)
    types = jax.tree.map(lambda x: (x.shape, x.dtype), state)
    update = jax.jit(
        jax.vmap(
            lambda g, s, p: optimizer.update(g, s, p, value=0.0), axis_name="workers"
        )
    )
    for seed in range(3):
        draw = lambda x, seed=seed: jnp.asarray(
            np.random.default_rng(seed).normal(size=x.shape), x.dtype
        )
        updates, state = update(jax.tree.map(draw, params), state, params)
        assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == types
        params = cast(Any, optax.apply_updates(params, updates))
    w = np.asarray(params["w"], np.float32)
    np.testing.assert_array_equal(w, w[:1].repeat(N, axis=0))
    assert len(set(np.asarray(params["own"]).tolist())) == N


def test_stale_gradients_of_different_shapes_of_dtype():
    """Gradients may be wider than the parameters: the state keeps its dtype."""
    transform = TRANSFORMS["stale"]
    params = jnp.ones(N, jnp.bfloat16)
    state = jax.vmap(transform.init)(params)
    update: Any = jax.vmap(transform.update, axis_name="workers")
    _, state = update(jnp.ones(N, jnp.float32), state)
    assert state.pending.dtype == jnp.bfloat16


def test_a_non_finite_gradient_is_applied_once():
    """An inf of one step is gone two steps later: nothing multiplies it by zero."""
    for warmup_steps in (0, 1, 3):
        transform = cj.stale_mean_gradients("workers", warmup_steps=warmup_steps)
        state = jax.vmap(transform.init)(jnp.zeros(N))
        update: Any = jax.vmap(transform.update, axis_name="workers")
        finite = []
        for t in range(6):
            gradient = jnp.ones(N).at[0].set(jnp.inf if t == 2 else 1.0)
            updates, state = update(gradient, state)
            finite.append(bool(jnp.isfinite(updates).all()))
        assert finite.count(False) == 1


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("check_vma", [True, False])
def test_a_shard_map_that_sums_the_gradients_itself_is_refused(name, check_vma):
    """With equal parameters JAX sums over the workers, and the mean is one of sums."""

    transform = TRANSFORMS[name]

    def step(w, state, batch):
        gradient = jax.grad(lambda w: 0.5 * (w - batch[0]) ** 2)(w)
        return transform.update(gradient, state)[0]

    w = jnp.zeros([])
    run = jax.shard_map(
        step,
        mesh=jax.sharding.Mesh(np.array(jax.devices()[:N]), "workers"),
        in_specs=(jax.P(), jax.P(), jax.P("workers")),
        out_specs=jax.P(),
        check_vma=check_vma,
    )
    arguments = w, transform.init(w), jnp.arange(float(N))
    if check_vma:
        with pytest.raises(ValueError, match=r"'workers'.*check_vma=False"):
            run(*arguments)
    else:
        mean = 0.0 if name == "stale" else -(N - 1) / 2  # the mean of 0, -1, ... 1 - N
        np.testing.assert_allclose(run(*arguments), mean, rtol=1e-6)


OF_AN_EXCHANGE = {
    "mean_gradients": cj.mean_gradients(cj.mean("workers")),
    "stale_mean_gradients": cj.stale_mean_gradients(cj.mean("workers")),
    "every": cj.every(2, optax.sgd(0.1), cj.cocod("workers")),
}


@pytest.mark.parametrize("name", OF_AN_EXCHANGE)
@pytest.mark.parametrize("own", [True, False])
def test_gradients_that_differ_within_a_worker_may_be_summed_over_workers(name, own):
    """A worker of two devices: what differs over "tensor" is one model's two halves."""
    transform = OF_AN_EXCHANGE[name]

    def step(w, state, batch):
        gradient = jax.grad(lambda w: 0.5 * jnp.sum((w - batch) ** 2))(w)
        return transform.update(gradient, state, w)[0]

    w, spec = jnp.zeros([4]), jax.P(("workers", "tensor") if own else "tensor")
    state = transform.init(w)
    specs = jax.tree.map(lambda leaf: spec if leaf.ndim else jax.P(), state)
    run = jax.shard_map(
        step,
        mesh=jax.sharding.Mesh(
            np.array(jax.devices()[:4]).reshape(2, 2), ("workers", "tensor")
        ),
        in_specs=(spec, specs, jax.P("workers")),
        out_specs=jax.P(("workers", "tensor")),
    )
    if own:
        run(w, state, jnp.arange(4.0)[::2])
    else:
        with pytest.raises(ValueError, match=r"same on all workers of \['workers'\]"):
            run(w, state, jnp.arange(4.0)[::2])


@pytest.mark.parametrize("name", [*TRANSFORMS, "every", "every_at_once"])
@pytest.mark.parametrize("door", ["vmap", "shard_map"])
def test_a_group_that_labels_nothing_averages_nothing(name, door):
    """A partition is made for many models, and not each has a leaf for every group."""
    rule = cj.cocod("workers", range(1, N + 1))
    rules = {
        "every": cj.every(2, optax.adam(0.1), rule),
        "every_at_once": cj.every(2, optax.adam(0.1), rule, delay=0),
    }
    transform, groups = (TRANSFORMS | rules)[name], {"a": "none", "b": "none"}
    optimizer = optax.chain(
        optax.partition({"none": optax.sgd(0.1), "all": transform}, groups),
        optax.masked(transform, dict.fromkeys(groups, False)),
    )
    params = {"a": jnp.ones([N, 3]), "b": jnp.arange(float(N))}
    state = jax.vmap(lambda p: (optimizer.init(p), transform.init({})))(params)

    def step(state, params):
        own, empty = state
        updates, own = optimizer.update(params, own, params)
        nothing, empty = transform.update({}, empty, {})
        assert nothing == {}
        return updates, (own, empty)

    def block(*workers):
        result = step(*jax.tree.map(lambda leaf: leaf[0], workers))
        return jax.tree.map(lambda leaf: leaf[None], result)

    mesh = jax.sharding.Mesh(np.array(jax.devices()[:N]), "workers")
    spec = jax.P("workers")
    run: Any = (
        jax.vmap(step, axis_name="workers")
        if door == "vmap"
        else jax.shard_map(block, mesh=mesh, in_specs=spec, out_specs=spec)
    )
    run = jax.jit(run)
    for _ in range(3):
        updates, state = run(state, params)
        expected = jax.tree.map(lambda leaf: -0.1 * leaf, params)
        jax.tree.map(np.testing.assert_allclose, updates, expected)


def test_a_guard_behind_the_mean_holds_all_workers_back():
    guarded = optax.apply_if_finite(optax.sgd(0.1), 3)
    optimizer = optax.chain(cj.mean_gradients("workers"), guarded)
    params = jnp.ones(N)
    state = jax.vmap(optimizer.init)(params)
    update: Any = jax.vmap(optimizer.update, axis_name="workers")
    for t in range(3):
        gradient = jnp.ones(N).at[1].set(jnp.nan if t == 1 else 1.0)
        updates, state = update(gradient, state, params)
        params = params + updates
    np.testing.assert_allclose(params, 0.8, rtol=1e-6)


@pytest.mark.parametrize("warmup_steps", [-1, 1.5, "2", True])
def test_bad_warmup_is_refused(warmup_steps):
    with pytest.raises(ValueError, match="warmup_steps="):
        cj.stale_mean_gradients("workers", warmup_steps=warmup_steps)


@pytest.mark.parametrize("make", [cj.mean_gradients, cj.stale_mean_gradients])
def test_errors_of_the_exchange_come_through(make):
    with pytest.raises(ValueError, match="positive, finite"):
        make("workers", (1, 0))
    with pytest.raises(TypeError, match="axis_or_exchange=3"):
        make(3)
    transform = make("workers")
    with pytest.raises(ValueError, match="is not bound"):
        transform.update(jnp.zeros(()), transform.init(jnp.zeros(())))
