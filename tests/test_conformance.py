"""Streaming DiLoCo with torchft's numbers: every value of its regression fixtures.

torchft (Meta, BSD-3-Clause, github.com/meta-pytorch/torchft) mocks the updates in its
diloco_regression_test.py: two replicas, two fragments of one scalar each, which start
at 1, an inner gradient of 2 with SGD of rate 1, and outer SGD of rate 2. Each fragment
is synchronised every 6 steps, the second one 3 steps after the first. The figures are
what its fixtures updates_0 to updates_5 hold for both replicas.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import cocod_jax as cj

REPLICAS, STEPS, PERIOD = 2, 16, 6
MERGES = (3, 6)  # after so many steps, and then once in a period
GLOBAL = (0, 3, 6, 9, 12)  # the steps before which the global parameters are given
# (delay, alpha): local parameters before each step, and global ones, of the first
# fragment and of the second.
FIXTURES = {
    (0, 0.0): (
        [1, -1, -3, -11, -13, -15, -17, -19, -21, -35, -37, -39, -41, -43, -45, -59],
        [1, -11, -11, -35, -35],
        [1, -1, -3, -5, -7, -9, -23, -25, -27, -29, -31, -33, -47, -49, -51, -53],
        [1, 1, -23, -23, -47],
    ),
    (0, 0.5): (
        [*range(1, -5, -2), *range(-8, -20, -2), *np.arange(-24.5, -36, -2), -40.25],
        [1, -11, -11, -29, -29],
        [1, -1, -3, -5, -7, -9, -17, -19, -21, -23, -25, -27, -32, -34, -36, -38],
        [1, 1, -23, -23, -35],
    ),
    (0, 1.0): (
        [1 - 2 * t for t in range(STEPS)],
        [1, -11, -11, -23, -23],
        [1 - 2 * t for t in range(STEPS)],
        [1, 1, -23, -23, -23],
    ),
    (1, 0.0): (
        [1, -1, -3, -7, -9, -11, -13, -15, -17, -27, -29, -31, -33, -35, -37, -47],
        [1, -7, -7, -27, -27],
        [1, -1, -3, -5, -7, -9, -19, -21, -23, -25, -27, -29, -39, -41, -43, -45],
        [1, 1, -19, -19, -39],
    ),
    (1, 0.5): (
        [*range(1, -5, -2), *range(-6, -18, -2), *np.arange(-21.5, -33, -2), -35.75],
        [1, -7, -7, -25, -25],
        [1, -1, -3, -5, -7, -9, -15, -17, -19, -21, -23, -25, -29, -31, -33, -35],
        [1, 1, -19, -19, -31],
    ),
    (1, 1.0): (
        [1 - 2 * t for t in range(STEPS)],
        [1, -7, -7, -23, -23],
        [1 - 2 * t for t in range(STEPS)],
        [1, 1, -19, -19, -23],
    ),
}


def fragment(first_merge, delay, alpha):
    """Local and global parameters before each step, [STEPS, REPLICAS] each."""
    rule = cj.rules.diloco("replicas", optax.sgd(2.0), alpha=alpha)
    optimizer = cj.every(PERIOD, optax.sgd(1.0), rule, delay)

    def step(params, state):
        updates, state = optimizer.update(jnp.array(2.0), state, params)
        return optax.apply_updates(params, updates), state

    params = jnp.ones(REPLICAS)
    state = jax.vmap(optimizer.init)(params)
    # As if the steps before the first snapshot were the end of a period.
    before = jnp.full(REPLICAS, (delay - first_merge) % PERIOD, jnp.int32)
    state = state._replace(count=before)  # pyrefly: ignore[missing-attribute]
    run = jax.jit(jax.vmap(step, axis_name="replicas"))
    local, whole = [params], [state.rule_state.anchor]
    for _ in range(STEPS - 1):
        params, state = run(params, state)
        local.append(params)
        whole.append(state.rule_state.anchor)
    return np.array(local), np.array(whole)


@pytest.mark.parametrize(("delay", "alpha"), FIXTURES)
def test_torchfts_fixtures(delay, alpha):
    fixture = FIXTURES[delay, alpha]
    for first, own in zip(MERGES, (fixture[:2], fixture[2:]), strict=True):
        local, whole = fragment(first, delay, alpha)
        for replica in range(REPLICAS):
            np.testing.assert_array_equal(local[:, replica], own[0])
            np.testing.assert_array_equal(whole[GLOBAL, replica], own[1])


def test_progress_since_the_snapshot_is_kept_by_default():
    """-7 is torchft's, which overwrites the step beside the exchange, and -6 a half."""
    local, whole = fragment(first_merge=3, delay=1, alpha=None)
    np.testing.assert_array_equal(local[:4, 0], [1, -1, -3, -9])
    np.testing.assert_array_equal(whole[:4, 0], [1, 1, 1, -7])
