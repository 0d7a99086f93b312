"""Evaluates a trained model: ``python -m experiments.evaluate runs/NAME``.

It loads what a run has left, its consensus and its configuration, and evaluates it on
the run's test data. A language model also writes a sample.
"""

import dataclasses
from pathlib import Path

import jax
import tyro
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from experiments import command
from experiments.job import saving
from experiments.tasks import task_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Which model, and where its data are."""

    model: tyro.conf.Positional[Path]
    """The folder of a run, or its file model.safetensors."""
    data_dir: Path | None = None
    """Where the CIFAR archives are; default: where the run had them."""
    data_file: Path | None = None
    """The text; default: where the run had it."""


def main(config: EvaluateConfig) -> None:
    """Prints what the model is worth."""
    run, arrays = saving.load(config.model)
    for name in ("data_dir", "data_file"):
        elsewhere = getattr(config, name)
        if elsewhere is not None:
            if not hasattr(run, name):
                raise command.UsageError(f"{name} is not for task={run.task!r}.")
            run = dataclasses.replace(run, **{name: elsewhere})
    with command.refused():
        task = task_of(run)
        model = saving.filled(jax.eval_shape(task.init, jax.random.key(0)), arrays)
        # Of which the test data alone are used.
        data = task.load(run.workers or len(run.micro_batches or (1,)))
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


if __name__ == "__main__":
    command.run(main, EvaluateConfig, __doc__)
