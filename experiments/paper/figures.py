"""The figures of the paper, from logs and the clock."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from cocod_jax import style
from cocod_jax.observe.plots import curve
from cocod_jax.style import ALGORITHMS
from cocod_jax.timeline import SSGD, Algorithm, gantt
from experiments.clock import Clock
from experiments.cluster.network import links_of
from experiments.figures import by_algorithm
from experiments.paper.config import EQUAL, SPEEDS

SHARES = {"equal": "equal shares", "proportional": "shares in proportion"}
COUNTS = range(1, 17)
SECONDS = "seconds (clock, ResNet-18 at full width)"
# S-SGD that sends while the backward pass, two thirds of a step, goes on.
IN_BUCKETS = SSGD(sends_after=1 / 3)

Logs = Mapping[str, Sequence[Path]]
"""The logs of each network, or of each way to share the work (:data:`SHARES`)."""


def learning(logs: Logs, clocks: dict[str, Clock], out: Path) -> None:
    """Training loss and test accuracy of each network, against epochs and seconds.

    The seconds are the clock's, for as many workers as there were, and for either
    network those of the network whose steps and exchanges were measured.
    """
    columns = [("", None), *((links_of(c.rate), c) for c in clocks.values())]
    figure, axes = plt.subplots(
        2 * len(logs),
        len(columns),
        figsize=(3.4 * len(columns), 5 * len(logs)),
        layout="constrained",
        squeeze=False,
        sharey="row",
    )
    for row, (model, paths) in enumerate(logs.items()):
        runs = by_algorithm(paths)
        for column, (title, clock) in enumerate(columns):
            pair = axes[2 * row : 2 * row + 2, column]
            for name in (name for name in ALGORITHMS if name in runs):
                scale = 1.0 if clock is None else epoch_seconds(clock, runs[name])
                for axis, value in zip(
                    pair, ("train_loss", "test_accuracy"), strict=True
                ):
                    curve(axis, runs[name], value, *ALGORITHMS[name], scale=scale)
            pair[0].set(yscale="log", title=title if row == 0 else "")
            pair[1].set_xlabel("epochs" if clock is None else SECONDS)
        axes[2 * row, 0].set_ylabel(f"{model}\ntraining loss")
        axes[2 * row + 1, 0].set_ylabel(f"{model}\ntest accuracy [%]")
        final = [r["epoch"][-1] for group in runs.values() for r in group]
        best = 100 * max(epoch["test_accuracy"] for epoch in final)
        axes[2 * row + 1, 0].set_ylim(best - 12, best + 0.5)
    _finish(figure, out)


def epoch_seconds(clock: Clock, runs: list[dict]) -> float:
    """Seconds of an epoch of these runs, on these links."""
    run = runs[0]["run"][0]
    name = ALGORITHMS[run["config"]["algorithm"]][0]
    timeline = clock.timeline(clock.algorithms[name], run["workers"])
    return timeline.seconds_per_step * steps_per_epoch(runs)


def steps_per_epoch(runs: list[dict]) -> float:
    """Local steps of each worker."""
    return runs[0]["round"][-1]["step"] / runs[0]["epoch"][-1]["epoch"]


def speedup(clocks: dict[str, Clock], out: Path) -> None:
    """How much faster N workers see the same images than one, for each rate.

    The lines are the clock's; the marks were measured, each in the next larger one.
    """
    figure, axes = plt.subplots(
        1,
        len(clocks),
        figsize=(4 * len(clocks), 3.6),
        layout="constrained",
        squeeze=False,
    )
    trained = EQUAL
    for axis, clock in zip(axes[0], clocks.values(), strict=True):
        axis.plot(COUNTS, COUNTS, "--", color=style.GREY, linewidth=1, label="linear")
        for rank, key in enumerate(trained):
            name, colour = ALGORITHMS[key]
            line = _speedups(clock, clock.algorithms[name])
            axis.plot(COUNTS, line, color=colour, label=name)
            measured = clock.workers * clock.compute / clock.measured[name]
            mark = {"markersize": 4 + 2 * rank, "markerfacecolor": "none"}
            axis.plot(clock.workers, measured, "o", color=colour, **mark)
        line = _speedups(clock, IN_BUCKETS)
        axis.plot(COUNTS, line, ":", color=style.BLACK, label="S-SGD in buckets")
        axis.plot([], "o", color=style.GREY, markerfacecolor="none", label="measured")
        axis.set(xlabel="workers", title=links_of(clock.rate))
        axis.set(xscale="log", yscale="log", ylim=(0.55, 20))
        axis.set_xticks((1, 2, 4, 8, 16), ("1", "2", "4", "8", "16"))
        axis.minorticks_off()
    axes[0, 0].set_ylabel("speed-up over one worker")
    _finish(figure, out)


def timelines(clock: Clock, out: Path, workers: int = 4) -> None:
    """Two rounds of each algorithm, as the clock of these links predicts them."""
    every = {
        name: clock.timeline(clock.algorithms[name], workers, steps=2 * clock.period)
        for name in (ALGORITHMS[key][0] for key in EQUAL)
    }
    figure = gantt(every)
    figure.suptitle(f"{workers} workers, {links_of(clock.rate)} (clock)", fontsize=11)
    figure.savefig(out, dpi=150)
    plt.close(figure)


def _speedups(clock: Clock, algorithm: Algorithm) -> list[float]:
    """For each of :data:`COUNTS`; one worker has nobody to exchange with."""
    step = lambda workers: clock.timeline(algorithm, workers).seconds_per_step
    return [n * clock.compute / step(n) if n > 1 else 1.0 for n in COUNTS]


def unequal(shares: Logs, clock: Clock, out: Path) -> None:
    """Training loss on unequal workers, against epochs and against seconds.

    Solid lines show shares in proportion.
    """
    figure, axes = plt.subplots(
        1, 2, figsize=(9.6, 3.8), layout="constrained", sharey=True, squeeze=False
    )
    for share, paths in shares.items():
        line = "-" if share == "proportional" else ":"
        runs = by_algorithm(paths)
        for name in (name for name in ALGORITHMS if name in runs):
            label, colour = ALGORITHMS[name]
            label += f", {SHARES[share]}"
            scales = (1.0, unequal_seconds(clock, runs[name]))
            for axis, scale in zip(axes[0], scales, strict=True):
                curve(axis, runs[name], "train_loss", label, colour, scale, line)
    axes[0, 0].set(ylabel="training loss", xlabel="epochs", yscale="log")
    axes[0, 1].set(xlabel=SECONDS, title=links_of(clock.rate))
    _finish(figure, out)


def unequal_seconds(clock: Clock, runs: list[dict]) -> float:
    """Seconds of an epoch on unequal workers; Tc is that of a mean worker's batch."""
    run = runs[0]["run"][0]
    name = ALGORITHMS[run["config"]["algorithm"]][0]
    counts = run["config"]["micro_batches"]
    speeds = [SPEEDS[i % len(SPEEDS)] / count for i, count in enumerate(counts)]
    timeline = clock.timeline(clock.algorithms[name], run["workers"], speeds)
    return timeline.seconds_per_step * steps_per_epoch(runs)


def _finish(figure, out: Path) -> None:
    for axis in figure.axes:
        style.tidy(axis)
    figure.axes[0].legend(frameon=False, fontsize=9)
    figure.savefig(out, dpi=150)
    plt.close(figure)
