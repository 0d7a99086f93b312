"""The algorithms of the paper side by side: ``python -m experiments.compare``.

Runs ``experiments.train`` for every algorithm and seed, and draws their curves and a
table of the accuracies from the logs. A run whose log says that it finished is not
repeated. Arguments after ``--`` go to every run:

    python -m experiments.compare --seeds 0 1 2 -- --epochs 20

With the defaults it takes about half an hour on 2 CPU cores. Expected: CoCoD-SGD ends
a third of a point of accuracy below S-SGD, which is about the spread between seeds.
"""

import dataclasses
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import tyro

from cocod_jax.observe.loggers import read_jsonl
from cocod_jax.style import ALGORITHMS
from experiments import command, figures, logbook
from experiments.config import WITHOUT_INFLUENCE, Algorithm, TrainConfig

BEFORE = {"nesterov": True, "micro_batches": None, "optimizer": "sgd"}
"""What older runs did, whose logs lack an option because there was none yet."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Which runs."""

    algorithms: tuple[Algorithm, ...] = get_args(Algorithm)
    """Which ones run."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Each algorithm runs once for each of them."""
    out: Path = Path("runs/compare")
    """Folder for the logs, the figure and the table."""


def main(config: CompareConfig, train_arguments: list[str]) -> None:
    """Runs what has not run yet, then draws ``curves.png`` and ``table.md``."""
    runs = []
    for seed in config.seeds:
        for algorithm in config.algorithms:
            own = ["--algorithm", algorithm, "--seed", str(seed)]
            arguments = [*train_arguments, *own, "--out", str(config.out)]
            runs.append(tyro.cli(TrainConfig, args=arguments))
    logs = train_all(runs)
    figures.training_curves(logs, config.out / "curves.png")
    (config.out / "table.md").write_text(table(logs))
    print(table(logs))


def train_all(runs: Iterable[TrainConfig]) -> list[Path]:
    """Runs each configuration in a process of its own, unless its log is complete.

    A line for each says where the study is; the run itself shows how it goes.

    Returns:
      The logs.
    """
    runs = list(runs)
    for number, run in enumerate(runs, start=1):
        is_there = finished(run)
        words = "finished before" if is_there else "begins"
        print(f"run {number}/{len(runs)}   {run.log.stem}   {words}", flush=True)
        if not is_there:
            command_line = [sys.executable, "-m", "experiments.train", *options(run)]
            subprocess.run(command_line, check=True)
    return [run.log for run in runs]


def options(run: TrainConfig) -> list[str]:
    """What ``experiments.train`` has to be told, all of it, defaults and None too."""
    words = []
    for name, value in logbook.plain(run).items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            values = value if isinstance(value, list) else [value]
            words += [f"--{flag}", *map(str, values)]
    return words


def finished(run: Any) -> bool:
    """Whether the log of a configuration is that of this very run, and complete.

    It has to name every option that has an influence, but for those of :data:`BEFORE`.
    A log that breaks off, or that is no log at all, is not: the run replaces it.
    """
    if not run.log.exists():
        return False
    wanted = logbook.plain(run)
    of_run = lambda options: {name: options[name] for name in options if name in wanted}
    try:
        records = read_jsonl(run.log)
        (record,), ends = records["run"], records["end"]
        recorded = of_run(BEFORE) | record["config"]
    except (ValueError, KeyError):  # no JSON, or records or fields that are not there
        return False
    recorded |= {name: wanted[name] for name in WITHOUT_INFLUENCE if name in wanted}
    return recorded == wanted and ends == [{"status": "finished"}]


def table(logs: list[Path]) -> str:
    """The accuracies after the last epoch, as a Markdown table."""
    runs = figures.by_algorithm(logs)
    lines = [
        "| algorithm | test accuracy of the consensus, mean ± std | seeds |",
        "|---|---|---|",
    ]
    for name in (name for name in ALGORITHMS if name in runs):
        each = ", ".join(f"{value:.2f}" for value in accuracies(runs[name]))
        lines.append(
            f"| {ALGORITHMS[name][0]} | {mean_and_spread(runs[name])} % | {each} |"
        )
    return "\n".join(lines) + "\n"


def accuracies(runs: Sequence[dict[str, Any]]) -> np.ndarray:
    """Test accuracy of the consensus after the last epoch of each run, in percent."""
    return 100 * np.array([run["epoch"][-1]["test_accuracy"] for run in runs])


def mean_and_spread(runs: Sequence[dict[str, Any]]) -> str:
    """The mean of these accuracies, and over several runs their standard deviation."""
    values = accuracies(runs)
    spread = f" ± {values.std(ddof=1):.2f}" if len(values) > 1 else ""
    return f"{values.mean():.2f}{spread}"


if __name__ == "__main__":
    split = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    command.run(
        lambda config: main(config, sys.argv[split + 1 :]),
        CompareConfig,
        __doc__,
        sys.argv[1:split],
    )
