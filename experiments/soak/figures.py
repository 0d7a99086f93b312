"""Memory and processor time of every load, against its calls."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

from cocod_jax.style import BLUE, GREY, tidy
from experiments.soak.config import SoakConfig
from experiments.soak.report import NAMES, samples

UNITS = {"streamed": "steps", "json": "descriptions"}


def draw(config: SoakConfig, out: Path) -> None:
    """A column for each load, after its warm-up."""
    runs = config.runs()
    figure, axes = plt.subplots(
        2,
        len(runs),
        figsize=(3.2 * len(runs), 4.8),
        layout="constrained",
        squeeze=False,
        sharex="col",
    )
    for column, run in zip(axes.T, runs, strict=True):
        found = samples(run)
        memory, time = column
        memory.plot(found.calls, found.memory, color=BLUE)
        time.plot(found.calls, found.core_ms, ".", color=BLUE, label="processor")
        time.plot(found.calls, found.ms, ".", color=GREY, label="clock", zorder=1)
        memory.set_title(NAMES[run.load], fontsize=10)
        memory.set_ylim(0, 1.2 * np.max(found.memory))
        # A few calls beside other programs would hide all others.
        time.set_ylim(0, 2 * np.median(found.ms))
        time.set_xlabel(UNITS.get(run.load, "rounds"))
        for axis in column:
            tidy(axis)
    axes[0, 0].set_ylabel("memory [MB]")
    axes[1, 0].set_ylabel("a call [ms]")
    axes[1, -1].legend(frameon=False, loc="lower right")
    figure.savefig(out, dpi=120)
    plt.close(figure)
