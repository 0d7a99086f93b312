"""Corollary 1: linear speed-up, and how seldom workers may exchange for it."""

import bisect
import math
from typing import NamedTuple

from cocod_jax._checks import check_counts, check_positive
from cocod_jax.style import ALGORITHMS
from cocod_jax.theory._bounds import Problem, check_problem, spread


def speedup_learning_rate(problem: Problem, steps: int) -> float:
    r"""Corollary 1's learning rate, :math:`\gamma = \frac1\sigma \sqrt{M / T}`.

    Its unit is [x]/[f], while a learning rate has [x]²/[f]: the corollary assumes
    parameters that are scaled so that both are the same.

    Args:
      problem: the constants.
      steps: T, local steps of every worker.

    Returns:
      The learning rate.

    Raises:
      TypeError: when ``problem`` is not a Problem.
      ValueError: when ``steps`` is not an integer of at least 1, or the noise is 0.

    Examples:
      >>> problem = cj.theory.Problem(
      ...     smoothness=1.0, noise=2.0, gap=1.0, workers=4, batch=100
      ... )
      >>> cj.theory.speedup_learning_rate(problem, steps=10_000)
      0.05
    """
    check_problem(problem)
    check_counts(steps=steps)
    check_positive(noise=problem.noise)
    return math.sqrt(problem.batch / steps) / problem.noise


def speedup_bound(problem: Problem, steps: int) -> float:
    r"""Corollary 1: a bound on the average squared gradient that falls as 1/√(T M).

    .. math::

       \frac1T \sum_t E \|\nabla f(\hat x_t)\|^2 \le
       \frac{4 \sigma (f(\hat x_0) - f^* + L)}{\sqrt{T M}}

    It holds at :func:`speedup_learning_rate`, for the periods that
    :func:`speedup_period` allows, and no longer depends on the period: linear
    speed-up in the total batch, per step.

    Args:
      problem: the constants.
      steps: T, local steps of every worker.

    Returns:
      The bound in ([f]/[x])², in the corollary's units of parameters.

    Raises:
      TypeError: when ``problem`` is not a Problem.
      ValueError: when ``steps`` is not an integer of at least 1, or the noise is 0.

    Examples:
      >>> problem = cj.theory.Problem(
      ...     smoothness=1.0, noise=1.0, gap=1.0, workers=4, batch=400
      ... )
      >>> cj.theory.speedup_bound(problem, steps=10_000)
      0.004
    """
    check_problem(problem)
    check_counts(steps=steps)
    check_positive(noise=problem.noise)
    rise = problem.gap + problem.smoothness
    return 4 * problem.noise * rise / math.sqrt(steps * problem.batch)


class SpeedupConditions(NamedTuple):
    r"""Corollary 1's three lower bounds on the number of steps T.

    Attributes:
      step_size: T from which :math:`\gamma \le 1 / L`.
      stability: T from which :math:`48 \gamma^2 k^2 L^2 \le 1`, so that D1 is at least
        1/2.
      deviation: T from which the workers' deviation adds no more to the bound than
        the noise of the gradient does.
    """

    step_size: float
    stability: float
    deviation: float


def speedup_conditions(problem: Problem, period: int) -> SpeedupConditions:
    r"""How many steps a period needs before Corollary 1 holds.

    .. math::

       T \ge \max \Bigl\{ \frac{L^2 M}{\sigma^2}, \; \frac{48 M L^2 k^2}{\sigma^2}, \;
       \frac{144 M^3 L^2 k^2}{\sigma^6} \bigl( \frac{N \sigma^2}{M}
       + 2 k \zeta^2 \bigr)^2 \Bigr\}

    Args:
      problem: the constants.
      period: k.

    Returns:
      The three bounds; T must reach the largest.

    Raises:
      TypeError: when ``problem`` is not a Problem.
      ValueError: when ``period`` is not an integer of at least 1, or the noise is 0.

    Examples:
      >>> problem = cj.theory.Problem(
      ...     smoothness=1.0, noise=1.0, gap=1.0, workers=4, batch=4
      ... )
      >>> cj.theory.speedup_conditions(problem, period=2)
      SpeedupConditions(step_size=4.0, stability=768.0, deviation=36864.0)
    """
    check_problem(problem)
    check_counts(period=period)
    check_positive(noise=problem.noise)
    smooth = problem.batch * (problem.smoothness / problem.noise) ** 2
    share = problem.batch * spread(problem, period) / problem.noise**2
    return SpeedupConditions(
        step_size=smooth,
        stability=48 * smooth * period**2,
        deviation=144 * smooth * (period * share) ** 2,
    )


