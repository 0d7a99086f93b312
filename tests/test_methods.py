"""What holds of every rule and exchange, on parameters of several dtypes."""

import contextlib
import logging

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import cocod_jax as cj
from tests import problems
from tests.marks import seldom
from tests.methods import EXCHANGES, METHODS, made
from tests.problems import PERIOD, N
from tests.test_modes import MODES

# Op by op it takes long; tests/test_modes.py does without compilation.
TOGETHER = [name for name in MODES if name not in ("disable_jit", "set_mesh")]


def loss(params, batch):
    """In bfloat16 as well; a scalar beside vectors."""
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    off = batch - wide["w"][None] - jnp.broadcast_to(wide["b"], batch.shape)
    return jnp.mean(off**2)


def round_and_state(name, delay):
    """Two dtypes of parameters, which travel together."""
    with jax.transfer_guard("allow"):  # a run's start is made of numbers
        params = {"w": jnp.ones(3, jnp.bfloat16), "b": jnp.zeros([], jnp.float32)}
        rule, _ = made(name, problems.params())
        inner = optax.sgd(0.1)
        round_ = cj.make_round(loss, inner, rule, period=PERIOD, delay=delay)
        return round_, cj.replicate(round_.init(params), N)


def batches():
    rng = np.random.default_rng(0)
    return rng.normal(size=(N, PERIOD, 4, 3)).astype(np.float32)


@pytest.mark.parametrize("name", METHODS)
def test_a_second_round_finds_its_state_as_the_first_one_did(name, caplog):
    """In types and place, so that it compiles nothing; and takes the buffers over."""
    round_, state = round_and_state(name, 1)
    run = cj.distribute(round_, via="vmap", execution="fused")
    state, _ = run(state, batches())
    before = jax.tree.map(jnp.array, state)
    given_away = state.params["w"]
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        state, _ = run(state, batches())
        jax.block_until_ready(state.params)
    assert not [r.message for r in caplog.records if "ompil" in r.message]
    chex.assert_trees_all_equal_shapes_and_dtypes(state, before)
    assert given_away.is_deleted()
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize("name", seldom(METHODS, but=(*EXCHANGES, "diloco", "vrl_sgd")))
def test_it_trains_in_debug_and_strict_modes(name):
    round_, state = round_and_state(name, PERIOD)

    def train(state):
        run = cj.distribute(round_, via="vmap", execution="fused")
        for _ in range(2):
            state, metrics = run(state, batches())
        return state.params, metrics.loss

    expected = train(jax.tree.map(jnp.array, state))
    with contextlib.ExitStack() as modes:
        for mode in TOGETHER:
            modes.enter_context(MODES[mode]())
        actual = train(state)
    close = lambda one, other: np.testing.assert_allclose(
        np.asarray(one, np.float32), np.asarray(other, np.float32), rtol=0.02, atol=1e-3
    )
    jax.tree.map(close, actual, expected)
