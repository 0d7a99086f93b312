"""The figures of the paper, from logs and the clock."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from cocod_jax import style
from cocod_jax.loggers import read_jsonl
from cocod_jax.plots import curve
from cocod_jax.style import ALGORITHMS
from experiments.figures import by_algorithm
from experiments.overlap.clock import Clock

# How fast each of four unequal workers is; equal shares give each the mean.
SPEEDS = (3, 2, 2, 1)
UNEQUAL = {
    "ssgd": ("S-SGD, equal shares", style.BLACK),
    "equal": ("CoCoD-SGD, equal shares", style.ORANGE),
    "proportional": ("CoCoD-SGD, shares in proportion", style.VERMILION),
}
COUNTS = range(1, 17)

Logs = Mapping[str, Sequence[Path]]
"""The logs of each network, or of each way to share the work."""


def learning(logs: Logs, clocks: dict[str, Clock], out: Path) -> None:
    """Training loss and test accuracy of each network, against epochs and seconds.

    The seconds are the clock's, for as many workers as there were.
    """
    columns = [("epoch", None), *((f"{c.rate} links", c) for c in clocks.values())]
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
            pair[1].set_xlabel("epochs" if clock is None else "seconds (clock)")
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

    The lines are the clock's; the marks were measured.
    """
    figure, axes = plt.subplots(
        1,
        len(clocks),
        figsize=(4 * len(clocks), 3.6),
        layout="constrained",
        squeeze=False,
    )
    colours = dict(ALGORITHMS.values())
    for axis, clock in zip(axes[0], clocks.values(), strict=True):
        axis.plot(COUNTS, COUNTS, ":", color=style.GREY, label="linear")
        for name in (name for name in colours if name in clock.measured):
            values = [images_per_second(clock, name, n) for n in COUNTS]
            axis.plot(COUNTS, values, color=colours[name], label=name)
            measured = clock.workers * clock.compute / clock.measured[name]
            axis.plot(clock.workers, measured, "o", color=colours[name])
        axis.set(xlabel="workers", title=f"{clock.rate} links", ylim=(0, 16.5))
        axis.set_xticks((1, 2, 4, 8, 16))
    axes[0, 0].set_ylabel("speed-up over one worker")
    _finish(figure, out)


def images_per_second(clock: Clock, name: str, workers: int) -> float:
    """Relative to one worker, which has nobody to exchange with."""
    if workers == 1:
        return 1.0
    timeline = clock.timeline(clock.algorithms[name], workers)
    return workers * clock.compute / timeline.seconds_per_step


def unequal(shares: Logs, clock: Clock, out: Path) -> None:
    """Training loss on unequal workers, against epochs and against seconds."""
    figure, axes = plt.subplots(
        1, 2, figsize=(8.4, 3.6), layout="constrained", sharey=True, squeeze=False
    )
    for name, paths in shares.items():
        runs = [read_jsonl(path) for path in paths]
        for axis, scale in zip(
            axes[0], (1.0, unequal_seconds(clock, runs)), strict=True
        ):
            curve(axis, runs, "train_loss", *UNEQUAL[name], scale=scale)
    axes[0, 0].set(ylabel="training loss", xlabel="epochs", yscale="log")
    axes[0, 1].set(xlabel=f"seconds (clock, {clock.rate} links)")
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
