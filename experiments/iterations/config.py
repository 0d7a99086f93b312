"""The configuration of the study of iterations, drift and seconds.

``python -m experiments.iterations`` takes 2 minutes on 2 CPU cores. Expected: slopes of
steps against workers near -1, drifts as ``theory.expected_deviation`` has them, and a
loss that CoCoD-SGD reaches first where links are slow.
"""

import dataclasses
import itertools
from pathlib import Path

from experiments.options import Count, Options, Positive

CHUNK = 256  # local steps in one call of a compiled program
ROW = 4  # local steps between two looks at the training loss


@dataclasses.dataclass(frozen=True, kw_only=True)
class IterationsConfig(Options):
    """Sizes of the three parts."""

    workers: tuple[Count, ...] = (1, 2, 4, 8, 16, 32)
    """The numbers of workers between which the speed-up is measured, from 1 on."""
    steps: Count = 32768
    """Local steps of the longest runs; the next are half as long, and so on."""
    shortest: int = 256
    """Local steps of the shortest runs, a multiple of 256; ``steps`` is this times a
    power of 2, and at least this times four times the most workers."""
    period: Count = 4
    """k of the runs that measure the speed-up."""
    runs: Count = 16
    """Independent runs of everything, each with noise of its own."""
    noise: Positive = 20.0
    """The standard deviation of a sample's gradient; the smoothness is 1."""
    dissimilarity: Positive = 6.0
    """How far the workers' optima differ, above 0; all is also done with equal ones."""
    drift_workers: Count = 8
    """How many workers drift apart."""
    drift_periods: tuple[Count, ...] = (2, 4, 8, 16)
    """Each of them with all its delays."""
    drift_steps: Count = 4096
    """Local steps of the runs that measure the drift, and the cost of a period; a
    multiple of 256."""
    long_periods: tuple[Count, ...] = (1, 2, 4, 8, 16, 32, 64)
    """The periods whose cost is measured, with the largest number of workers."""
    clock_workers: Count = 64
    """How many workers learn digits."""
    clock_steps: Count = 640
    """Their local steps, a multiple of 4."""
    clock_runs: Count = 3
    """Independent runs of each algorithm and rate."""
    rates: tuple[Positive, ...] = (0.57, 0.8, 1.1, 1.6, 2.3, 3.2)
    """The learning rates; each algorithm gets the one that reaches the goal first."""
    goal: Positive = 0.05
    """Learnt is what keeps the training loss below this."""
    most_workers: Count = 4096
    """The most workers of the clock on its own, a power of 4."""
    out: Path = Path("runs/iterations")
    """Folder for the log and the figures."""

    def __post_init__(self):
        super().__post_init__()
        grow = all(fewer < more for fewer, more in itertools.pairwise(self.workers))
        if self.workers[0] != 1 or len(self.workers) < 2 or not grow:
            raise ValueError(
                f"workers={self.workers} must begin with 1 and grow, as (1, 2, 4) do: "
                "the speed-up is over one worker."
            )
        _check_at_least_two(runs=self.runs, drift_workers=self.drift_workers)
        _check_multiples(CHUNK, shortest=self.shortest, drift_steps=self.drift_steps)
        _check_multiples(ROW, clock_steps=self.clock_steps)
        halves, rest = divmod(self.steps, self.shortest)
        if rest or halves < 2 or halves & (halves - 1):
            raise ValueError(
                f"steps={self.steps} must be shortest={self.shortest} times 2, 4, 8 or "
                f"another power of 2, for example {self.shortest * 128}."
            )
        # All workers together need about this to reach what one reaches in half of
        # the steps, divided by 2 for the spread: less is not read off, but guessed.
        most = self.steps / 4 / max(self.workers)
        if self.shortest > most:
            raise ValueError(
                f"shortest={self.shortest} must be at most {most:g}, which is "
                f"steps={self.steps} over four times {max(self.workers)} workers; take "
                f"steps={self.shortest * 4 * max(self.workers)} or more."
            )


def _check_at_least_two(**values: int) -> None:
    """One run has no spread, and one worker does not drift."""
    for name, value in values.items():
        if value < 2:
            raise ValueError(f"{name}={value} must be at least 2.")


def _check_multiples(unit: int, **values: int) -> None:
    """Programs are compiled for ``unit`` steps: a rest would never be taken."""
    for name, value in values.items():
        if value < unit or value % unit:
            raise ValueError(
                f"{name}={value} must be a positive multiple of {unit}, for example "
                f"{unit * max(1, round(value / unit))}."
            )
