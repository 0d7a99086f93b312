"""Figures, drawn from logs and from nothing else."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

from cocod_jax import plots
from cocod_jax.observe.loggers import read_jsonl
from cocod_jax.style import GREY


def training_curves(logs: Sequence[Path], out: Path) -> None:
    """Training loss and test accuracy against epochs, one curve an algorithm.

    A task without an accuracy has its test loss in place of it, and a text the unigram
    entropy beside that.

    Runs of one algorithm that differ by their seed become one curve: their mean, and
    a band from the lowest to the highest.

    Args:
      logs: the JSONL logs of :mod:`experiments.train`.
      out: the PNG file to write.

    Raises:
      ValueError: when a log has no finished epoch.
    """
    runs = by_algorithm(logs)
    logged = next(iter(runs.values()))[0]
    first = logged["run"][0]
    config = first["config"]
    has_accuracy = "test_accuracy" in logged["epoch"][-1]
    measure = "test_accuracy" if has_accuracy else "test_loss"
    figure = plots.curves(logs, ("train_loss", measure), by="algorithm")
    if has_accuracy:
        every = [e[measure] for rs in runs.values() for r in rs for e in r["epoch"]]
        figure.axes[1].set_ylim(100 * max(0, np.median(every) - 0.06), 100)
    elif "unigram_entropy" in logged["epoch"][-1]:
        entropy = logged["epoch"][-1]["unigram_entropy"]
        line = {"color": GREY, "linestyle": ":", "label": "unigram entropy"}
        figure.axes[1].axhline(entropy, **line)
        figure.axes[1].legend(frameon=False)
    seeds = max(len(group) for group in runs.values())
    figure.suptitle(
        f"{title(config)}, "
        f"{first['workers']} workers, period {config['period']}"
        + (f", {seeds} seeds" if seeds > 1 else ""),
        fontsize=11,
    )
    figure.savefig(out, dpi=160)
    plt.close(figure)


def title(config: dict[str, Any]) -> str:
    """What a run trains, and on what, by its configuration in a log."""
    if config.get("task") == "text":
        data = Path(config["data_file"] or "pydoc").stem
        return f"{config['model']} transformer on {data}"
    return f"{config['model']} (width {config['width']}) on {config['data']}"


def by_algorithm(logs: Sequence[Path]) -> dict[str, list[dict[str, Any]]]:
    """The records of every log, by its algorithm.

    Raises:
      ValueError: when a log has no finished epoch.
    """
    runs = defaultdict(list)
    for path in logs:
        records = read_jsonl(path)
        if "epoch" not in records:
            raise ValueError(f"{path} has no finished epoch to draw.")
        runs[records["run"][0]["config"]["algorithm"]].append(records)
    return runs


def records_of(log: Path, *kinds: str) -> list[list[dict[str, Any]]]:
    """The records of each of these kinds.

    Raises:
      ValueError: when the log lacks a kind.
    """
    records = read_jsonl(log)
    for kind in kinds:
        if not records.get(kind):
            raise ValueError(f"{log} has no {kind} to draw.")
    return [records[kind] for kind in kinds]
