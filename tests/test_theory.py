"""The paper's bounds: by hand, at their limits, and against simulated workers."""

import dataclasses
import functools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cocod_jax import theory

PROBLEM = theory.Problem(
    smoothness=2.0, noise=3.0, gap=5.0, workers=4, batch=8, dissimilarity=1.0
)

examples = settings(max_examples=50, deadline=None)
constants = st.floats(0.1, 10.0)
problems = st.builds(
    lambda workers, share, **kwargs: theory.Problem(
        workers=workers, batch=workers * share, **kwargs
    ),
    workers=st.integers(1, 16),
    share=st.integers(1, 32),
    smoothness=constants,
    noise=constants,
    gap=constants,
    dissimilarity=st.sampled_from([0.0, 0.3, 3.0]),
)


def change(problem=PROBLEM, **values):
    return dataclasses.replace(problem, **values)


def train(gradient, shares, *, rate, period, delay, rounds, dim, start=0.0, seed=0):
    """Plain SGD on all workers, in rounds; nothing of the library.

    Returns, for each step, the weighted squared distance of the workers from their
    mean, and the mean.
    """
    rng = np.random.default_rng(seed)
    x = np.full([len(shares), dim], start)
    deviations, means = [], []
    for _ in range(rounds):
        snapshot = x.copy()
        for step in range(period + 1):
            if step == delay:
                x = x + (shares @ snapshot - snapshot)
            if step == period:
                break
            mean = shares @ x
            deviations.append(shares @ ((x - mean) ** 2).sum(axis=1))
            means.append(mean)
            x = x - rate * gradient(x, rng)
    return np.array(deviations), np.array(means)


def train_streamed(gradient, shares, *, rate, period, steps, dim, start=0.0, seed=0):
    """The same, with a k-th of the coordinates in every step, merged after it."""
    rng = np.random.default_rng(seed)
    x = np.full([len(shares), dim], start)
    deviations, means = [], []
    for step in range(steps):
        piece = slice(step % period, None, period)
        snapshot, mean = x.copy(), shares @ x
        deviations.append(shares @ ((x - mean) ** 2).sum(axis=1))
        means.append(mean)
        x = x - rate * gradient(x, rng)
        x[:, piece] += mean[piece] - snapshot[:, piece]
    return np.array(deviations), np.array(means)


# Lemma 2 and Theorem 1


def test_theorem_1_by_hand():
    # 16 g² k² L² = 0.0576, D2 = 8 g² L² k / (1 - 0.0576) = 0.0096 / 0.9424,
    # N sigma² / M + 2 k zeta² = 4.5 + 6, 2 gap / (T g) = 1, g L sigma² / M = 0.0225.
    d2 = Fraction(96, 9424)
    d1 = 1 - 6 * d2
    expected = (1 + d2 * Fraction(21, 2) + Fraction(225, 10_000)) / d1
    bound = theory.gradient_bound(PROBLEM, learning_rate=0.01, period=3, steps=1000)
    assert bound == pytest.approx(float(expected), rel=1e-12)


def test_lemma_2_by_hand():
    # 8 g² k / (1 - 0.0576) = 0.0024 / 0.9424, and 2 k |gradient|² = 12.
    deviation = theory.deviation_bound(
        PROBLEM, learning_rate=0.01, period=3, mean_square_gradient=2.0
    )
    assert deviation == pytest.approx(0.0024 / 0.9424 * (4.5 + 6 + 12), rel=1e-12)


@examples
@given(constants, st.floats(1e-4, 1.0), st.sampled_from([None, 0, 1, 5]))
def test_the_largest_period_is_the_last_with_a_bound(smoothness, rate, delay):
    problem = change(smoothness=smoothness)
    bound = lambda k: theory.gradient_bound(
        problem, learning_rate=rate, period=k, delay=delay, steps=100
    )
    largest, least = theory.largest_period(rate, smoothness, delay), max(delay or 1, 1)
    assert bound(max(largest + 1, least)) == math.inf
    if largest:
        assert bound(largest) < math.inf
        assert bound(least) <= bound(largest)


