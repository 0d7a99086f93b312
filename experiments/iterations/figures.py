"""The figures of the study, drawn from its log and from nothing else."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

from cocod_jax.style import (
    ALGORITHMS,
    BLACK,
    BLUE,
    GREY,
    PURPLE,
    SKY_BLUE,
    tidy,
)
from experiments.figures import records_of

Records: TypeAlias = list[dict[str, Any]]

# Curves may lie on each other: a marker inside the next larger one shows both.
MARKERS = {"ssgd": ("o", 9), "local_sgd": ("s", 6), "cocod": ("D", 3.5)}
PERIODS = (SKY_BLUE, PURPLE, BLUE, BLACK)  # one colour each
LINES = {
    **{name: (*look, "-") for name, look in ALGORITHMS.items()},
    "just_in_time": (*ALGORITHMS["just_in_time"], "--"),
    "streamed": (*ALGORITHMS["streamed"], "-."),
    "ssgd_backward": ("S-SGD, sends during the backward pass", BLACK, ":"),
}
TEXT = "#555555"


def draw(log: Path, out: Path) -> None:
    """All figures into a folder."""
    speedup(log, out / "speedup.png")
    drift(log, out / "drift.png")
    seconds(log, out / "seconds.png")


def speedup(log: Path, out: Path) -> None:
    """Error after the longest runs, and steps to one error, against workers.

    Raises:
      ValueError: when the log has no results of that part.
    """
    runs, errors, slopes = records_of(log, "run", "error", "slope")
    period = runs[0]["config"]["period"]
    zetas = values_of(slopes, "dissimilarity")
    figure, axes = plt.subplots(2, 2, figsize=(9.4, 7.4), layout="constrained")
    for (left, right), zeta in zip(axes, zetas, strict=True):
        own = {r["algorithm"]: r for r in slopes if r["dissimilarity"] == zeta}
        error_panel(left, [r for r in errors if r["dissimilarity"] == zeta], own)
        steps_panel(right, own, period)
        workers = own["cocod"]["workers"]
        for axis, room in ((left, 2.2), (right, 3)):  # for the legend
            axis.set(xscale="log", yscale="log", xlabel="workers N")
            axis.set_xticks(workers, map(str, workers))
            axis.set_xlim(0.8, 1.25 * workers[-1])
            axis.set_ylim(top=room * axis.get_ylim()[1])
            axis.minorticks_off()
            axis.legend(frameon=False, fontsize=8.5, loc="upper right")
    finish(figure, out)


def error_panel(axis: Any, errors: Records, slopes: dict[str, dict[str, Any]]) -> None:
    """The error after most steps, below the bound."""
    steps = max(record["steps"] for record in errors)
    for name, slope in slopes.items():
        rows = [r for r in errors if (r["algorithm"], r["steps"]) == (name, steps)]
        table = [r["errors"] for r in rows]
        marked(axis, slope["workers"], table, name, slope["of_error"])
    bounds = [np.nan if r["bound"] is None else r["bound"] for r in rows]
    axis.plot(
        slope["workers"], bounds, "--", color=GREY, label="bound of Theorem 1", zorder=1
    )
    axis.set(
        title=f"error after {steps:,} steps, ζ = {rows[0]['dissimilarity']:g}",
        ylabel="mean of ‖∇f(x̂)‖² over the steps",
    )


def steps_panel(axis: Any, slopes: dict[str, dict[str, Any]], period: int) -> None:
    """Steps to one error; the background says how far the theory goes."""
    for name, slope in slopes.items():
        marked(axis, slope["workers"], slope["steps_needed"], name, slope["of_steps"])
    cocod = slopes["cocod"]
    workers = np.array(cocod["workers"])
    linear = np.mean(cocod["steps_needed"][0]) * workers[0] / workers
    axis.plot(workers, linear, "--", color=GREY, label="slope $-1$", zorder=1)
    promised = workers[np.array(cocod["promised_periods"]) >= period]
    if promised.size:
        axis.axvspan(0.8, 1.25 * promised[-1], color=GREY, alpha=0.12, linewidth=0)
        axis.text(
            0.88,
            0.06,
            f"Corollary 1 promises\nperiod {period} up to here",
            transform=axis.get_xaxis_transform(),
            fontsize=8.5,
            color=TEXT,
        )
    axis.set(
        title=f"steps to an error of {cocod['target']:.3f}, "
        f"ζ = {cocod['dissimilarity']:g}",
        ylabel="local steps",
    )


def marked(
    axis: Any,
    x: Sequence[int],
    rows: Sequence[Sequence[float]],
    name: str,
    slopes: Sequence[float],
) -> None:
    """The mean of ``rows``, its range, and the slope in the legend.

    The rows are [len(x), runs], or [len(x), resamples] where values are read off means
    over runs.
    """
    label, colour = ALGORITHMS[name]
    marker, size = MARKERS[name]
    table = np.array(rows)
    mean = table.mean(axis=1)
    axis.errorbar(
        x,
        mean,
        (mean - table.min(axis=1), table.max(axis=1) - mean),
        fmt=marker + "-",
        color=colour,
        markersize=size,
        markerfacecolor="white" if name == "ssgd" else colour,
        linewidth=1.2,
        elinewidth=0.8,
        label=f"{label}, slope ${np.mean(slopes):.2f}$ ± {np.std(slopes, ddof=1):.2f}",
    )


def drift(log: Path, out: Path) -> None:
    """Deviation against delay, beside the expected; and what long periods cost.

    Raises:
      ValueError: when the log has no results of that part.
    """
    deviations, costs = records_of(log, "deviation", "cost")
    zetas = values_of(deviations, "dissimilarity")
    figure, axes = plt.subplots(1, 3, figsize=(12.3, 3.9), layout="constrained")
    for axis, zeta in zip(axes, zetas, strict=False):
        drift_panel(axis, [r for r in deviations if r["dissimilarity"] == zeta])
    cost_panel(axes[2], costs)
    finish(figure, out)


def drift_panel(axis: Any, deviations: Records) -> None:
    """Marks are measured, lines expected."""
    periods = values_of(deviations, "period")
    for period, colour in zip(periods, itertools.cycle(PERIODS), strict=False):
        rows = [r for r in deviations if r["period"] == period]
        x = [r["delay"] / period for r in rows]
        scale = rows[0]["learning_rate"] ** 2
        expected = [r["expected"] / scale for r in rows]
        measured = [np.mean(r["deviations"]) / scale for r in rows]
        axis.plot(x, expected, "-", color=colour, linewidth=1.2, alpha=0.8)
        axis.plot(x, measured, "o", color=colour, markersize=4.5)
        axis.annotate(
            f"k = {period}",
            (1, expected[-1]),
            (6, 0),
            textcoords="offset points",
            color=colour,
            fontsize=9,
            va="center",
        )
    axis.set(
        title=f"drift, ζ = {deviations[0]['dissimilarity']:g}",
        xlabel="delay / period (0 Local SGD, 1 CoCoD-SGD)",
        ylabel="squared deviation / γ²",
        yscale="log",
        xlim=(-0.05, 1.28),
        xticks=(0, 0.5, 1),
    )
    axis.plot([], [], "o", color=GREY, markersize=4.5, label="measured")
    axis.plot([], [], "-", color=GREY, label="theory.expected_deviation")
    axis.legend(frameon=False, fontsize=8.5, loc="lower right")


def cost_panel(axis: Any, costs: Records) -> None:
    """Errors relative to S-SGD's, and where the theorem ends."""
    zetas = values_of(costs, "dissimilarity")
    for zeta, style in zip(zetas, ("-", "--"), strict=False):
        for name in ("local_sgd", "cocod"):
            label, colour = ALGORITHMS[name]
            wanted = zeta, name
            rows = [r for r in costs if (r["dissimilarity"], r["algorithm"]) == wanted]
            axis.plot(
                [r["period"] for r in rows],
                [np.mean(r["relative_errors"]) for r in rows],
                style,
                marker=MARKERS[name][0],
                markersize=4,
                color=colour,
                label=f"{label}, ζ = {zeta:g}",
            )
    longest = costs[0]["largest_period"]
    axis.axvline(longest, color=GREY, linestyle=":", linewidth=1.2)
    axis.annotate(
        "Theorem 1 ends",
        (longest, 0.6),
        (-3, 0),
        xycoords=axis.get_xaxis_transform(),
        textcoords="offset points",
        fontsize=8.5,
        color=TEXT,
        rotation=90,
        ha="right",
        va="center",
    )
    ticks = values_of(costs, "period")
    axis.set(
        title=f"cost of drift, N = {costs[0]['workers']}, T = {costs[0]['steps']:,}",
        xlabel="period k",
        ylabel="error / error of S-SGD",
        xscale="log",
    )
    axis.set_xticks(ticks, map(str, ticks))
    axis.minorticks_off()
    axis.legend(frameon=False, fontsize=8.5, loc="upper left")


