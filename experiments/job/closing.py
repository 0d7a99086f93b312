"""What a run says at its end: where it has come, and what it has left."""

from pathlib import Path

import jax
from rich.console import Console
from rich.table import Table

import cocod_jax as cj
from experiments.config import RunConfig
from experiments.job.layout import Layout
from experiments.job.saving import Saver
from experiments.models import parameter_count
from experiments.tasks import Task


def interrupted(saver: Saver) -> str:
    """What there is of a run that was stopped, for people."""
    if not saver.has_begun:
        return (
            "Interrupted before the first round: nothing is saved, and an earlier run "
            "of this name is as it was."
        )
    if not saver.steps:
        return "Interrupted before the first checkpoint: --resume begins anew."
    return (
        "Interrupted; the log holds everything up to here, and --resume goes on from "
        f"the checkpoint of step {saver.steps[-1]}."
    )


def page_of(log: Path, console: Console) -> Path | None:
    """Writes the page of a run; None where it cannot, as the run is over anyway."""
    try:
        return cj.observe.page.write(log)
    except OSError as error:
        console.print(f"The page of the run cannot be written: {error}", style="red")
        return None


def table(
    config: RunConfig,
    layout: Layout,
    task: Task,
    epochs: list[dict[str, float]],
    path: Path,
    page: Path | None,
    model: Path | None,
) -> Table:
    """What came out, and where it is."""
    rows = Table(show_header=False, title=f"{config.algorithm}", min_width=60)
    shape = f"{layout.workers} workers on {layout.devices[0].platform}"
    if layout.each > 1:
        shape += f", {layout.each} devices each"
    if jax.process_count() > 1:
        shape += f", {jax.process_count()} processes"
    rows.add_row("run", f"{config.model} on {config.subject}, {shape}")
    rows.add_row("parameters", f"{parameter_count(task.init):,}")
    if epochs:
        last, unit = epochs[-1], task.unit
        name, value = task.result(last)
        rows.add_row("epochs", f"{last['epoch']:.4g}")
        rows.add_row("training loss", f"{last['train_loss']:.4f}")
        rows.add_row(name, f"{value} (consensus)")
        rows.add_row("speed", f"{last[f'{unit}_per_second']:,.0f} {unit}/s")
        if (utilisation := last.get("model_flops_utilisation")) is not None:
            rows.add_row("model FLOPs utilisation", f"{utilisation:.1%}")
        rows.add_row("figure", str(path.with_suffix(".png")))
    if page is not None:
        rows.add_row("page", str(page))
    rows.add_row("log", str(path))
    if model is not None:
        rows.add_row("model", str(model))
    return rows
