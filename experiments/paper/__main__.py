"""The study of the paper, once more: ``python -m experiments.paper``.

ResNet-18 and VGG-16 with S-SGD, Pipe-SGD, Local SGD and CoCoD-SGD, on equal and on
unequal workers, over several seeds. A run whose log says that it finished is not
repeated, so that the study can be stopped and resumed. The figures and the table of
claims come from the logs, and the times in them from the clock of
``cocod_jax.timeline`` with the Tc and Tm that ``experiments.overlap`` measured.
"""

import dataclasses
from pathlib import Path
from typing import Literal, get_args

import tyro

from cocod_jax.style import ALGORITHMS
from experiments import data
from experiments.compare import train
from experiments.config import Algorithm, Model, TrainConfig
from experiments.overlap.clock import Clock, read_clocks
from experiments.paper import figures
from experiments.paper.report import report

MODELS: tuple[Model, ...] = ("resnet18", "vgg16")
UNEQUAL: tuple[Algorithm, ...] = ("ssgd", "local_sgd", "cocod")
WORKERS = {"cpu": 4, "paper": 16}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PaperConfig:
    """Which study, and where its logs are."""

    scale: Literal["cpu", "paper"] = "cpu"
    """cpu: 4 workers and narrow networks; paper: 16 workers and full width, for
    GPUs."""
    data: Literal["mnist5k", "cifar10", "cifar100"] | None = None
    """The data set; default: the one that data_dir has, and mnist5k without it, which
    the paper's scale wants to be told."""
    data_dir: Path | None = None
    """Where the CIFAR archives are."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Each run is repeated for each of them."""
    overlap: Path = Path("experiments/results/20261124_overlap/overlap.jsonl")
    """The log of ``experiments.overlap`` that Tc and Tm come from."""
    rates: tuple[str, ...] = ("1gbit", "500mbit")
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
    shares = figures.SPEEDS * (workers // len(figures.SPEEDS))
    mean = sum(shares) // len(shares)
    return dataclasses.replace(
        run,
        micro_batches=shares if share == "proportional" else (mean,) * workers,
        batch_size=run.batch_size // mean,
        epochs=run.epochs // 2,
        out=config.out / "unequal" / share,
    )


def clocks_of(config: PaperConfig) -> dict[str, Clock]:
    """A clock for each of the links to show, from the overlap log.

    Raises:
      ValueError: when the log has not what figures and table need.
    """
    measured = read_clocks(config.overlap)
    if not config.rates or not set(config.rates) <= set(measured):
        raise ValueError(
            f"rates={config.rates!r} must be some of those in {config.overlap}, which "
            f"has {', '.join(measured)}; or give another log as overlap."
        )
    needed = [name for name, _ in ALGORITHMS.values()]
    for rate in config.rates:
        ours = measured[rate].measured
        if missing := [name for name in needed if name not in ours]:
            raise ValueError(
                f"overlap={str(config.overlap)!r} has no {', '.join(missing)} at "
                f"{rate}, but only {', '.join(ours)}; measure all algorithms with "
                "experiments.overlap."
            )
    return {rate: measured[rate] for rate in config.rates}


def main(config: PaperConfig) -> None:
    """Runs what has not run yet; leaves logs, figures and ``claims.md``."""
    clocks = clocks_of(config)
    logs: figures.Logs = {
        model: [
            train(equal(config, model, algorithm, seed))
            for seed in config.seeds
            for algorithm in get_args(Algorithm)
        ]
        for model in MODELS
    }
    shares = {
        share: [
            train(unequal(config, share, algorithm, seed))
            for algorithm in UNEQUAL
            for seed in config.seeds
        ]
        for share in figures.SHARES
    }
    figures.learning(logs, clocks, config.out / "learning.png")
    figures.speedup(clocks, config.out / "speedup.png")
    last = clocks[config.rates[-1]]
    figures.timelines(last, config.out / "timelines.png")
    figures.unequal(shares, last, config.out / "unequal.png")
    text = report(logs, shares, clocks)
    (config.out / "claims.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main(tyro.cli(PaperConfig, description=__doc__))