def seconds(log: Path, out: Path) -> None:
    """Loss against the clock's seconds, and seconds for each step against workers.

    Raises:
      ValueError: when the log has no results of that part.
    """
    runs, losses, clock = records_of(log, "run", "loss", "clock")
    config = runs[0]["config"]
    networks = values_of(losses, "network")
    figure, axes = plt.subplots(2, 2, figsize=(10, 7.4), layout="constrained")
    for (top, bottom), network in zip(axes.T, networks, strict=True):
        loss_panel(top, [r for r in losses if r["network"] == network], config)
        clock_panel(bottom, [r for r in clock if r["network"] == network])
    axes[0, 0].set_ylabel("training loss of the consensus")
    axes[1, 0].set_ylabel("seconds for each step")
    handles, labels = axes[1, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    finish(figure, out)


def loss_panel(axis: Any, losses: Records, config: dict[str, Any]) -> None:
    """The mean of the runs, and a band from the least to the greatest."""
    records = {record["algorithm"]: record for record in losses}
    for name, (_, colour, style) in LINES.items():
        if name not in records:  # the log is older than the algorithm
            continue
        x = records[name]["seconds"][1:]
        table = np.array(records[name]["losses"])[:, 1:]
        axis.plot(x, table.mean(axis=0), style, color=colour, linewidth=1.5)
        band = table.min(axis=0), table.max(axis=0)
        axis.fill_between(x, *band, color=colour, alpha=0.12, linewidth=0)
    axis.axhline(config["goal"], color=GREY, linewidth=0.8, linestyle="--")
    merge = records["just_in_time"]
    axis.set(
        title=f"{merge['network']}\n{config['clock_workers']} workers, period "
        f"{merge['period']} (just in time: delay {merge['delay']})",
        xlabel="seconds (clock)",
        xscale="log",
        yscale="log",
    )


def clock_panel(axis: Any, clock: Records) -> None:
    """The dashed line is a step without jitter of a worker that never waits."""
    workers = values_of(clock, "workers")
    for name, (label, colour, style) in LINES.items():
        y = [r["seconds_per_step"] for r in clock if r["algorithm"] == name]
        if not y:
            continue
        marker = "" if name == "ssgd_backward" else "."
        axis.plot(
            workers, y, style, color=colour, label=label, linewidth=1.5, marker=marker
        )
    alone = clock[0]["step_seconds"]
    axis.axhline(alone, color=GREY, linewidth=0.8, linestyle="--")
    axis.set(xlabel="workers N", xscale="log", yscale="log")
    axis.set_xticks(workers, [f"{n:,}" for n in workers])
    axis.minorticks_off()


def values_of(records: Records, field: str) -> list[Any]:
    """The different values of a field, in order."""
    return list(dict.fromkeys(record[field] for record in records))


def finish(figure: Any, out: Path) -> None:
    """Saves and closes."""
    for axis in figure.axes:
        tidy(axis)
    figure.savefig(out, dpi=160)
    plt.close(figure)