def speedup_period(problem: Problem, steps: int) -> int:
    r"""The largest period for which Corollary 1 promises linear speed-up.

    The corollary's conditions are solved for k here. At a fixed batch for each
    worker the order of k is

    .. math::

       k = O\bigl(T^{1/2} / N^{3/2}\bigr) \text{ for } \zeta = 0, \qquad
       k = O\bigl(T^{1/4} / N^{3/4}\bigr) \text{ for } \zeta > 0

    Args:
      problem: the constants.
      steps: T, local steps of every worker.

    Returns:
      k, at most T, or 0 when T is too small even for k = 1.

    Raises:
      TypeError: when ``problem`` is not a Problem.
      ValueError: when ``steps`` is not an integer of at least 1, or the noise is 0.

    Examples:
      >>> problem = cj.theory.Problem(
      ...     smoothness=1.0, noise=1.0, gap=1.0, workers=4, batch=4
      ... )
      >>> cj.theory.speedup_period(problem, steps=36864)
      2
    """
    check_problem(problem)
    check_counts(steps=steps)
    needed = lambda period: max(speedup_conditions(problem, period))
    return bisect.bisect_right(range(1, steps + 1), steps, key=needed)


def exchanges(problem: Problem, steps: int) -> dict[str, int]:
    r"""Exchanges in T steps, each algorithm at the longest period with linear speed-up.

    =====================  ==========================  ===========================
    algorithm              iid                         workers' data differ
    =====================  ==========================  ===========================
    S-SGD, Pipe-SGD        :math:`T`                   :math:`T`
    Local SGD, CoCoD-SGD   :math:`O(N^{3/2} T^{1/2})`  :math:`O(N^{3/4} T^{3/4})`
    =====================  ==========================  ===========================

    The periods come from :func:`speedup_period`; the orders hold at a fixed batch for
    each worker. Local SGD gets CoCoD-SGD's period, which is enough since its workers
    deviate less; a proof of its own may allow a period longer by a constant.
    The rows follow from Corollary 1; a table of the paper may count differently.

    Args:
      problem: the constants.
      steps: T, local steps of every worker.

    Returns:
      The number of exchanges by algorithm.

    Raises:
      TypeError: when ``problem`` is not a Problem.
      ValueError: when no period gives linear speed-up in so few steps, or the noise
        is 0.

    Examples:
      >>> problem = cj.theory.Problem(
      ...     smoothness=1.0, noise=1.0, gap=1.0, workers=4, batch=4
      ... )
      >>> cj.theory.exchanges(problem, steps=1_000_000)
      {'S-SGD': 1000000, 'Pipe-SGD': 1000000, 'Local SGD': 100000, 'CoCoD-SGD': 100000}
    """
    period = speedup_period(problem, steps)
    if not period:
        least = math.ceil(max(speedup_conditions(problem, 1)))
        raise ValueError(
            f"steps={steps} are too few for linear speed-up with any period; period "
            f"1 needs {least}."
        )
    rounds = math.ceil(steps / period)
    counts = {"ssgd": steps, "pipe_sgd": steps, "local_sgd": rounds, "cocod": rounds}
    return {ALGORITHMS[key][0]: count for key, count in counts.items()}
