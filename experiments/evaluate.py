"""Evaluates a trained model: ``python -m experiments.evaluate runs/NAME``.

It loads what a run has left, its consensus and its configuration, and evaluates it on
the run's test data. ``runs/NAME/checkpoints/STEP`` is the consensus at that step, also
of a run that goes on meanwhile. A language model also writes a sample.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import tyro
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

import cocod_jax as cj
from experiments import command, resize
from experiments.config import RunConfig
from experiments.job import saving
from experiments.tasks import Data, task_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Which model, and where its data are."""

    model: tyro.conf.Positional[Path]
    """The folder of a run, its file model.safetensors, or one of its checkpoints."""
    data_dir: Path | None = None
    """Where the CIFAR archives are; default: where the run had them."""
    data_file: Path | None = None
    """The text; default: where the run had it."""


def main(config: EvaluateConfig) -> None:
    """Prints what the model is worth."""
    folder = config.model.absolute()
    is_step = folder.parent.name == saving.CHECKPOINTS and folder.name.isdecimal()
    with command.refused():
        run, data, model = (of_checkpoint if is_step else of_model)(config)
    table = Table(
        show_header=False, title=f"{run.model} on {run.subject}", min_width=60
    )
    for name, value in data.evaluate(*model).items():
        table.add_row(name.replace("_", " "), f"{value:.4f}")
    console = Console()
    console.print(table)
    if data.sample is not None:
        sample = Text(data.sample(*model))
        console.print(Panel(sample, title="what it writes"))


def of_model(config: EvaluateConfig) -> tuple[RunConfig, Data, tuple[Any, Any]]:
    """The run, its data and the model that it has left."""
    run, arrays = saving.load(config.model)
    run = elsewhere(run, config)
    task = task_of(run)
    model = saving.filled(jax.eval_shape(task.init, jax.random.key(0)), arrays)
    # Of which the test data alone are used.
    data = task.load(run.workers or len(run.micro_batches or (1,)))
    return run, data, model


def of_checkpoint(config: EvaluateConfig) -> tuple[RunConfig, Data, tuple[Any, Any]]:
    """The run, its data and the consensus of the workers at a step."""
    folder = config.model.absolute()
    run, workers = saving.logged(folder.parent.parent)
    run = elsewhere(run, config)
    job = resize.job_of(run, workers)
    state = saving.state_of(folder, resize.beginning(job))
    return run, job.data, (cj.consensus(state), cj.consensus_model_state(state))


def elsewhere(run: RunConfig, config: EvaluateConfig) -> RunConfig:
    """The configuration of a run with its data where they are now."""
    for name in ("data_dir", "data_file"):
        now = getattr(config, name)
        if now is not None:
            if not hasattr(run, name):
                raise command.UsageError(f"{name} is not for task={run.task!r}.")
            run = dataclasses.replace(run, **{name: now})
    return run


if __name__ == "__main__":
    command.run(main, EvaluateConfig, __doc__)
