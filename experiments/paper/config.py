"""The configuration of the paper's study, and the runs that it asks for.

``python -m experiments.paper`` takes about an hour on 2 CPU cores. Expected: CoCoD-SGD
ends at most a point of accuracy below S-SGD, in less than half its seconds where Tm is
twice Tc.
"""

import dataclasses
from pathlib import Path
from typing import Literal

from experiments import data
from experiments.config import Algorithm, Model, TrainConfig
from experiments.options import File, LinkRate, Options, Seed

# How fast each of four unequal workers is; equal shares give each the mean.
SPEEDS = (3, 2, 2, 1)
MODELS: tuple[Model, ...] = ("resnet18", "vgg16")
EQUAL: tuple[Algorithm, ...] = ("ssgd", "pipe_sgd", "local_sgd", "cocod")
UNEQUAL: tuple[Algorithm, ...] = ("ssgd", "local_sgd", "cocod")
WORKERS = {"cpu": 4, "paper": 16}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PaperConfig(Options):
    """Which study, and where its logs are."""

    scale: Literal["cpu", "paper"] = "cpu"
    """cpu: 4 workers and narrow networks; paper: 16 workers and full width, for
    GPUs."""
    data: Literal["mnist5k", "cifar10", "cifar100"] | None = None
    """The data set; default: the one that data_dir has, and mnist5k without it, which
    the paper's scale wants to be told."""
    data_dir: Path | None = None
    """Where the CIFAR archives are."""
    seeds: tuple[Seed, ...] = (0, 1, 2)
    """Each run is repeated for each of them."""
    overlap: File = Path("experiments/results/20261124_overlap/overlap.jsonl")
    """The log of ``experiments.overlap`` that Tc and Tm come from."""
    rates: tuple[LinkRate, ...] = ("1gbit", "500mbit")
    """The links in it to show; the last are those of the unequal workers."""
    out: Path = Path("runs/paper")
    """Folder for the logs, the figures and the table of claims."""


def default_data(config: PaperConfig) -> Literal["mnist5k", "cifar10", "cifar100"]:
    """The CIFAR data set that the folder has; without a folder, what is built in.

    Raises:
      ValueError: when the folder has neither, or none is given at the paper's scale.
    """
    if config.data_dir is not None:
        return data.cifar_in(config.data_dir)
    if config.scale == "paper":
        raise ValueError(
            "scale='paper' needs data_dir, the folder of the CIFAR archives; or say "
            "with data='mnist5k' that 16 workers shall share 4,000 digits."
        )
    return "mnist5k"


def equal(
    config: PaperConfig, model: Model, algorithm: Algorithm, seed: int
) -> TrainConfig:
    """A run on equal workers.

    The paper's learning rates, batch and period are not in the sources that we
    have: those here are our choice.
    """
    scaled = (
        TrainConfig()
        if config.scale == "cpu"
        else TrainConfig(width=None, epochs=160, batch_size=32, decay="step")
    )
    return dataclasses.replace(
        scaled,
        workers=WORKERS[config.scale],
        model=model,
        algorithm=algorithm,
        seed=seed,
        data=config.data or default_data(config),
        data_dir=config.data_dir,
        out=config.out / "equal",
    )


def unequal(
    config: PaperConfig, share: str, algorithm: Algorithm, seed: int
) -> TrainConfig:
    """A run of ResNet-18 on workers of which some are slower.

    All runs have the same total batch. Equal shares are micro-batches too, so that
    nothing but the shares differs. Half the epochs tell them apart.
    """
    run = equal(config, "resnet18", algorithm, seed)
    workers = WORKERS[config.scale]
    shares = SPEEDS * (workers // len(SPEEDS))
    mean = sum(shares) // len(shares)
    return dataclasses.replace(
        run,
        micro_batches=shares if share == "proportional" else (mean,) * workers,
        batch_size=run.batch_size // mean,
        epochs=run.epochs // 2,
        out=config.out / "unequal" / share,
    )
