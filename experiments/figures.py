"""Figures, drawn from logs and from nothing else."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

from experiments import logbook

# Okabe and Ito's colours, which colour-blind readers can tell apart.
STYLES = {
    "ssgd": ("S-SGD", "#000000"),
    "pipe_sgd": ("Pipe-SGD", "#E69F00"),
    "local_sgd": ("Local SGD", "#009E73"),
    "cocod": ("CoCoD-SGD", "#D55E00"),
}


def training_curves(logs: Sequence[Path], out: Path) -> None:
    """Training loss and test accuracy against epochs, one curve an algorithm.

    Runs of one algorithm that differ by their seed become one curve: their mean, and
    a band from the lowest to the highest.

    Args:
      logs: the JSONL logs of :mod:`experiments.train`.
      out: the PNG file to write.

    Raises:
      ValueError: when a log has no finished epoch.
    """
    runs = by_algorithm(logs)
    first = next(iter(runs.values()))[0]["run"][0]
    config = first["config"]
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for algorithm in (name for name in STYLES if name in runs):
        for axis, value in zip(axes, ("train_loss", "test_accuracy"), strict=True):
            curve(axis, runs[algorithm], value, *STYLES[algorithm])
    axes[0].set(ylabel="training loss", yscale="log")
    axes[1].set(ylabel="test accuracy of the consensus [%]")
    accuracies = [
        e["test_accuracy"] for rs in runs.values() for r in rs for e in r["epoch"]
    ]
    axes[1].set_ylim(100 * max(0, np.median(accuracies) - 0.06), 100)
    for axis in axes:
        axis.set_xlabel("epoch")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    axes[1].legend(frameon=False, loc="lower right")
    seeds = max(len(group) for group in runs.values())
    figure.suptitle(
        f"{config['model']} (width {config['width']}) on {config['data']}, "
        f"{first['workers']} workers, period {config['period']}"
        + (f", {seeds} seeds" if seeds > 1 else ""),
        fontsize=11,
    )
    figure.savefig(out, dpi=160)
    plt.close(figure)


def by_algorithm(logs: Sequence[Path]) -> dict[str, list[dict[str, Any]]]:
    """The records of every log, by the algorithm that it is of.

    Raises:
      ValueError: when a log has no finished epoch.
    """
    runs = defaultdict(list)
    for path in logs:
        records = logbook.read(path)
        if "epoch" not in records:
            raise ValueError(f"{path} has no finished epoch to draw.")
        runs[records["run"][0]["config"]["algorithm"]].append(records)
    return runs


def curve(
    axis: Any,
    runs: Sequence[dict[str, list[dict[str, Any]]]],
    value: str,
    label: str,
    colour: str,
    scale: float = 1.0,
) -> None:
    """The mean over runs against epochs, times ``scale``, and a band of all of them."""
    epochs = min(len(records["epoch"]) for records in runs)
    rows = np.array([[e[value] for e in r["epoch"][:epochs]] for r in runs])
    if value == "test_accuracy":
        rows = 100 * rows
    x = [scale * e["epoch"] for e in runs[0]["epoch"][:epochs]]
    axis.plot(x, rows.mean(axis=0), color=colour, label=label, linewidth=1.8)
    if len(rows) > 1:
        axis.fill_between(
            x, rows.min(axis=0), rows.max(axis=0), color=colour, alpha=0.15, linewidth=0
        )
