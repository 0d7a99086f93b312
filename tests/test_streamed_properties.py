"""What holds of streamed exchanges at every period, shape and start."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cocod_jax as cj
from tests import problems
from tests.problems import PERIOD, WEIGHTS, N

SHAPES = st.lists(
    st.lists(st.integers(0, 4), max_size=2).map(tuple), min_size=1, max_size=3
)
FEW = settings(max_examples=20, deadline=None)
still = optax.set_to_zero()


def streamed(inner=still, period=PERIOD, rule=None):
    rule = cj.cocod("workers", WEIGHTS) if rule is None else rule
    return cj.make_round(problems.loss, inner, rule, period=period, streamed=True)


def apart(state, seed):
    """Workers that differ everywhere."""
    rng = np.random.default_rng(seed)
    move = lambda x: x + rng.normal(size=x.shape).astype(x.dtype)
    return state._replace(params=jax.tree.map(move, state.params))


@FEW
@given(SHAPES, st.integers(1, 6), st.integers(0, 50))
def test_each_coordinate_is_sent_once_in_a_period(shapes, period, start):
    """Whatever the step that it begins with; padding is zero."""
    sizes = [int(np.prod(shape)) for shape in shapes]
    ends = np.cumsum(sizes)
    numbered = [
        jnp.arange(end - size + 1.0, end + 1).reshape(shape)
        for end, size, shape in zip(ends, sizes, shapes, strict=True)
    ]
    round_ = streamed(period=period)
    state = round_.init(numbered)
    sent, lengths = [], set()
    for t in range(start, start + period):
        (piece,) = round_.snapshot(state._replace(count=jnp.int32(t))).values()
        sent.extend(np.asarray(piece).tolist())
        lengths.add(len(piece))
    assert sorted(filter(None, sent)) == list(range(1, sum(sizes) + 1))
    assert lengths == {sum(-(-size // period) for size in sizes)}


@functools.cache
def halves(period):
    """Snapshot and send, and the merge, of workers that take no step between."""
    round_ = streamed(period=period)

    def begin(state):
        snapshot = round_.snapshot(state)
        return snapshot, round_.send(state)[0]

    def end(state, snapshot, sent):
        later = state._replace(count=state.count + 1)
        return round_.merge(later, snapshot, sent)[0]

    over = lambda function: jax.jit(jax.vmap(function, axis_name="workers"))
    return round_, over(begin), over(end)


def differing(before, after):
    return sum(
        int((one != other).sum())
        for one, other in zip(
            jax.tree.leaves(before), jax.tree.leaves(after), strict=True
        )
    )


@FEW
@given(st.integers(1, 4), st.integers(0, 9), st.integers(0, 2**31))
def test_no_merge_moves_the_weighted_mean(period, step, seed):
    with jax.enable_x64(True):
        round_, begin, end = halves(period)
        fresh = cj.replicate(round_.init(problems.params(np.float64)), N)
        state = apart(fresh, seed)._replace(count=jnp.full(N, step, jnp.int32))
        snapshot, sent = begin(state)
        # The steps beside the exchange move the workers, and the merge keeps that.
        moved = apart(state, seed + 1)
        merged = end(moved, snapshot, sent)
        chex.assert_trees_all_close(
            cj.consensus(merged), cj.consensus(moved), rtol=1e-12, atol=1e-12
        )
        # The piece, and nothing else, has been written.
        sizes = [np.size(leaf) for leaf in jax.tree.leaves(problems.params())]
        share = lambda n: min(
            max(n - step % period * -(-n // period), 0), -(-n // period)
        )
        assert differing(moved.params, merged.params) == N * sum(map(share, sizes))


def test_the_mean_follows_sgd_in_every_step():
    """mean(t+1) = mean(t) - lr * weighted mean gradient."""
    with jax.enable_x64(True):
        round_, p = streamed(optax.sgd(0.05)), problems.shares(WEIGHTS)
        batches = problems.batches(np.float64)
        data = problems.per_worker(batches)
        one_step = by_hand(round_)
        state = cj.replicate(round_.init(problems.params(np.float64)), N)
        state = apart(state, 0)
        for t in range(2 * PERIOD + 1):
            mean = cj.consensus(state)
            worker = lambda i, s=state: jax.tree.map(
                lambda x: np.asarray(x[i]), s.params
            )
            gradients = [
                problems.numpy_gradient(worker(i), data[i][t]) for i in range(N)
            ]
            state = one_step(state, jax.tree.map(lambda b, t=t: b[:, t], batches))
            expected = jax.tree.map(
                lambda x, *g: x - 0.05 * np.tensordot(p, np.stack(g), axes=1),
                mean,
                *gradients,
            )
            chex.assert_trees_all_close(
                cj.consensus(state), expected, rtol=1e-12, atol=1e-12
            )


def by_hand(round_):
    """One step of a streamed round out of its public parts."""

    def one_step(state, batch):
        snapshot = round_.snapshot(state)
        sent, exchange_state = round_.send(state)
        state, _ = round_.step(state, batch)
        state, _ = round_.merge(state, snapshot, sent)
        return state._replace(exchange_state=exchange_state)

    return jax.jit(jax.vmap(one_step, axis_name="workers"))


@pytest.mark.parametrize("period", [1, 2, 5])
def test_one_worker_is_the_plain_optimizer(period):
    """A mean over one worker changes nothing; nor does one of equal workers."""
    x, y = problems.batches(workers=1, steps=2 * period)
    optimizer = optax.adam(0.01)
    params = problems.params()
    opt_state = optimizer.init(params)
    plain = jax.jit(lambda params, batch: jax.grad(problems.loss)(params, batch))
    for t in range(2 * period):
        gradient = plain(params, (x[0, t], y[0, t]))
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        params = optax.apply_updates(params, updates)
    for workers in (1, N):
        batches = tuple(leaf.repeat(workers, axis=0) for leaf in (x, y))
        round_ = streamed(optimizer, period, cj.cocod("workers"))
        run = cj.distribute(round_, via="vmap", execution="fused")
        state = cj.replicate(round_.init(problems.params()), workers)
        for r in range(2):
            state, _ = run(state, problems.round_batches(batches, r, period))
        cj.workers.check_equal_start(state)
        # Adam divides by small numbers: a few units in the last place, ten times over.
        chex.assert_trees_all_close(cj.consensus(state), params, rtol=1e-5, atol=1e-6)


def saved(state):
    """The state as a file would bring it back."""
    return jax.tree.map(
        lambda x: x if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else np.array(x),
        state,
    )


RULES: dict[str, Any] = {
    "cocod": lambda: cj.cocod("workers", WEIGHTS),
    "both remember": lambda: cj.rules.diloco(
        cj.exchanges.narrow("workers", "int8"), optax.sgd(0.7, momentum=0.9)
    ),
    "correcting": lambda: cj.rules.vrl_sgd(
        "workers", learning_rate=0.05, period=PERIOD
    ),
}


@pytest.mark.parametrize("name", RULES)
def test_a_round_by_hand_goes_on_from_any_step(name):
    """And gives the numbers of the whole rounds."""
    round_ = streamed(optax.adam(0.01), rule=RULES[name]())
    steps, batches = 2 * PERIOD, problems.batches()
    one_step = by_hand(round_)
    at = lambda t: jax.tree.map(lambda leaf: leaf[:, t], batches)
    states = [cj.replicate(round_.init(problems.params()), N)]
    for t in range(steps):
        states.append(one_step(states[-1], at(t)))
    for begin in range(1, steps):
        state = saved(states[begin])
        for t in range(begin, steps):
            state = one_step(state, at(t))
        chex.assert_trees_all_equal(*(s._replace(key=()) for s in (state, states[-1])))
    # A round may begin at any step: pieces follow the count.
    run = cj.distribute(round_, via="vmap", execution="fused")
    for begin in range(PERIOD + 1):
        own = jax.tree.map(lambda x, b=begin: x[:, b : b + PERIOD], batches)
        state, _ = run(saved(states[begin]), own)
        # Where two programs differ by an ulp, an int8 code may differ by one.
        tolerance = 1e-2 if name == "both remember" else 1e-5
        chex.assert_trees_all_close(
            state.params,
            states[begin + PERIOD].params,
            rtol=tolerance,
            atol=tolerance,
        )


@pytest.mark.parametrize("name", RULES)
def test_an_optimizer_goes_on_from_any_step(name):
    optimizer = cj.every(PERIOD, optax.adam(0.01), RULES[name](), streamed=True)

    def step(params, state, batch):
        gradient = jax.grad(problems.loss)(params, batch)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    run = jax.jit(jax.vmap(step, axis_name="workers"))
    batches, steps = problems.batches(), 2 * PERIOD
    at = lambda t: jax.tree.map(lambda leaf: leaf[:, t], batches)
    params = cj.replicate(problems.params(), N)
    states = [(params, jax.vmap(optimizer.init)(params))]
    for t in range(steps):
        states.append(run(*states[-1], at(t)))
    for begin in range(1, steps):
        state = saved(states[begin])
        for t in range(begin, steps):
            state = run(*state, at(t))
        chex.assert_trees_all_equal(state, states[-1])
