"""The figures of the benchmark, drawn from its log."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

from cocod_jax import plots, style
from experiments.cluster.network import links_of
from experiments.figures import records_of
from experiments.overlap.config import NAMES

# An algorithm of this library has its own colour; PyTorch's are grey.
COLOURS = dict(style.ALGORITHMS.values()) | {
    NAMES["streamed_optimizer"]: style.SKY_BLUE
}


def bars(log: Path, out: Path) -> None:
    """Seconds per local step of every algorithm, a panel for each rate.

    A bar is the median, the line at its end goes from the least to the greatest.

    Raises:
      ValueError: when the log has no result.
    """
    (results,) = records_of(log, "result")
    rates = list(dict.fromkeys(record["rate"] for record in results))
    columns = min(len(rates), 3)
    lines = math.ceil(len(rates) / columns)
    figure, axes = plt.subplots(
        lines,
        columns,
        figsize=(2 + 3.2 * columns, 3.8 * lines),
        layout="constrained",
        sharey=True,
        squeeze=False,
    )
    for axis in axes.flat[len(rates) :]:
        axis.set_axis_off()
    for axis, rate in zip(axes.flat, rates, strict=False):
        rows = [r for r in results if r["rate"] == rate and r["is_algorithm"]][::-1]
        names = [f"{r['algorithm']} ({r['side']})" for r in rows]
        values = [r["seconds_per_step"] for r in rows]
        colours = [
            COLOURS[r["algorithm"]] if r["side"] == "ours" else style.GREY for r in rows
        ]
        drawn = axis.barh(names, values, color=colours, xerr=_ranges(rows))
        axis.bar_label(drawn, fmt="%.2f s", padding=3, fontsize=9)
        compute = next(
            r["seconds_per_step"]
            for r in results
            if (r["rate"], r["side"], r["algorithm"]) == (rate, "ours", "local steps")
        )
        axis.axvline(compute, color=style.BLACK, linestyle=":", linewidth=1)
        axis.set(xlabel="seconds per local step\n(dotted: computation alone)")
        axis.set_title(links_of(rate), fontsize=11)
        axis.set_xlim(0, 1.25 * max(values))
        axis.locator_params(axis="x", nbins=5)
        style.tidy(axis)
        axis.grid(visible=False, axis="y")
    figure.savefig(out, dpi=160)
    plt.close(figure)


def _ranges(rows: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    """How far the least and the greatest measurement are from the median, per step."""
    each = []
    for row in rows:
        # Older logs repeat PyTorch's steps, not its rounds.
        steps = np.median(row["repeats"]) / row["seconds_per_step"]
        low, high = min(row["repeats"]) / steps, max(row["repeats"]) / steps
        each.append((row["seconds_per_step"] - low, high - row["seconds_per_step"]))
    return [list(ends) for ends in zip(*each, strict=True)]


def timelines(log: Path, out: Path) -> None:
    """Two rounds of each algorithm as the profiler saw them, a panel for each rate.

    Raises:
      ValueError: when the log has no timeline.
    """
    figure = plots.timelines(log, by="rate")
    for axis in figure.axes:
        axis.set_title(links_of(axis.get_title()), fontsize=11)
    figure.savefig(out, dpi=160)
    plt.close(figure)
