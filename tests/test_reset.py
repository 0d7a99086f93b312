"""An inner optimizer that forgets at every merge."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import cocod_jax as cj
from tests import problems, reference
from tests.problems import PERIOD, ROUNDS, WEIGHTS, N

RATE = 0.05


@pytest.mark.parametrize("delay", range(PERIOD + 1))
def test_the_momentum_begins_anew_after_every_merge(delay):
    with jax.enable_x64(True):
        x0, batches = problems.params(np.float64), problems.batches(np.float64)
        inner = cj.per_step.reset_every(
            PERIOD, optax.sgd(RATE, momentum=0.9, nesterov=True), delay
        )
        round_ = cj.make_round(
            problems.loss,
            inner,
            cj.cocod("workers", WEIGHTS),
            period=PERIOD,
            delay=delay,
        )
        run = cj.distribute(round_, via="vmap")
        state = cj.replicate(round_.init(x0), N)
        for r in range(ROUNDS):
            state, _ = run(state, problems.round_batches(batches, r))
    x, data, p = [x0] * N, problems.per_worker(batches), problems.shares(WEIGHTS)
    optimizers = [reference.MomentumSGD(x0, RATE, 0.9, nesterov=True) for _ in x]
    for t in range(0, PERIOD * ROUNDS, PERIOD):
        snapshot = list(x)
        average = reference.weighted_mean(snapshot, p)
        for tau in range(PERIOD + 1):
            if tau == delay:
                x = [
                    reference.merged(average, *own)
                    for own in zip(x, snapshot, strict=True)
                ]
                for optimizer in optimizers:
                    optimizer.buffer = jax.tree.map(np.zeros_like, x0)
            if tau == PERIOD:
                break
            for i in range(N):
                g = problems.numpy_gradient(x[i], data[i][t + tau])
                x[i] = optimizers[i].step(x[i], g)
    close = lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-10)
    jax.tree.map(close, state.params, problems.stacked(x))


def test_schedules_behind_it_go_on():
    rate = lambda t: 0.5**t
    inner = optax.chain(
        cj.per_step.reset_every(2, optax.trace(0.5)),
        optax.scale_by_learning_rate(rate),
    )
    params = gradient = jnp.ones([])
    state, taken = inner.init(params), []
    for _ in range(4):
        updates, state = inner.update(gradient, state, params)
        taken.append(updates)
    assert taken == [-1.0, -1.5 / 2, -1.0 / 4, -1.5 / 8]


def test_what_it_is_given_is_checked():
    with pytest.raises(TypeError, match=r"inner=0\.1 must be an optax transform"):
        cj.per_step.reset_every(2, 0.1)  # pyrefly: ignore
    with pytest.raises(ValueError, match=r"delay=3 must be in 0\.\.period=2"):
        cj.per_step.reset_every(2, optax.sgd(0.1), 3)
    inner = cj.per_step.reset_every(2, optax.sgd(0.1))
    with pytest.raises(ValueError, match="params was None"):
        inner.update(jnp.ones([]), inner.init(jnp.ones([])))
