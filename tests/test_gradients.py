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


@pytest.mark.parametrize("warmup_steps", [-1, 1.5, "2", True])
def test_bad_warmup_is_refused(warmup_steps):
    with pytest.raises(ValueError, match="warmup_steps="):
        cj.stale_mean_gradients("workers", warmup_steps=warmup_steps)


@pytest.mark.parametrize("make", [cj.mean_gradients, cj.stale_mean_gradients])
def test_errors_of_the_exchange_come_through(make):
    with pytest.raises(ValueError, match="positive, finite"):
        make("workers", (1, 0))
    with pytest.raises(TypeError, match="axis_name"):
        make(3)
    transform = make("workers")
    with pytest.raises(ValueError, match="is not bound"):
        transform.update(jnp.zeros(()), transform.init(jnp.zeros(())))
