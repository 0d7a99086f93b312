"""The configuration of the study."""

import dataclasses
from pathlib import Path

CHUNK = 256  # local steps in one call of a compiled program


@dataclasses.dataclass(frozen=True, kw_only=True)
class IterationsConfig:
    """Sizes of the three parts."""

    workers: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    """The numbers of workers between which the speed-up is measured, from 1 on."""
    steps: int = 32768
    """Local steps of the longest runs; the next are half as long, and so on."""
    shortest: int = 256
    """Local steps of the shortest runs, a multiple of 256; ``steps`` is this times a
    power of 2, and at least this times twice the most workers."""
    period: int = 4
    """k of the runs that measure the speed-up."""
    runs: int = 16
    """Independent runs of everything, each with noise of its own."""
    noise: float = 20.0
    """The standard deviation of a sample's gradient; the smoothness is 1."""
    dissimilarity: float = 6.0
    """Above 0, of workers with different optima; all is also done with equal ones."""
    drift_workers: int = 8
    """How many workers drift apart."""
    drift_periods: tuple[int, ...] = (2, 4, 8, 16)
    """Each of them with all its delays."""
    drift_steps: int = 4096
    """Local steps of the runs that measure the drift, and the cost of a period; a
    multiple of 256."""
    long_periods: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    """The periods whose cost is measured, with the largest number of workers."""
    clock_workers: int = 64
    """How many workers learn digits."""
    clock_steps: int = 640
    """Local steps of theirs, a multiple of 4."""
    clock_runs: int = 3
    """Independent runs of each algorithm and rate."""
    rates: tuple[float, ...] = (0.57, 0.8, 1.1, 1.6, 2.3, 3.2)
    """The learning rates of which each algorithm gets the first to reach the goal."""
    goal: float = 0.05
    """The training loss below which it has to stay."""
    most_workers: int = 4096
    """A power of 4, as far as the clock runs on its own."""
    out: Path = Path("runs/iterations")
    """Folder for the log and the figures."""
