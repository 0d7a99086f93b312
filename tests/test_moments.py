"""Averaged moments: against a slow loop, in rounds, and what they refuse."""

from typing import Any, cast

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import cocod_jax as cj
from cocod_jax.certify import certify
from experiments.streaming_certificate import transformer_step
from tests import problems
from tests.marks import needs_compiler
from tests.problems import N

averaged_moments = cj.per_step.averaged_moments
B1, B2, RATE = 0.9, 0.5, 0.1


def adam(**periods):
    return averaged_moments(optax.adam(RATE, B1, B2), "workers", **periods)


def slow(gradients, periods):
    """Moments [N, n] of Adam, of which a piece travels in every step."""
    moments = {name: np.zeros(gradients.shape[1:]) for name in ("mu", "nu")}
    new = {
        "mu": lambda v, g: B1 * v + (1 - B1) * g,
        "nu": lambda v, g: B2 * v + (1 - B2) * g**2,
    }
    n = gradients.shape[-1]
    for t, gradient in enumerate(gradients):
        for name, v in moments.items():
            after = new[name](v, gradient)
            if name in periods:
                length = -(-n // periods[name])
                begin = t % periods[name] * length
                own = slice(begin, begin + length)
                x, s = after[:, own], v[:, own]
                m = s.mean(axis=0)
                positive = (x >= 0) & (s >= 0) & (m >= 0)
                moved = m + (x - s)
                after[:, own] = np.where(positive & (moved < 0), 0, moved)
            moments[name] = after
    return moments


@pytest.mark.parametrize("periods", [{"mu": 2, "nu": 3}, {"nu": 1}])
def test_moments_follow_a_slow_loop(periods):
    rng = np.random.default_rng(0)
    gradients = rng.normal(size=(7, N, 6)) * np.arange(1, N + 1)[:, None]
    with jax.enable_x64(True):
        optimizer, params = adam(**periods), jnp.zeros([N, 6])
        state: Any = jax.vmap(optimizer.init)(params)
        update = jax.jit(jax.vmap(optimizer.update, axis_name="workers"))
        for gradient in gradients:
            _, state = update(jnp.asarray(gradient), state, params)
        for name, expected in slow(gradients, periods).items():
            found = optax.tree.get(state.inner_state, name)
            np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_a_second_moment_never_falls_below_zero():
    """A mean that is small against one worker's own, which shrinks by half a step."""
    optimizer, params = adam(nu=1), jnp.zeros([4, 1])
    state: Any = jax.vmap(optimizer.init)(params)
    update: Any = jax.vmap(optimizer.update, axis_name="workers")
    for gradient in ([1.0, 0.0, 0.0, 0.0], [0.0] * 4):
        _, state = update(jnp.array(gradient)[:, None], state, params)
    # Without the bound the first would be 0.5 / 4 - 0.25 / 1.
    found = optax.tree.get(state.inner_state, "nu").ravel()
    np.testing.assert_allclose(found, [0, 0.125, 0.125, 0.125])


WAYS: dict[str, dict[str, Any]] = {
    "pmap": {},
    "split": {"execution": "split"},
    "shard_map": {"via": "shard_map"},
    "vmap": {"via": "vmap"},
}


@pytest.mark.parametrize("streamed", [False, True])
def test_rounds_train_with_it_in_every_way(streamed):
    """The inner optimizer of a round, and of ``every``."""
    inner, rule = adam(mu=2, nu=8), cj.cocod("workers")
    make = lambda: cj.make_round(
        problems.loss, inner, rule, period=problems.PERIOD, streamed=streamed
    )
    batches, ends = problems.batches(), []
    for way in WAYS.values():
        round_ = make()
        run = cj.distribute(round_, **way)
        state = cj.replicate(round_.init(problems.params()), N)
        losses = []
        for r in range(problems.ROUNDS):
            state, metrics = run(state, problems.round_batches(batches, r))
            losses.append(float(np.mean(metrics.loss)))
        assert losses[-1] < losses[0]
        ends.append(state.params)
    optimizer = cj.every(problems.PERIOD, inner, rule, streamed=streamed)

    def step(params, state, batch):
        gradient = jax.grad(problems.loss)(params, batch)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    params = problems.stacked([problems.params()] * N)
    state: Any = jax.vmap(optimizer.init)(params)
    run = jax.jit(jax.vmap(step, axis_name="workers"))
    for t in range(problems.STEPS):
        batch = jax.tree.map(lambda leaf, t=t: leaf[:, t], batches)
        params, state = run(params, state, batch)
    ends.append(params)
    for other in ends[1:]:
        # Adam divides gradients by their size, and compilers order sums differently.
        chex.assert_trees_all_close(ends[0], other, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: averaged_moments(cast(Any, optax.adam), "workers", mu=2),
            TypeError,
            "inner=<function adam",
        ),
        (lambda: adam(), ValueError, "no moment was named"),
        (lambda: adam(mu=0), ValueError, "mu=0"),
        (lambda: adam(m=2).init(jnp.ones(3)), ValueError, "0 fields 'm'"),
        (
            lambda: averaged_moments(
                optax.chain(optax.trace(0.9), optax.trace(0.5)), "workers", trace=2
            ).init(jnp.ones(3)),
            ValueError,
            "2 fields 'trace'",
        ),
    ],
)
def test_what_it_refuses_is_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


@needs_compiler
@pytest.mark.matrix
@pytest.mark.parametrize(("periods", "exchanges"), [((24, 48), 1), ((8, 48), 2)])
def test_moments_travel_with_the_parameters_if_their_periods_differ(periods, exchanges):
    """One exchange is hidden; of two, the second one is not."""
    mu, nu = periods
    inner = averaged_moments(optax.adam(1e-3), "workers", mu=mu, nu=nu)
    fn, args = transformer_step(cj.every(8, inner, cj.cocod("workers"), streamed=True))
    options = cj.compiler_options("gpu")
    certificate = certify(fn, *args, target="h100", compiler_options=options)
    assert len(certificate.schedule.collectives) == exchanges
    assert certificate.hidden == (exchanges == 1)
