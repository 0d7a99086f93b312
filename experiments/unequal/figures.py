"""The figure of the study of unequal workers, drawn from its log."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

from cocod_jax import style
from experiments.figures import records_of

FIRST, SECOND = style.GREY, style.SKY_BLUE  # two bars that are compared


def unequal(log: Path, out: Path) -> None:
    """Images per second and idle time by the shares; rounds with and without pauses.

    A round's bar is the mean of its measurements, the line at its end their range.

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
        names, [r["images_per_second"] for r in shares], color=[FIRST, SECOND]
    )
    speed.bar_label(drawn, fmt="%.0f", fontsize=9)
    speed.set_title("images per second, all workers", fontsize=11)
    of_worker = lambda worker: [
        100 * r["idle"] for r in results if "shares" in r and r["worker"] == worker
    ]
    idle_workers = {"fast worker": of_worker(0), "slow worker": of_worker(1)}
    _pairs(idle, names, idle_workers, fmt="%.0f")
    idle.set_title("idle [%]", fontsize=11)
    fields = ("without", "with")
    rounds = {f"{field} pauses": [r[field] for r in pauses] for field in fields}
    repeats = np.array([r["repeats"] for r in pauses])  # [algorithms, repeats, fields]
    ranges = {
        label: np.abs(np.array(rounds[label]) - (low, high))
        for label, low, high in zip(
            rounds, repeats.min(axis=1).T, repeats.max(axis=1).T, strict=True
        )
    }
    _pairs(stopped, [r["pauses"] for r in pauses], rounds, fmt="%.2f", ranges=ranges)
    stopped.set_title("seconds per round", fontsize=11)
    for axis in figure.axes:
        axis.set_ylim(top=1.12 * axis.get_ylim()[1])  # for the numbers
        style.tidy(axis)
        axis.grid(visible=False, axis="x")
    figure.savefig(out, dpi=160)
    plt.close(figure)


def _pairs(
    axis: plt.Axes,
    names: Sequence[str],
    bars: Mapping[str, Sequence[float]],
    *,
    fmt: str,
    ranges: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Two bars at each name, with their values; ``bars`` has two labels."""
    colours, offsets = (FIRST, SECOND), (-0.2, 0.2)
    for (label, values), colour, offset in zip(
        bars.items(), colours, offsets, strict=True
    ):
        places = [position + offset for position in range(len(names))]
        error = None if ranges is None else ranges[label]
        drawn = axis.bar(places, values, 0.36, color=colour, label=label, yerr=error)
        axis.bar_label(drawn, fmt=fmt, fontsize=9)
    axis.set_xticks(range(len(names)), names)
    axis.legend(frameon=False, fontsize=9)
