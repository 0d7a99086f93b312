"""The configuration of the study of streamed exchanges.

``python -m experiments.streaming`` takes a quarter of an hour on 2 CPU cores. Expected
with equal and with moderately skewed data: streamed workers drift about as far as those
of Local SGD, several times less than CoCoD-SGD's, and end with a training loss like
Local SGD's and below CoCoD-SGD's. With one class on each worker Local SGD is better.

``--model resnet18`` trains ResNet-18 on mnist5k instead, a process for each run: that
takes days on 2 CPU cores, and is meant for GPUs.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from experiments.config import Measured, TrainConfig
from experiments.options import Count, NonNegative, Options, Partition, Positive, Seed

COMPARED: tuple[Measured, ...] = (
    "ssgd",
    "local_sgd",
    "just_in_time",
    "cocod",
    "streamed",
)
JUST_IN_TIME = 1  # its delay: that of a streamed round
ROW = 15  # local steps between two looks; odd, so that they see all phases of a period

Optimizer = Literal["sgd", "adamw"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamingConfig(Options):
    """What is trained, and on which clock."""

    model: Literal["mlp", "resnet18"] = "mlp"
    """A network of one hidden layer on 8 x 8 digits, or ResNet-18 on mnist5k."""
    workers: Count = 10
    """N, as many as there are classes."""
    periods: tuple[Count, ...] = (4, 8, 16, 32)
    """k."""
    partitions: tuple[Partition, ...] = ("iid", "dirichlet:0.3", "by_class")
    """How the training data are split."""
    optimizers: tuple[Optimizer, ...] = ("sgd", "adamw")
    """SGD with momentum 0.9, and AdamW."""
    seeds: tuple[Seed, ...] = tuple(range(8))
    """Each draws a network, a split and batches, the same for all algorithms."""
    sgd_rates: tuple[Positive, ...] = (0.03, 0.1, 0.3, 1.0)
    """Learning rates of the MLP; each algorithm gets the one with the least training
    loss, for each period, split and optimizer."""
    adamw_rates: tuple[Positive, ...] = (0.003, 0.01, 0.03, 0.1)
    """The same for AdamW."""
    steps: Count = 480
    """Local steps of the MLP, a multiple of 15 and of all periods."""
    batch_size: Count = 8
    """Examples in a local batch."""
    hidden: Count = 32
    """Units of the MLP's hidden layer."""
    epochs: Count = 10
    """Of ResNet-18; as many steps as the smallest shard has batches."""
    width: Count = 12
    """Channels of ResNet-18's first stage."""
    ratios: tuple[Positive, ...] = (0.5, 2.0, 8.0)
    """Tm / Tc on the clock."""
    latency: NonNegative = 0.02
    """Of a message on the clock, in local steps."""
    jitter: NonNegative = 0.1
    """How much the steps vary on the clock: their coefficient of variation."""
    out: Path = Path("runs/streaming")
    """Folder for the logs, the tables and the figure."""

    def __post_init__(self):
        super().__post_init__()
        if len(self.seeds) < 2:
            raise ValueError(f"seeds={self.seeds} must be two or more, for a spread.")
        for unit in (ROW, *self.periods):
            if self.steps % unit:
                raise ValueError(
                    f"steps={self.steps} must be a multiple of {unit}, as of all "
                    f"periods {self.periods} and of {ROW}."
                )

    def kinds(self) -> Iterator[tuple[Optimizer, Measured, int]]:
        """Optimizer, algorithm and period; S-SGD has period 1 alone."""
        for optimizer, name in itertools.product(self.optimizers, COMPARED):
            for period in (1,) if name == "ssgd" else self.periods:
                yield optimizer, name, period


@dataclasses.dataclass(frozen=True, kw_only=True)
class MlpProblem(Options):
    """What is learnt: an MLP on digits, once for every split and seed."""

    partitions: tuple[Partition, ...]
    seeds: tuple[Seed, ...]
    workers: Count
    steps: Count
    batch_size: Count
    hidden: Count


@dataclasses.dataclass(frozen=True, kw_only=True)
class MlpRun(MlpProblem):
    """All that one program of the MLP trains: every split, rate and seed."""

    algorithm: Measured
    period: int
    optimizer: Optimizer
    rates: tuple[float, ...]
    out: Path

    @property
    def log(self) -> Path:
        """Its log."""
        name = f"mlp-{self.optimizer}-{self.algorithm}-k{self.period}.jsonl"
        return self.out / name


def mlp_runs(config: StreamingConfig) -> list[MlpRun]:
    """The programs of the study, in order."""
    rates = {"sgd": config.sgd_rates, "adamw": config.adamw_rates}
    return [
        MlpRun(
            algorithm=name,
            period=period,
            optimizer=optimizer,
            rates=rates[optimizer],
            partitions=config.partitions,
            seeds=config.seeds,
            workers=config.workers,
            steps=config.steps,
            batch_size=config.batch_size,
            hidden=config.hidden,
            out=config.out,
        )
        for optimizer, name, period in config.kinds()
    ]


def resnet_runs(config: StreamingConfig) -> list[TrainConfig]:
    """A run for each kind, split and seed; the rates are the main job's, or usual."""
    rates = {"sgd": 0.2, "adamw": 0.002}
    return [
        TrainConfig(
            algorithm="cocod" if name == "just_in_time" else name,
            delay=JUST_IN_TIME if name == "just_in_time" else None,
            period=period,
            optimizer=optimizer,
            learning_rate=rates[optimizer],
            partition=partition,
            seed=seed,
            workers=config.workers,
            width=config.width,
            epochs=config.epochs,
            batch_size=config.batch_size,
            out=config.out,
        )
        for optimizer, name, period in config.kinds()
        for partition, seed in itertools.product(config.partitions, config.seeds)
    ]
