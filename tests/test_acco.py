"""ACCO against its loop: estimates, commits, and what stays hidden."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import cocod_jax as cj
from tests import problems, reference
from tests.problems import WEIGHTS, N
from tests.test_per_step import over_mesh, over_mesh_unchecked

RATE, HALVES = 0.05, 7
INNER: dict[str, Any] = {
    "momentum": (
        lambda: optax.sgd(RATE, momentum=0.9),
        lambda x: reference.MomentumSGD(x, RATE, 0.9),
    ),
    "adamw": (lambda: optax.adamw(RATE), lambda x: reference.AdamW(x, RATE)),
    "schedule": (
        lambda: optax.sgd(lambda t: RATE / (1 + t)),
        lambda x: reference.MomentumSGD(x, lambda t: RATE / (1 + t)),
    ),
}


def train(optimizer, mapping, batches, origin=0.0):
    """The parameters before each half-batch, and at the end, [halves + 1, N]."""
    move = lambda tree, by: jax.tree.map(lambda x: x + by, tree)

    def step(params, state, batch):
        gradient = jax.grad(problems.loss)(move(params, -origin), batch)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    run = mapping(step, axis_name="workers")
    params = cj.replicate(move(problems.params(batches[0].dtype), origin), N)
    state, points = jax.vmap(optimizer.init)(params), [params]
    for h in range(HALVES):
        params, state = run(
            params, state, jax.tree.map(lambda leaf, h=h: leaf[:, h], batches)
        )
        points.append(params)
    return points


@pytest.mark.parametrize("mapping", [jax.pmap, over_mesh, over_mesh_unchecked])
@pytest.mark.parametrize("inner", INNER)
def test_it_follows_its_loop(inner, mapping):
    make, of_loop = INNER[inner]
    with jax.enable_x64(True):
        batches = problems.batches(np.float64, steps=HALVES)
        optimizer = cj.per_step.acco(make(), "workers", WEIGHTS)
        points = train(optimizer, mapping, batches)
    x0 = problems.params(np.float64)
    expected = reference.acco(
        problems.numpy_gradient,
        x0,
        problems.per_worker(batches),
        problems.shares(WEIGHTS),
        of_loop(x0),
    )
    assert len(expected) == len(points)
    for ours, loops in zip(points, expected, strict=True):
        ours = jax.tree.map(np.asarray, ours)
        chex.assert_trees_all_close(ours, problems.stacked([loops] * N), rtol=1e-10)


def test_what_an_exchange_remembers_begins_as_gradients_do():
    """At zero: parameters far from there would make each first scale too large."""
    optimizer = cj.per_step.acco(
        optax.sgd(RATE), cj.exchanges.narrow("workers", "int8", block=8)
    )
    with jax.enable_x64(True):
        batches = problems.batches(np.float64, steps=HALVES)
        near = train(optimizer, jax.pmap, batches)[-1]
        far = train(optimizer, jax.pmap, batches, origin=1000.0)[-1]
        moved = jax.tree.map(lambda x: x - 1000.0, far)
    chex.assert_trees_all_close(moved, near, rtol=0, atol=1e-6)


def test_on_a_line_it_is_the_optimizer_of_whole_batches():
    """After odd numbers of updates; after even ones it is ahead by an estimate.

    Where gradients do not depend on the parameters, an estimate costs nothing.
    """
    gradients = np.arange(1.0, 12).astype(np.float32)
    optimizer = cj.per_step.acco(optax.adam(0.1), "workers")
    whole, x, params = optax.adam(0.1), jnp.zeros([]), jnp.zeros(N)
    state, plain = jax.vmap(optimizer.init)(params), whole.init(x)
    update = jax.jit(jax.vmap(optimizer.update, axis_name="workers"))
    for count, gradient in enumerate(gradients, start=1):
        updates, state = update(jnp.full(N, gradient), state, params)
        params = optax.apply_updates(params, updates)
        if count % 2 == 0:
            ahead = np.asarray(params) - np.asarray(x)
            assert np.abs(ahead).min() > 0.01
            continue
        if count >= 3:
            own, plain = whole.update(gradients[count - 3 : count - 1].mean(), plain, x)
            x = optax.apply_updates(x, own)
        chex.assert_trees_all_close(params, cj.replicate(x, N), rtol=1e-5)


def test_params_and_state_can_be_donated_and_keep_their_types():
    optimizer = cj.per_step.acco(optax.sgd(0.1, momentum=0.9), "workers")

    def step(params, state):
        updates, state = optimizer.update(params, state, params)
        return optax.apply_updates(params, updates), state

    step = jax.jit(jax.vmap(step, axis_name="workers"), donate_argnums=(0, 1))
    params = {"a": jnp.ones([N, 3]), "b": jnp.ones([N, 2], jnp.bfloat16)}
    state: Any = jax.vmap(optimizer.init)(params)
    types = jax.tree.map(jnp.result_type, (params, state))
    for _ in range(4):
        params, state = step(params, state)
        assert jax.tree.map(jnp.result_type, (params, state)) == types
    chex.assert_tree_all_finite(params)


def test_what_it_is_given_is_checked():
    with pytest.raises(TypeError, match=r"inner=0\.1 must be an optax transform"):
        cj.per_step.acco(0.1, "workers")  # pyrefly: ignore
    optimizer = cj.per_step.acco(optax.sgd(0.1), "workers")
    with pytest.raises(ValueError, match="params was None"):
        optimizer.update(jnp.ones([]), optimizer.init(jnp.ones([])))
