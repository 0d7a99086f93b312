"""Workers of unequal speed: how fast each is, and what each should get."""

import math
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from statistics import median
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from cocod_jax._checks import (
    check_counts,
    check_non_negative,
    check_positive,
    check_sequence,
    check_takes,
)


def measure_capability(step: Callable[[], Any], *, seconds: float = 1.0) -> float:
    """How many local steps per second this process takes.

    The first call, which compiles, does not count, and a pause in some of the
    others does not change the median. Give every worker an equal step to measure,
    and measure while all of them do: they may share a machine.

    Args:
      step: takes one local step and returns its arrays; called again and again, so
        that it must not donate what it needs again.
      seconds: how long to measure, above 0; at least three steps are taken.

    Returns:
      Steps per second, of this process.

    Raises:
      TypeError: when ``step`` is not a function without arguments.
      ValueError: when ``seconds`` is not a finite number above 0.

    Examples:
      >>> gradient = jax.jit(jax.grad(lambda w: (w**2).sum()))
      >>> capability = cj.workers.measure_capability(
      ...     lambda: gradient(jnp.ones(100)), seconds=0.01
      ... )
      >>> capability > 1
      True
    """
    check_takes((), step=step)
    check_positive(seconds=seconds)
    jax.block_until_ready(step())
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        jax.block_until_ready(step())
        times.append(time.perf_counter() - start)
    return 1 / median(times)


def gather_capabilities(own: float | Sequence[float]) -> tuple[float, ...]:
    """The capabilities of all workers, the same tuple in every process.

    All processes must call it. What is computed from it, such as
    :func:`batch_shares`, is then equal everywhere.

    Args:
      own: the capability of this process's worker; for several workers a sequence,
        of the same length in every process.

    Returns:
      One number for each worker, in the order of the processes.

    Raises:
      ValueError: when a capability is not a finite number above 0.

    Examples:
      >>> cj.workers.gather_capabilities([2.0, 1.0])  # one process with two workers
      (2.0, 1.0)
    """
    values = np.atleast_1d(np.asarray(own))
    # Arrays of objects have entries that are no numbers, and the check names them.
    check_positive(**{f"own[{i}]": value for i, value in enumerate(values)})
    gathered = multihost_utils.process_allgather(values, tiled=True)
    return tuple(gathered.tolist())


