"""Where a run's numbers go beside its log: tables, TensorBoard, Weights & Biases."""

import importlib.util
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager

import cocod_jax as cj
from cocod_jax.observe.loggers import Logger, read_jsonl
from experiments import logbook
from experiments.command import UsageError
from experiments.config import RunConfig

Write = Callable[[str, Mapping[str, float]], None]
"""Takes the kind of a record, "round" or "epoch", and its numbers with their "step"."""
PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}
"""By writer, the package that it needs."""


@contextmanager
def csv(config: RunConfig) -> Iterator[dict[str, Logger]]:
    """Two tables, since a table's columns are the same in every row."""
    folder = config.folder
    with (
        cj.loggers.to_csv(folder / "rounds.csv") as rounds,
        cj.loggers.to_csv(folder / "epochs.csv") as epochs,
    ):
        yield {"round": rounds, "epoch": epochs}


@contextmanager
def tensorboard(config: RunConfig) -> Iterator[dict[str, Logger]]:
    """Curves in a folder."""
    folder = config.folder / "tensorboard"
    shutil.rmtree(folder, ignore_errors=True)
    with cj.loggers.to_tensorboard(folder) as log:
        yield {"round": log, "epoch": log}


@contextmanager
def wandb(config: RunConfig) -> Iterator[dict[str, Logger]]:
    """A run with the log's name."""
    config.folder.mkdir(parents=True, exist_ok=True)
    with cj.loggers.to_wandb(
        project="cocod_jax",
        name=config.log.stem,
        config=logbook.plain(config),
        dir=str(config.folder),
    ) as log:
        yield {"round": log, "epoch": log}


WRITERS: dict[str, Callable[[RunConfig], AbstractContextManager[dict[str, Logger]]]] = {
    "csv": csv,
    "tensorboard": tensorboard,
    "wandb": wandb,
}


def check_installed(config: RunConfig) -> None:
    """Raises UsageError unless what the writers need is there."""
    for name in config.writers:
        package = PACKAGES.get(name)
        if package is not None and importlib.util.find_spec(package) is None:
            raise UsageError(
                f"writers={name!r} needs {package}: pip install 'cocod-jax[{name}]'"
            )


@contextmanager
def opened(config: RunConfig, *, resumed: bool) -> Iterator[Write]:
    """All writers of a configuration.

    What a killed run wrote after its last checkpoint is not to be there twice: a run
    that goes on writes anew what its log still has.

    Args:
      config: of the run.
      resumed: whether it goes on.
    """
    with ExitStack() as stack:
        loggers = [
            stack.enter_context(WRITERS[name](config)) for name in config.writers
        ]

        def write(kind: str, numbers: Mapping[str, float]) -> None:
            scalars = {name: n for name, n in numbers.items() if name != "step"}
            for logger in loggers:
                logger[kind](int(numbers["step"]), scalars)

        if resumed and loggers:
            records = read_jsonl(config.log)
            each = [(k, r) for k in ("round", "epoch") for r in records.get(k, [])]
            for kind, record in sorted(each, key=lambda item: item[1]["step"]):
                write(kind, record)
        yield write