@pytest.mark.parametrize("delay", [1, 3, 5])
def test_a_delay_counts_in_the_bounds_as_half_of_a_step_of_the_period(delay):
    """(k + d) / 2 is an integer here, and the paper's own formula takes it."""
    bounds = (
        functools.partial(theory.deviation_bound, mean_square_gradient=2.0),
        functools.partial(theory.gradient_bound, steps=1000),
    )
    for bound in bounds:
        ours = bound(PROBLEM, learning_rate=0.01, period=5, delay=delay)
        papers = bound(PROBLEM, learning_rate=0.01, period=(5 + delay) // 2)
        assert ours == pytest.approx(papers, rel=1e-12)


def test_lemma_2_of_local_sgd_by_hand():
    # W = 5, and 4 g² W / (1 - 4 g² W² L²) = 0.002 / 0.96.
    bound = theory.deviation_bound(PROBLEM, learning_rate=0.01, period=5, delay=0)
    assert bound == pytest.approx(0.002 / 0.96 * (4.5 + 5), rel=1e-12)


def test_the_limits_of_the_conditions():
    lemma = lambda rate: theory.deviation_bound(
        change(smoothness=1.0), learning_rate=rate, period=4
    )
    assert lemma(1 / 16) == math.inf  # 4 g k L = 1
    assert lemma(0.999 / 16) < math.inf
    limit = 1 / (4 * math.sqrt(2))
    assert theory.largest_period(0.99 * limit / 7, 1.0) == 7
    assert theory.largest_period(1.01 * limit / 7, 1.0) == 6
    assert theory.largest_period(2.0, 1.0) == 0


@pytest.mark.parametrize("period", [1, 3, 8])
@pytest.mark.parametrize("dissimilarity", [0.0, 2.0])
@pytest.mark.parametrize("delay", [None, 0, 1, "streamed"])
def test_simulated_workers_keep_within_both_bounds(period, dissimilarity, delay):
    """Worker i minimises |x - c_i|² L / 2; the shares are unequal."""
    batches = np.array([1, 2, 2, 3])
    shares, dim = batches / batches.sum(), 40
    problem = change(smoothness=1.5, dissimilarity=dissimilarity)
    rng = np.random.default_rng(1)
    centres = rng.normal(size=[4, dim])
    centres -= shares @ centres
    spread = math.sqrt(shares @ (centres**2).sum(axis=1))
    centres *= dissimilarity / problem.smoothness / spread
    scale = problem.noise / np.sqrt(batches * dim)

    def gradient(x, rng):
        noise = scale[:, None] * rng.normal(size=x.shape)
        return problem.smoothness * (x - centres) + noise

    streamed = delay == "streamed"
    delay = 1 if streamed else period if delay is None else delay
    rate = 0.9 / (2 * math.sqrt(2)) / problem.smoothness / (period + delay)
    same = {"rate": rate, "period": period, "dim": dim, "start": 1.0}
    deviations, means = (
        train_streamed(gradient, shares, steps=60 * period, **same)
        if streamed
        else train(gradient, shares, delay=delay, rounds=60, **same)
    )
    gradients = problem.smoothness**2 * (means**2).sum(axis=1)
    # f is |x|² L / 2 and a constant, and starts at x = (1, ..., 1).
    problem = change(problem, gap=problem.smoothness * dim / 2)
    assert deviations.mean() < theory.deviation_bound(
        problem,
        learning_rate=rate,
        period=period,
        delay=delay,
        mean_square_gradient=gradients.mean(),
    )
    assert gradients.mean() < theory.gradient_bound(
        problem, learning_rate=rate, period=period, delay=delay, steps=60 * period
    )


# Corollary 1


@examples
@given(problems, st.integers(1, 20))
def test_each_condition_is_where_its_inequality_turns(problem, period):
    conditions = theory.speedup_conditions(problem, period)
    k, smooth = period, problem.smoothness
    # The learning rate of a number of steps that need not be an integer.
    rate = lambda steps: math.sqrt(problem.batch / steps) / problem.noise
    assert rate(conditions.step_size) * smooth == pytest.approx(1)
    assert 48 * (rate(conditions.stability) * k * smooth) ** 2 == pytest.approx(1)
    gamma = rate(conditions.deviation)
    apart = problem.workers * problem.noise**2 / problem.batch
    apart += 2 * k * problem.dissimilarity**2
    noise = gamma * smooth * problem.noise**2 / problem.batch
    assert 12 * gamma**2 * smooth**2 * k * apart == pytest.approx(noise)


@examples
@given(problems, st.integers(1, 20), st.floats(1, 100))
def test_corollary_1_follows_from_theorem_1(problem, period, factor):
    steps = math.ceil(factor * max(theory.speedup_conditions(problem, period)))
    rate = theory.speedup_learning_rate(problem, steps)
    bound = theory.gradient_bound(
        problem, learning_rate=rate, period=period, steps=steps
    )
    assert bound <= theory.speedup_bound(problem, steps) * (1 + 1e-12)


def test_corollary_1_by_hand():
    # L² M / sigma² = 32 / 9; 48 times k² = 4 of it; 144 · 512 · 4 · 4 / 729 · 8.5²
    conditions = theory.speedup_conditions(PROBLEM, period=2)
    assert conditions.step_size == pytest.approx(32 / 9)
    assert conditions.stability == pytest.approx(48 * 4 * 32 / 9)
    expected = 144 * 8**3 / 3**6 * 2**2 * 2**2 * 8.5**2
    assert conditions.deviation == pytest.approx(expected)
    assert theory.speedup_learning_rate(PROBLEM, 200) == pytest.approx(0.2 / 3)
    assert theory.speedup_bound(PROBLEM, 200) == pytest.approx(12 * 7 / 40)


@examples
@given(problems, st.integers(1, 10**9))
def test_the_speedup_period_is_the_largest_that_is_allowed(problem, steps):
    period = theory.speedup_period(problem, steps)
    needed = lambda k: max(theory.speedup_conditions(problem, k))
    assert needed(period + 1) > steps or period == steps
    assert period == 0 or needed(period) <= steps


@pytest.mark.parametrize(
    ("dissimilarity", "of_steps", "of_workers"),
    [(0.0, 1 / 2, -3 / 2), (1.0, 1 / 4, -3 / 4)],
)
def test_the_orders_of_the_period(dissimilarity, of_steps, of_workers):
    """At a fixed batch for each worker, which is 2 here."""

    def period(steps, workers=4):
        problem = change(
            workers=workers, batch=2 * workers, dissimilarity=dissimilarity
        )
        return theory.speedup_period(problem, steps)

    steps = 10**16
    slope = math.log(period(256 * steps) / period(steps), 256)
    assert slope == pytest.approx(of_steps, abs=0.01)
    slope = math.log(period(steps, 64) / period(steps, 4), 16)
    assert slope == pytest.approx(of_workers, abs=0.02)


def test_exchanges():
    problem = change(smoothness=1.0, noise=1.0, batch=4, dissimilarity=0.0)
    # 144 · 64 k² ≤ T
    assert theory.speedup_period(problem, steps=9216 * 25) == 5
    assert theory.speedup_period(problem, steps=9216 * 25 - 1) == 4
    # and a last, shorter round
    found = theory.exchanges(problem, steps=9216 * 25 + 1)
    rounds = 46_081
    assert found == {
        "S-SGD": 230_401,
        "Pipe-SGD": 230_401,
        "Local SGD": rounds,
        "CoCoD-SGD": rounds,
    }
    with pytest.raises(ValueError, match=r"steps=9215 are too few.*needs 9216"):
        theory.exchanges(problem, steps=9215)


# The deviation expected


@pytest.mark.parametrize(
    ("period", "delay"),
    [(6, 6), (6, 0), (6, 2), (1, 1), (4, 3), (6, "streamed"), (1, "streamed")],
)
def test_the_expected_deviation_is_that_of_simulated_workers(period, delay):
    """Gradients are noise and a constant of the worker's own; shares are unequal."""
    batches = np.array([1, 2, 2, 3])
    shares, dim = batches / batches.sum(), 2000
    drift = np.random.default_rng(1).normal(size=[4, dim])
    drift -= shares @ drift
    drift *= 0.7 / math.sqrt(shares @ (drift**2).sum(axis=1))
    scale = PROBLEM.noise / np.sqrt(batches * dim)

    def gradient(x, rng):
        return drift + scale[:, None] * rng.normal(size=x.shape)

    same = {"rate": 0.1, "period": period, "dim": dim}
    if delay == "streamed":
        deviations, _ = train_streamed(gradient, shares, steps=41 * period, **same)
        delay = 1
        # No sawtooth: every step finds pieces of all ages.
        assert np.ptp(deviations[period:]) < 0.5 * deviations[period:].mean()
    else:
        deviations, _ = train(gradient, shares, delay=delay, rounds=41, **same)
    expected = theory.expected_deviation(
        change(dissimilarity=0.7), learning_rate=0.1, period=period, delay=delay
    )
    # 40 rounds after the first, 2,000 coordinates: about 1 % of noise.
    assert deviations[period:].mean() == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("period", [2, 6, 50])
def test_noise_drives_cocod_this_much_further_than_local_sgd(period):
    expected = lambda delay: theory.expected_deviation(
        change(dissimilarity=0.0), learning_rate=0.1, period=period, delay=delay
    )
    ratio = expected(period) / expected(0)
    assert ratio == pytest.approx((3 * period - 1) / (period - 1))
    # Every step of delay adds the same.
    np.testing.assert_allclose(
        np.diff([expected(d) for d in range(period + 1)], 2), 0, atol=1e-12
    )


@pytest.mark.parametrize("period", [2, 6, 50])
def test_other_data_drive_cocod_this_much_further_than_local_sgd(period):
    expected = lambda delay: theory.expected_deviation(
        change(noise=0.0), learning_rate=0.1, period=period, delay=delay
    )
    ratio = expected(period) / expected(0)
    assert ratio == pytest.approx((7 * period - 1) / (period - 1))


@examples
@given(problems, st.floats(1e-4, 0.2), st.integers(1, 12), st.data())
def test_the_expected_deviation_is_within_lemma_2(problem, rate, period, data):
    case = {"learning_rate": rate, "period": period}
    case["delay"] = data.draw(st.integers(0, period))
    bound = theory.deviation_bound(problem, **case)
    expected = theory.expected_deviation(problem, **case)
    assume(bound < math.inf)
    assert expected <= bound


def test_without_noise_workers_deviate_by_their_data_alone():
    problem = change(noise=0.0, dissimilarity=2.0)
    steps = np.array([0, 1, 2, 3])
    deviation = theory.expected_deviation(problem, learning_rate=0.1, period=4, delay=0)
    assert deviation == pytest.approx((0.1 * 2.0) ** 2 * np.mean(steps**2))
    bound = theory.deviation_bound(problem, learning_rate=0.01, period=4)
    assert 0 < theory.expected_deviation(problem, learning_rate=0.01, period=4) <= bound


# Errors


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (
            lambda: change(smoothness=0.0),
            "smoothness=0.0 must be a finite number above",
        ),
        (lambda: change(noise=-1.0), "noise=-1.0"),
        (lambda: change(gap=math.nan), "gap=nan"),
        (lambda: change(dissimilarity=-1.0), "dissimilarity=-1.0"),
        (lambda: change(workers=2.0), "workers=2.0 must be an integer"),
        (lambda: change(batch=3), "batch=3 is that of all workers together"),
        (lambda: theory.largest_period(0.0, 1.0), "learning_rate=0.0"),
        (lambda: theory.largest_period(1.0, -1.0), "smoothness=-1.0"),
        (lambda: theory.largest_period(1.0, 1.0, -1), "delay=-1"),
        (
            lambda: theory.gradient_bound(
                PROBLEM, learning_rate=0.1, period=2, delay=3, steps=1
            ),
            "delay=3",
        ),
        (lambda: theory.speedup_conditions(PROBLEM, 0), "period=0"),
        (lambda: theory.speedup_conditions(change(noise=0.0), 2), "noise=0.0"),
        (lambda: theory.speedup_period(change(noise=0.0), 9), "noise=0.0"),
        (lambda: theory.speedup_bound(change(noise=0.0), 9), "noise=0.0"),
        (lambda: theory.speedup_learning_rate(change(noise=0.0), 9), "noise=0.0"),
        (lambda: theory.speedup_period(PROBLEM, 0), "steps=0"),
        (lambda: theory.speedup_bound(PROBLEM, 0), "steps=0"),
        (lambda: theory.speedup_learning_rate(PROBLEM, 0), "steps=0"),
        (
            lambda: theory.gradient_bound(
                PROBLEM, learning_rate=-0.1, period=1, steps=1
            ),
            "learning_rate=-0.1",
        ),
        (
            lambda: theory.deviation_bound(PROBLEM, learning_rate=0.1, period=0),
            "period=0",
        ),
        (
            lambda: theory.expected_deviation(
                PROBLEM, learning_rate=0.1, period=2, delay=3
            ),
            "delay=3",
        ),
    ],
)
def test_errors_name_the_argument(make, match):
    with pytest.raises(ValueError, match=match):
        make()