def batch_shares(
    capabilities: Sequence[float], total: int, *, minimum: int = 1
) -> tuple[int, ...]:
    r"""Divides a total among the workers, in proportion to their capabilities.

    .. math:: M_i \approx \frac{c_i}{\sum_j c_j} M, \qquad \sum_i M_i = M

    This is proportional sampling: all workers take equally long for a local step,
    and the same number of steps in a round. It serves three times:

    * **Batches**: M_i samples of a total batch M, or m_i
      :class:`cocod_jax.MicroBatches` of a total number.
    * **Shards**: ``batch_shares(batches, examples)``. Every worker then has
      at least as many local steps in its shard as ``examples // sum(batches)``, and
      all epochs end together after so many.
    * **Weights**: p_i = M_i / M is what ``cj.cocod(axis, weights=batches)`` takes
      from the batch sizes, or from the counts of micro-batches.

    Each worker gets its quota, rounded down, and the workers with the largest
    remainders get what is left, the first ones where remainders are equal. Workers
    below the minimum get the minimum, and the others share the rest.

    Args:
      capabilities: one positive, finite number for each worker, such as steps per
        second; only ratios matter (shared).
      total: M, what is divided, at least ``minimum`` for each worker.
      minimum: of one worker, at least 1.

    Returns:
      M_i, one integer for each worker; their sum is ``total``.

    Raises:
      TypeError: when the capabilities are no sequence.
      ValueError: when a capability is not positive and finite, when there is none,
        when ``total`` or ``minimum`` is not an integer of at least 1, or ``total`` is
        not enough for all workers.

    Examples:
      >>> batches = cj.workers.batch_shares((2.0, 1.0, 1.1), total=64)
      >>> batches
      (31, 16, 17)
      >>> cj.workers.batch_shares(batches, total=50_000)  # shards of the examples
      (24219, 12500, 13281)
      >>> rule = cj.cocod("workers", weights=batches)

    References:
      Shen et al., `Faster Distributed Deep Net Training: Computation and
      Communication Decoupled SGD <https://arxiv.org/abs/1906.12043>`_, IJCAI 2019:
      proportional sampling in heterogeneous environments.
    """
    check_sequence(capabilities=capabilities)
    check_positive(**{f"capabilities[{i}]": c for i, c in enumerate(capabilities)})
    check_counts(total=total, minimum=minimum)
    workers = len(capabilities)
    if not 0 < workers * minimum <= total:
        raise ValueError(
            f"total={total} cannot be divided among {workers} workers with at least "
            f"minimum={minimum} each."
        )
    # Fractions: what is rounded could miss the total, or tell equal workers apart.
    exact = [Fraction(float(c)) for c in capabilities]
    shares, rest = [minimum] * workers, total
    above = list(range(workers))
    while True:
        whole = sum(exact[i] for i in above)
        quotas = {i: rest * exact[i] / whole for i in above}
        above = [i for i, quota in quotas.items() if quota >= minimum]
        if len(above) == len(quotas):
            break
        rest -= minimum * (len(quotas) - len(above))
    for i, quota in quotas.items():
        shares[i] = math.floor(quota)
    by_remainder = sorted(above, key=lambda i: shares[i] - quotas[i])
    for i in by_remainder[: total - sum(shares)]:
        shares[i] += 1
    return tuple(shares)


def token_weights(tokens: Sequence[float], steps: Sequence[int]) -> tuple[float, ...]:
    r"""Weights of workers that got through unequal data in unequal numbers of steps.

    .. math:: w_i = c_i \cdot \frac{c_i}{k_i} \propto p_i

    The first factor is quantity, how much of the data a worker has seen; the second is
    quality, how many tokens its mean gradient is of. With equal batches it leaves the
    number of steps, and with equal steps the squared batch.

    A worker that has learnt from nothing takes no part in the exchange: its weight is
    0, and it still receives the mean of the others.

    Args:
      tokens: c_i, what each worker has learnt from since the last merge, 0 or more; any
        unit will do, such as samples (shared).
      steps: k_i, its local steps in that time (shared); at least 1, unless c_i is 0.
        Of :class:`cocod_jax.MicroBatches` the round's period, since a worker takes one
        step with all of them.

    Returns:
      w_i, one number for each worker, for :func:`cocod_jax.reweight`.

    Raises:
      TypeError: when one is no sequence.
      ValueError: when a number is negative or not finite, when a worker has learnt
        from something in no step, or they are not of equally many workers.

    Examples:
      >>> cj.workers.token_weights((600, 200), steps=(3, 2))
      (120000.0, 20000.0)
      >>> cj.workers.token_weights((600, 0), steps=(3, 0))  # the second is away
      (120000.0, 0.0)

    References:
      Douillard et al., `Decoupled DiLoCo for Resilient Distributed Pre-training
      <https://arxiv.org/abs/2604.21428>`_, 2026, Section 3.2.
    """
    check_sequence(tokens=tokens, steps=steps)
    if len(tokens) != len(steps):
        raise ValueError(
            f"tokens are of {len(tokens)} workers, but steps of {len(steps)}."
        )
    pairs = list(zip(tokens, steps, strict=True))
    check_non_negative(**{f"tokens[{i}]": c for i, (c, _) in enumerate(pairs)})
    check_counts(**{f"steps[{i}]": k for i, (c, k) in enumerate(pairs) if c})
    return tuple(float(c) ** 2 / k if c else 0.0 for c, k in pairs)
