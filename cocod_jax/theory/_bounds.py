"""Lemma 2 and Theorem 1: what period and learning rate do to a run."""

import dataclasses
import math

import numpy as np

from cocod_jax._checks import (
    check_counts,
    check_kind,
    check_non_negative,
    check_period,
    check_positive,
    check_whole,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    r"""The constants that the paper assumes of a problem and of its workers.

    Units are those of the loss, [f], and of the parameters, [x].

    Attributes:
      smoothness: L, the Lipschitz constant of every :math:`\nabla f_i`, above 0, in
        [f]/[x]².
      noise: :math:`\sigma`, 0 or more, in [f]/[x]: one sample's gradient has a
        variance of at most :math:`\sigma^2`, summed over coordinates.
      gap: :math:`f(\hat x_0) - f^*`, 0 or more, in [f]; only the two bounds on the
        gradient use it.
      workers: N.
      batch: M, samples in one step of all workers together, at least one for each.
      dissimilarity: :math:`\zeta`, 0 or more, in [f]/[x], with
        :math:`\sum_i p_i \|\nabla f_i - \nabla f\|^2 \le \zeta^2`; 0 for workers
        that draw from the same data (iid).

    Raises:
      ValueError: when a value is out of its range.

    Examples:
      >>> from cocod_jax import theory
      >>> problem = theory.Problem(
      ...     smoothness=1.0, noise=1.0, gap=1.0, workers=4, batch=4
      ... )
    """

    smoothness: float
    noise: float
    gap: float
    workers: int
    batch: int
    dissimilarity: float = 0.0

    def __post_init__(self):
        check_positive(smoothness=self.smoothness)
        check_non_negative(
            noise=self.noise, gap=self.gap, dissimilarity=self.dissimilarity
        )
        check_counts(workers=self.workers, batch=self.batch)
        if self.batch < self.workers:
            raise ValueError(
                f"batch={self.batch} is that of all workers together, so it must be "
                f"at least workers={self.workers}."
            )


def deviation_bound(
    problem: Problem,
    *,
    learning_rate: float,
    period: int,
    delay: int | None = None,
    mean_square_gradient: float = 0.0,
) -> float:
    r"""Lemma 2: a bound on how far from their mean the workers compute gradients.

    .. math::

       \frac1T \sum_t \sum_i p_i \, E \|\hat x_t - x_t^i\|^2 \le
       \frac{8 \gamma^2 k}{1 - 16 \gamma^2 k^2 L^2} \Bigl( \frac{N \sigma^2}{M}
       + 2 k \zeta^2 + \frac{2k}{T} \sum_t E \|\nabla f(\hat x_t)\|^2 \Bigr)

    That is the paper's, for d = k. With another delay :math:`(k + d) / 2` takes the
    place of k, as derived here: the proof needs no more of 2k than that a worker never
    carries more local steps which the others have not seen. The same holds for each
    coordinate of a streamed round, with d = 1.

    Args:
      problem: the constants.
      learning_rate: :math:`\gamma`, above 0, in [x]²/[f].
      period: k.
      delay: d, 0 (Local SGD) to ``period``; None is the period (CoCoD-SGD), and 1 is
        a streamed round's.
      mean_square_gradient: the average of :math:`\|\nabla f(\hat x_t)\|^2` over
        steps, 0 or more, in ([f]/[x])².

    Returns:
      The bound in [x]², infinite unless :math:`2 \gamma (k + d) L < 1`.

    Raises:
      TypeError: when ``problem`` is not a Problem.
      ValueError: when an argument is out of its range.

    Examples:
      >>> problem = cj.theory.Problem(
      ...     smoothness=1.0, noise=1.0, gap=1.0, workers=4, batch=4
      ... )
      >>> print(cj.theory.deviation_bound(problem, learning_rate=0.1, period=2))
      0.444
    """
    check_problem(problem)
    check_non_negative(mean_square_gradient=mean_square_gradient)
    half = _half_of_unseen(period, delay)
    apart = spread(problem, half) + 2 * half * mean_square_gradient
    # The lemma's factor is D2 of the theorem without its L².
    factor = _d2(problem.smoothness, learning_rate, half) / problem.smoothness**2
    return factor * apart


def gradient_bound(
    problem: Problem,
    *,
    learning_rate: float,
    period: int,
    delay: int | None = None,
    steps: int,
) -> float:
    r"""Theorem 1: a bound on the average squared gradient of the consensus.

    .. math::

       \frac1T \sum_t E \|\nabla f(\hat x_t)\|^2 \le \frac1{D_1} \Bigl(
       \frac{2 (f(\hat x_0) - f^*)}{T \gamma} + D_2 \bigl( \frac{N \sigma^2}{M}
       + 2 k \zeta^2 \bigr) + \frac{\gamma L \sigma^2}{M} \Bigr), \quad
       D_2 = \frac{8 \gamma^2 L^2 k}{1 - 16 \gamma^2 k^2 L^2}, \;
       D_1 = 1 - 2 k D_2

    For d = k; with another delay, also a streamed round's, :math:`(k + d) / 2` takes
    the place of k, as in :func:`deviation_bound`.

    Args:
      problem: the constants.
      learning_rate: :math:`\gamma`, above 0, in [x]²/[f].
      period: k.
      delay: d, 0 (Local SGD) to ``period``; None is the period (CoCoD-SGD), and 1 is
        a streamed round's.
      steps: T, local steps of every worker.

    Returns:
      The bound in ([f]/[x])², infinite where the theorem does not hold: unless
      :math:`\gamma L \le 1` and :math:`D_1 > 0` (:func:`largest_period`).

    Raises:
      TypeError: when ``problem`` is not a Problem.
      ValueError: when an argument is out of its range.

    Examples:
      >>> problem = cj.theory.Problem(
      ...     smoothness=1.0, noise=1.0, gap=1.0, workers=4, batch=400
      ... )
      >>> for period in 1, 8, 17, 18:
      ...     bound = cj.theory.gradient_bound(
      ...         problem, learning_rate=0.01, period=period, steps=100_000
      ...     )
      ...     print(f"{period} {bound:.4f}")
      1 0.0020
      8 0.0024
      17 0.0163
      18 inf
    """
    check_problem(problem)
    check_counts(steps=steps)
    half = _half_of_unseen(period, delay)
    d2 = _d2(problem.smoothness, learning_rate, half)
    d1 = 1 - 2 * half * d2
    if learning_rate * problem.smoothness > 1 or d1 <= 0:
        return math.inf
    descent = 2 * problem.gap / (steps * learning_rate)
    noise = learning_rate * problem.smoothness * problem.noise**2 / problem.batch
    return (descent + d2 * spread(problem, half) + noise) / d1


def largest_period(
    learning_rate: float, smoothness: float, delay: int | None = None
) -> int:
    r"""The largest period for which Theorem 1 bounds anything at this learning rate.

    .. math:: D_1 > 0 \iff \gamma \frac{k + d}{2} L < \frac{1}{4 \sqrt 2} \approx 0.177

    This form of the condition is derived here. It is sufficient, not necessary: a
    longer period may work, but the theorem does not cover it.

    Args:
      learning_rate: :math:`\gamma`, above 0, in [x]²/[f]. The theory has
        no momentum; with momentum b, the usual stand-in is learning rate / (1 - b).
      smoothness: L, above 0, in [f]/[x]².
      delay: d, the same at every period, 0 or more; None is the period itself
        (CoCoD-SGD), and 1 is a streamed round's.

    Returns:
      k, or 0 when the learning rate is too large for any period.

    Raises:
      ValueError: when an argument is out of its range.

    Examples:
      >>> cj.theory.largest_period(learning_rate=0.01, smoothness=1.0)
      17
      >>> cj.theory.largest_period(learning_rate=0.01, smoothness=1.0, delay=1)
      34
    """
    check_positive(learning_rate=learning_rate, smoothness=smoothness)
    limit = 1 / (4 * math.sqrt(2) * learning_rate * smoothness)
    if delay is None:
        return math.ceil(limit) - 1
    check_whole(delay=delay)
    period = math.ceil(2 * limit - delay) - 1
    return period if period >= max(delay, 1) else 0


def expected_deviation(
    problem: Problem, *, learning_rate: float, period: int, delay: int | None = None
) -> float:
    r"""How far from their mean the workers compute gradients, for small steps.

    .. math::

       \overline{\sum_i p_i \, E \|x_i - \hat x\|^2} = \gamma^2 \Bigl(
       \frac{(N - 1) \sigma^2}{M} \, \overline{c} + \zeta^2 \, \overline{c^2} \Bigr),
       \qquad c_j = j + k \, [j < d], \quad j = 0, \dots, k - 1

    In step j of a round a worker carries c steps of its own that the others have not
    seen: those since the snapshot, and before the merge also those of the round
    before. The bars are means over the steps of a round. CoCoD-SGD's deviation is
    Local SGD's times

    .. math::

       \frac{\overline{c}(d = k)}{\overline{c}(d = 0)} = \frac{3k - 1}{k - 1}
       \text{ for } \zeta = 0, \qquad
       \frac{\overline{c^2}(d = k)}{\overline{c^2}(d = 0)} = \frac{7k - 1}{k - 1}
       \text{ for } \sigma = 0

    For d from 0 to k it grows with d, linearly for :math:`\zeta = 0`. A streamed round
    has the deviation of d = 1: each of its coordinates does, at a phase of its own, and
    the mean over a round's steps does not depend on the phase.

    Derived here, not in the paper, for gradients that do not change with x: exact
    for linear losses, the leading order in :math:`\gamma k L` for others. The first
    round, before which the workers agree, deviates less.

    Args:
      problem: the constants; noise and dissimilarity are taken to be as large as
        they may be.
      learning_rate: :math:`\gamma`, above 0, in [x]²/[f].
      period: k.
      delay: d, 0 (Local SGD) to ``period``; None is the period (CoCoD-SGD), and 1 is
        a streamed round's.

    Returns:
      The mean squared deviation in [x]², weighted with the workers' shares.

    Raises:
      TypeError: when ``problem`` is not a Problem.
      ValueError: when an argument is out of its range.

    Examples:
      >>> problem = cj.theory.Problem(
      ...     smoothness=1.0, noise=1.0, gap=1.0, workers=4, batch=4
      ... )
      >>> cocod, local_sgd = (
      ...     cj.theory.expected_deviation(
      ...         problem, learning_rate=0.1, period=6, delay=delay
      ...     )
      ...     for delay in (6, 0)
      ... )
      >>> print(f"{cocod / local_sgd:.1f}")
      3.4
    """
    check_problem(problem)
    period, delay = check_period(period, delay)
    check_positive(learning_rate=learning_rate)
    step = np.arange(period)
    unseen = step + period * (step < delay)
    noise = (problem.workers - 1) * problem.noise**2 / problem.batch
    drift = problem.dissimilarity**2
    return learning_rate**2 * float(np.mean(noise * unseen + drift * unseen**2))


def check_problem(problem: Problem) -> None:
    """Raises TypeError unless these are the constants of a problem."""
    check_kind(Problem, problem=problem)


def spread(problem: Problem, period: float) -> float:
    """What drives the workers apart in a step: noise, and different data."""
    noise = problem.workers * problem.noise**2 / problem.batch
    return noise + 2 * period * problem.dissimilarity**2


def _half_of_unseen(period: int, delay: int | None) -> float:
    """Half of the steps that a worker may carry unseen, which is k in the paper."""
    return sum(check_period(period, delay)) / 2


def _d2(smoothness: float, learning_rate: float, period: float) -> float:
    """Theorem 1's D2, infinite where Lemma 2 does not hold."""
    check_positive(learning_rate=learning_rate)
    reach = (4 * learning_rate * smoothness * period) ** 2
    if reach >= 1:
        return math.inf
    return 8 * (learning_rate * smoothness) ** 2 * period / (1 - reach)
