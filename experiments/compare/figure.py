"""Accuracy of every algorithm, a point for each seed."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

from cocod_jax.style import BLUE, ORANGE, tidy
from experiments.compare.config import CompareConfig
from experiments.compare.methods import METHODS
from experiments.compare.report import best


def draw(config: CompareConfig, out: Path) -> None:
    """A row for each algorithm, a column for each split; a bar is the mean."""
    found, names = best(config), [*METHODS]
    figure, axes = plt.subplots(
        1,
        len(config.partitions),
        figsize=(4.5 * len(config.partitions), 0.3 * len(names) + 1),
        layout="constrained",
        squeeze=False,
        sharey=True,
    )
    rows = np.arange(len(names))[::-1]
    for axis, partition in zip(axes[0], config.partitions, strict=True):
        for row, name in zip(rows, names, strict=True):
            accuracy = 100 * found[name, partition].accuracy
            axis.plot(accuracy, [row] * len(accuracy), "o", color=BLUE, markersize=4)
            axis.plot([accuracy.mean()], [row], "|", color=ORANGE, markersize=14)
        axis.set(title=partition, xlabel="test accuracy [%]")
        axis.set_yticks(rows, [METHODS[name].title for name in names])
        tidy(axis)
    figure.savefig(out, dpi=140)
    plt.close(figure)
