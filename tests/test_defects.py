"""Defects of earlier code for these algorithms, which this library must not have.

They were found by reading that code and its issues. Nothing in them raised an error:
training went on, and learnt a little less.
"""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import cocod_jax as cj
from docs.generate import public

PERIOD, N = 3, 4
APART = np.arange(N, dtype=np.float32)
FACTORIES = {
    f"{home.__name__}.{name}": factory
    for home in (cj, cj.rules, cj.exchanges, cj.per_step)
    for name, factory in public(home).items()
    if inspect.isfunction(factory)
}


def steps(optimizer, params, count, gradient=lambda params: jnp.ones_like(params)):
    """The parameters of all workers after each of so many steps."""

    def step(params, state):
        updates, state = optimizer.update(gradient(params), state, params)
        return optax.apply_updates(params, updates), state

    state = jax.vmap(optimizer.init)(params)
    run, seen = jax.jit(jax.vmap(step, axis_name="workers")), []
    for _ in range(count):
        params, state = run(params, state)
        seen.append(params)
    return np.array(seen)


def local_sgd():
    """Local SGD of rate 0.1."""
    return cj.every(PERIOD, optax.sgd(0.1), cj.cocod("workers"), delay=0)


def test_the_first_merge_comes_after_k_steps():
    """JYWa/Overlap_Local_SGD averages first in the call after it, k + 1."""
    seen = steps(local_sgd(), jnp.array(APART), 2 * PERIOD)
    merged = np.ptp(seen, axis=1) == 0
    # Equal gradients keep workers equal that have merged once.
    assert list(merged) == [False] * (PERIOD - 1) + [True] * (PERIOD + 1)


def test_a_clip_takes_effect():
    """fairscale-CO2 clips its momentum, and drops the result."""
    clipped, whole = (
        steps(
            cj.every(PERIOD, optax.sgd(0.1), cj.rules.co2("workers", clip=clip)),
            jnp.zeros(N),
            4 * PERIOD,
        )
        for clip in (0.01, None)
    )
    # A step of 0.1 less than what is clipped: both stand on their anchors.
    moved = lambda seen: np.abs(np.diff(seen[PERIOD::PERIOD], axis=0))
    assert (moved(clipped) <= 0.01 + 1e-6).all()  # float32 at 1
    assert (moved(whole) > 0.2)[1:].all()


@pytest.mark.parametrize("streamed", [False, True])
def test_the_last_mean_is_applied(streamed):
    """JYWa/Overlap_Local_SGD leaves the last exchange in flight when training ends."""
    loss_fn = lambda params, batch: 0.0 * params.sum()
    round_ = cj.make_round(
        loss_fn, optax.sgd(0.1), cj.cocod("workers"), period=PERIOD, streamed=streamed
    )
    state = cj.replicate(round_.init(jnp.zeros(PERIOD)), N)
    state = state._replace(params=jnp.repeat(APART[:, None], PERIOD, axis=1))
    run = cj.distribute(round_, via="vmap")
    state, _ = run(state, np.zeros([N, PERIOD], np.float32))
    np.testing.assert_allclose(state.params, APART.mean(), rtol=1e-6)


def test_unknown_keywords_are_refused():
    """exo-explore/gym's example passes inner_optim, which is set and never read."""
    any_keyword = [
        name
        for name, factory in FACTORIES.items()
        for parameter in inspect.signature(factory).parameters.values()
        if parameter.kind is parameter.VAR_KEYWORD
    ]
    # Its keywords are names of moments, and it knows those of its optimizer.
    assert any_keyword == ["cocod_jax.per_step.averaged_moments"]
    adam = optax.adam(0.1)
    optimizer = cj.per_step.averaged_moments(adam, "workers", trace=2)
    with pytest.raises(ValueError, match="trace"):
        optimizer.init(jnp.zeros(2))


def test_the_next_step_starts_from_the_mean():
    """PyTorch's PostLocalSGDOptimizer averaged a copy (pytorch/pytorch#74157)."""
    pull = lambda params: params  # the gradient says where it was taken
    seen = steps(local_sgd(), jnp.array(APART), PERIOD + 1, pull)
    np.testing.assert_allclose(seen[-1], 0.9 ** (PERIOD + 1) * APART.mean(), rtol=1e-6)


def test_all_workers_take_part_in_every_merge():
    """Neumann-Labs/ft-diloco trained on as solo runs after unaligned starts."""
    own_mark = lambda params: -jax.nn.one_hot(jax.lax.axis_index("workers"), N)
    seen = steps(local_sgd(), jnp.zeros([N, N]), 3 * PERIOD, own_mark)
    expected = 0.1 * PERIOD / N * np.arange(1, 4)
    for marks, each in zip(seen[PERIOD - 1 :: PERIOD], expected, strict=True):
        np.testing.assert_allclose(marks, each, rtol=1e-5)
        assert np.count_nonzero(marks, axis=1).tolist() == [N] * N
