"""The configuration of the study of the family.

``python -m experiments.compare`` takes a quarter of an hour on 2 CPU cores. Expected:
with equal data most rules end within a point of accuracy of S-SGD; with skewed data
those that let workers go far apart fall behind.
"""

import dataclasses
from pathlib import Path

from experiments.options import Count, NonNegative, Partition, Positive, Seed
from experiments.streaming.config import ROW, MlpProblem


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareConfig(MlpProblem):
    """A network of one hidden layer on 8 x 8 digits, by every algorithm."""

    partitions: tuple[Partition, ...] = ("iid", "dirichlet:0.3")
    """How the training data are split."""
    seeds: tuple[Seed, ...] = tuple(range(5))
    """Each draws a network, a split and batches, the same for all algorithms."""
    workers: Count = 8
    """N."""
    period: Count = 8
    """k, local steps in a round; it divides the steps."""
    steps: Count = 480
    """Local steps, the same batches for all algorithms; a multiple of 15."""
    batch_size: Count = 8
    """Examples in a local batch."""
    hidden: Count = 32
    """Units of the hidden layer."""
    rates: tuple[Positive, ...] = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
    """Learning rates; each algorithm gets the one with the least training loss, for
    each split."""
    ratios: tuple[Positive, ...] = (2.0, 8.0)
    """Tm / Tc on the clock, of an all-reduce of the model."""
    latency: NonNegative = 0.02
    """Of a message on the clock, in local steps."""
    jitter: NonNegative = 0.1
    """How much the steps vary on the clock: their coefficient of variation."""
    out: Path = Path("runs/compare")
    """Folder for the logs, the table and the figure."""

    def __post_init__(self):
        super().__post_init__()
        if len(self.seeds) < 2:
            raise ValueError(f"seeds={self.seeds} must be two or more, for a spread.")
        for unit in (ROW, self.period):
            if self.steps % unit:
                raise ValueError(f"steps={self.steps} must be a multiple of {unit}.")

    def runs(self, names: tuple[str, ...]) -> list["CompareRun"]:
        """A program for each algorithm."""
        problem = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(MlpProblem)
        }
        own = {"period": self.period, "rates": self.rates, "out": self.out}
        return [CompareRun(algorithm=name, **own, **problem) for name in names]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareRun(MlpProblem):
    """What one algorithm trains: every split, rate and seed."""

    algorithm: str
    period: int
    rates: tuple[float, ...]
    out: Path

    @property
    def log(self) -> Path:
        """Its log."""
        return self.out / f"{self.algorithm}.jsonl"
