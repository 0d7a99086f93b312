"""JAX's debug and strict modes: what trains without them trains with them."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType

import cocod_jax as cj
from tests.marks import needs_compiler

N = 2


def mesh(axis_type=AxisType.Explicit):
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(axis_type,) * 2)
    return jax.set_mesh(mesh)


MODES = {
    "key reuse": lambda: jax.debug_key_reuse(True),
    "strict promotion": lambda: jax.numpy_dtype_promotion("strict"),
    "rank promotion": lambda: jax.numpy_rank_promotion("raise"),
    "transfer guard": lambda: jax.transfer_guard("disallow"),
    "leaks": jax.checking_leaks,
    "debug nans": lambda: jax.debug_nans(True),
    "checks": lambda: jax.enable_checks(True),
    "disable_jit": jax.disable_jit,
    "set_mesh": mesh,
}


def loss_fn(params, model_state, batch, key):
    """In bfloat16 and with dropout; a scalar beside vectors, and a counter."""
    keep = jax.random.bernoulli(key, 0.9, batch.shape[-1:]).astype(jnp.float32)
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    off = (batch * keep[None] - wide["w"][None]) - jnp.broadcast_to(
        wide["b"], batch.shape
    )
    return jnp.mean(off**2), {"count": model_state["count"] + jnp.int32(1)}


def round_and_state(delay):
    inner = optax.sgd(0.1, momentum=0.9)
    rule = cj.cocod("workers", weights=(1, 2))
    round_ = cj.make_round(loss_fn, inner, rule, period=2, delay=delay, stateful=True)
    with jax.transfer_guard("allow"):  # a run's start is made of numbers
        params = {"w": jnp.zeros(3, jnp.bfloat16), "b": jnp.zeros([], jnp.bfloat16)}
        state = round_.init(params, {"count": jnp.int32(0)})
        return round_, cj.replicate(state, N)


def batches(micro_batches) -> Any:
    x = np.random.default_rng(0).normal(size=(N, 2, 2, 4, 3)).astype(np.float32)
    if not micro_batches:
        return x[:, :, 0]
    return cj.MicroBatches(x, np.array([[1, 2], [2, 1]]))


def train(via, execution, micro_batches, delay=2):
    round_, state = round_and_state(delay)
    run = cj.distribute(round_, via=via, execution=execution)
    for _ in range(2):
        state, metrics = run(state, batches(micro_batches))
    return cj.consensus(state), metrics.loss


def train_step_by_step():
    optimizer = cj.every(2, optax.sgd(0.1, momentum=0.9), cj.cocod("workers"))

    def step(params, state, batch):
        loss, gradients = jax.value_and_grad(lambda w: jnp.mean((w - batch) ** 2))(
            params
        )
        updates, state = optimizer.update(gradients, state, params, value=loss)
        return optax.apply_updates(params, updates), state

    with jax.transfer_guard("allow"):
        params = cj.replicate(jnp.zeros(3), N)
        state = jax.vmap(optimizer.init)(params)
        batch = jnp.array(batches(False)[:, 0, 0])
    run = jax.jit(jax.vmap(step, axis_name="workers"))
    for _ in range(4):
        params, state = run(params, state, batch)
    return params


def same(mode, function):
    """The mode refuses nothing, and changes no number."""
    expected = function()
    with mode():
        actual = function()
    # Op by op, without fusion, bfloat16 rounds in other places.
    close = lambda one, other: np.testing.assert_allclose(
        np.asarray(one, np.float32), np.asarray(other, np.float32), rtol=0.02, atol=1e-3
    )
    jax.tree.map(close, actual, expected)


@pytest.mark.parametrize("mode", MODES)
def test_a_round_trains_in_every_mode(mode):
    # Op by op many workers take long, and several devices longest.
    via = "vmap" if mode == "disable_jit" else "shard_map"
    same(MODES[mode], lambda: train(via, "fused", micro_batches=True))


@pytest.mark.parametrize("mode", ["strict promotion", "transfer guard", "set_mesh"])
def test_a_split_round_trains_in_the_modes_of_placing_and_types(mode):
    same(MODES[mode], lambda: train("pmap", "split", micro_batches=False, delay=1))


@pytest.mark.parametrize("mode", MODES)
def test_every_trains_in_every_mode(mode):
    # Under explicit axes JAX 0.12 refuses psum in a vmap, whoever calls it.
    modes = MODES | {"set_mesh": lambda: mesh(AxisType.Auto)}
    same(modes[mode], train_step_by_step)


@pytest.mark.matrix
@pytest.mark.parametrize(
    ("mode", "via", "execution", "micro_batches"),
    [
        *itertools.product(
            MODES, ("pmap", "shard_map", "vmap"), ("fused", "split"), (False, True)
        )
    ],
)
def test_all_executions_train_in_every_mode(mode, via, execution, micro_batches):
    same(MODES[mode], lambda: train(via, execution, micro_batches))


@pytest.mark.parametrize("mode", MODES)
def test_a_round_is_summed_up_in_every_mode(mode):
    round_, state = round_and_state(2)
    expected = cj.summary(round_, state)
    with MODES[mode]():
        assert cj.summary(round_, state) == expected


@needs_compiler
@pytest.mark.parametrize("mode", ["strict promotion", "set_mesh"])
def test_a_round_is_certified_in_the_modes_of_meshes_and_types(mode):
    round_, state = round_and_state(2)
    with MODES[mode]():
        certificate = cj.certify.certify(round_, state, batches(False))
    assert certificate.hidden


@pytest.mark.parametrize("dtype", [jnp.float8_e4m3fn, jnp.float8_e5m2])
def test_norms_of_8_bit_floats_are_taken_in_float32(dtype):
    loss = lambda w, batch: jnp.mean((w.astype(jnp.float32) - batch) ** 2)
    round_ = cj.make_round(loss, optax.sgd(0.5), cj.cocod("workers"), period=1)
    state = cj.replicate(round_.init(jnp.zeros(2, dtype)), N)
    run = cj.distribute(round_, via="vmap")
    state, metrics = run(state, np.ones([N, 1, 2], np.float32))
    np.testing.assert_allclose(metrics.grad_norm, np.sqrt(2), rtol=1e-6)
    assert state.params.dtype == dtype
