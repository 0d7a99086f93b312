"""How long a local step takes, and how long an exchange."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from cocod_jax._checks import (
    check_choices,
    check_counts,
    check_non_negative,
    check_positive,
    check_sequence,
    check_shares,
    check_whole,
)

Topology = Literal["ring", "tree", "fastest", "neighbours"]


@dataclasses.dataclass(frozen=True)
class Link:
    r"""How long an exchange takes on a network.

    ===========  =============================================
    topology     seconds for N workers, B bytes from each
    ===========  =============================================
    ring         :math:`2 (N - 1) \, (l + B / (N w))`
    tree         :math:`2 \lceil \log_2 N \rceil \, (l + B / w)`
    fastest      the smaller of both, as libraries choose it
    neighbours   :math:`\min(2, N - 1) \, (l + B / w)`
    ===========  =============================================

    The first three are all-reduces; neighbours is for :class:`Gossip`: all parameters
    to each of two neighbours.

    Attributes:
      latency: l, seconds until a message begins to arrive, 0 or more.
      bandwidth: w, of one worker's link, above 0, in bytes per second (1 Gbit/s is
        1.25e8).
      topology: "ring", "tree", "fastest" or "neighbours".

    Raises:
      ValueError: when a value is out of its range.

    Examples:
      ResNet-18's parameters over 10 Gbit/s:

      >>> link = cj.timeline.Link(latency=50e-6, bandwidth=1.25e9)
      >>> print(f"{link.seconds(44.7e6, workers=16):.4f}")
      0.0685
    """

    latency: float
    bandwidth: float
    topology: Topology = "ring"

    def __post_init__(self):
        check_non_negative(latency=self.latency)
        check_positive(bandwidth=self.bandwidth)
        check_choices(get_args(Topology), topology=self.topology)

    def seconds(self, size: float, workers: int) -> float:
        """Seconds of one exchange.

        Args:
          size: bytes that each worker puts in, 0 or more.
          workers: N, at least 1.

        Returns:
          Seconds until every worker has the result.

        Raises:
          ValueError: when a value is out of its range.
        """
        check_non_negative(size=size)
        check_counts(workers=workers)
        seconds = {
            name: messages * (self.latency + part / self.bandwidth)
            for name, messages, part in (
                ("ring", 2 * (workers - 1), size / workers),
                ("tree", 2 * (workers - 1).bit_length(), size),
                ("neighbours", min(2, workers - 1), size),
            )
        }
        seconds["fastest"] = min(seconds["ring"], seconds["tree"])
        return seconds[self.topology]


@dataclasses.dataclass(frozen=True)
class Compute:
    """How long local steps take: constant, jittering, straggling, unequal.

    Attributes:
      seconds: the mean of a step at speed 1, without pauses, above 0.
      workers: N.
      jitter: the coefficient of variation of a step's time, 0 or more. Times are
        lognormal, independent over workers and steps.
      pause: seconds by which a straggling step lasts longer, 0 or more.
      pause_probability: the probability that a step straggles, 0 to 1, independent
        over workers and steps.
      speeds: one positive number for each worker, by which its steps are faster; None
        is 1 for all. Pauses do not depend on it.

    Raises:
      TypeError: when ``speeds`` is no sequence.
      ValueError: when a value is out of its range.

    Examples:
      >>> compute = cj.timeline.Compute(0.1, workers=2, speeds=(1, 0.5))
      >>> print(compute.draw(steps=3))
      [[0.1 0.1 0.1]
       [0.2 0.2 0.2]]
    """

    seconds: float
    workers: int
    jitter: float = 0.0
    pause: float = 0.0
    pause_probability: float = 0.0
    speeds: Sequence[float] | None = None

    def __post_init__(self):
        check_positive(seconds=self.seconds)
        check_counts(workers=self.workers)
        check_non_negative(jitter=self.jitter, pause=self.pause)
        check_shares(pause_probability=self.pause_probability)
        if self.speeds is not None:
            check_sequence(speeds=self.speeds)
            if len(self.speeds) != self.workers:
                raise ValueError(
                    f"speeds has {len(self.speeds)} entries, but workers="
                    f"{self.workers}; give one for each worker."
                )
            for worker, speed in enumerate(self.speeds):
                check_positive(**{f"speeds[{worker}]": speed})

    def draw(self, steps: int, seed: int = 0) -> np.ndarray:
        """Seconds of each step of each worker.

        Args:
          steps: how many; a longer draw begins with the same times.
          seed: seeds the random numbers.

        Returns:
          Seconds, float64 [N, steps].

        Raises:
          ValueError: when ``steps`` or ``seed`` is not an integer of 0 or more.
        """
        check_whole(steps=steps, seed=seed)
        variation, pauses = np.random.default_rng(seed).spawn(2)
        variance = math.log1p(self.jitter**2)  # the variance of the logarithm
        shape = (steps, self.workers)
        work = self.seconds * variation.lognormal(
            -variance / 2, math.sqrt(variance), shape
        )
        work /= 1.0 if self.speeds is None else np.asarray(self.speeds, float)
        work += self.pause * (pauses.random(shape) < self.pause_probability)
        return work.T
