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
from experiments.figures import records_of
from experiments.overlap.network import links_of

OURS, THEIRS = style.VERMILION, style.GREY


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
        colours = [OURS if "CoCoD" in name else THEIRS for name in names]
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
        axis.spines[["top", "right"]].set_visible(False)
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


def unequal(log: Path, out: Path) -> None:
    """Images per second and idle time by the shares; rounds with and without pauses.

    Raises:
      ValueError: when the log has no result.
    """
    (results,) = records_of(log, "result")
    shares = [r for r in results if "shares" in r and r["worker"] == 0]
    pauses = [r for r in results if "pauses" in r and r["worker"] == 0]
    names = [f"{r['shares']} {tuple(r['micro_batches'])}" for r in shares]
    figure, (speed, idle, stopped) = plt.subplots(
        1, 3, figsize=(11, 3), layout="constrained"
    )
    drawn = speed.bar(
        names, [r["images_per_second"] for r in shares], color=[THEIRS, OURS]
    )
    speed.bar_label(drawn, fmt="%.0f", fontsize=9)
    speed.set_title("images per second, all workers", fontsize=11)
    of_worker = lambda worker: [
        100 * r["idle"] for r in results if "shares" in r and r["worker"] == worker
    ]
    idle_workers = {
        "fast worker": (of_worker(0), style.EXCHANGE),
        "slow worker": (of_worker(1), style.COMPUTE),
    }
    _pairs(idle, names, idle_workers, fmt="%.0f")
    idle.set_title("idle [%]", fontsize=11)
    rounds = {
        f"{field} pauses": ([r[field] for r in pauses], colour)
        for field, colour in (("without", THEIRS), ("with", OURS))
    }
    _pairs(stopped, [r["pauses"] for r in pauses], rounds, fmt="%.2f")
    stopped.set_title("seconds per round", fontsize=11)
    for axis in figure.axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(out, dpi=160)
    plt.close(figure)


def _pairs(
    axis: plt.Axes,
    names: Sequence[str],
    bars: Mapping[str, tuple[Sequence[float], str]],
    *,
    fmt: str,
) -> None:
    """Two bars at each name, with their values; ``bars`` has two labels."""
    offsets = dict(zip(bars, (-0.2, 0.2), strict=True))
    for label, (values, colour) in bars.items():
        places = [position + offsets[label] for position in range(len(names))]
        drawn = axis.bar(places, values, 0.36, color=colour, label=label)
        axis.bar_label(drawn, fmt=fmt, fontsize=9)
    axis.set_xticks(range(len(names)), names)
    axis.legend(frameon=False, fontsize=9)
