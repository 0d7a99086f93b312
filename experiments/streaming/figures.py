"""The figures of the study, from its logs and the clock."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

from cocod_jax.style import ALGORITHMS, tidy
from experiments.streaming.config import COMPARED, ROW, Optimizer, StreamingConfig
from experiments.streaming.results import (
    Setting,
    cells_of,
    clock,
    drifts_of,
)

SHOWN = 8  # the period of the curves, if it was run


def draw(config: StreamingConfig, optimizer: Optimizer, out: Path) -> None:
    """Drift and loss against the period, and loss against the clock; a column a split.

    Points are means over seeds; a bar goes from the least to the greatest.
    """
    cells, drifts = cells_of(config), drifts_of(config)
    shown = SHOWN if SHOWN in config.periods else config.periods[0]
    ratio = config.ratios[-1]
    figure, axes = plt.subplots(
        3,
        len(config.partitions),
        figsize=(4 * len(config.partitions), 9),
        layout="constrained",
        squeeze=False,
        sharey="row",
    )
    for column, partition in zip(axes.T, config.partitions, strict=True):
        for name in COMPARED:
            every = [Setting(optimizer, partition, period) for period in config.periods]
            losses = [cells[each, name].values["train_loss"] for each in every]
            _points(column[1], config.periods, losses, name)
            if name != "ssgd":
                apart = [drifts[each, name] for each in every]
                _points(column[0], config.periods, apart, name)
            line = clock(config, name, shown, ratio)
            ends = np.concatenate([[0], line.step_ends.max(axis=0)[ROW - 1 :: ROW]])
            curve = cells[Setting(optimizer, partition, shown), name].curve
            assert curve is not None
            label, colour = ALGORITHMS[name]
            column[2].plot(ends[1 : len(curve)], curve[1:], color=colour, label=label)
        column[0].set_title(partition)
        for axis in column[:2]:
            axis.set(xscale="log", yscale="log", xlabel="period k")
            axis.set_xticks(config.periods, map(str, config.periods))
            axis.minorticks_off()
        column[2].set(
            xscale="log",
            yscale="log",
            xlabel=f"clock [Tc], k = {shown}, Tm = {ratio:g} Tc",
        )
    for axis, label in zip(
        axes[:, 0], ("drift", "training loss", "training loss"), strict=True
    ):
        axis.set_ylabel(label)
    handles, labels = axes[2, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    for axis in figure.axes:
        tidy(axis)
    figure.savefig(out, dpi=140)
    plt.close(figure)


def _points(axis: Any, periods: Any, rows: list[np.ndarray], name: str) -> None:
    """Diverged runs are left out."""
    kept = [row[np.isfinite(row)] for row in rows]
    periods = [period for period, row in zip(periods, kept, strict=True) if row.size]
    mean, low, high = (
        np.array([of(row) for row in kept if row.size])
        for of in (np.mean, np.min, np.max)
    )
    axis.errorbar(
        periods,
        mean,
        (mean - low, high - mean),
        fmt="o-",
        color=ALGORITHMS[name][1],
        markersize=4,
        linewidth=1.2,
        elinewidth=0.8,
    )
