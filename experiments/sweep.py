"""The algorithms of the paper side by side: ``python -m experiments.sweep``.

Runs ``experiments.train`` for every algorithm and seed, and draws their curves and a
table of the accuracies from the logs, or of the losses on text. A run whose log says
that it finished is not repeated. Arguments after ``--`` go to every run:

    python -m experiments.sweep --seeds 0 1 2 -- --epochs 20

With the defaults it takes about half an hour on 2 CPU cores. Expected: CoCoD-SGD ends
a third of a point of accuracy below S-SGD, which is about the spread between seeds.
"""

import dataclasses
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np

from cocod_jax.observe.loggers import read_jsonl
from cocod_jax.style import ALGORITHMS
from experiments import command, figures, logbook, markdown
from experiments.config import WITHOUT_INFLUENCE, Algorithm, RunConfig, parse
from experiments.options import Options, Seed

BEFORE = {
    "task": "images",
    "nesterov": True,
    "micro_batches": None,
    "optimizer": "sgd",
    "numbers": None,
}
"""What older runs did, whose logs lack an option because there was none yet."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepConfig(Options):
    """Which runs."""

    algorithms: tuple[Algorithm, ...] = get_args(Algorithm)
    """Which ones run."""
    seeds: tuple[Seed, ...] = (0, 1, 2)
    """Each algorithm runs once for each of them."""
    out: Path = Path("runs/sweep")
    """Folder for the logs, the figure and the table."""


def main(config: SweepConfig, train_arguments: list[str]) -> None:
    """Runs what has not run yet, then draws ``curves.png`` and ``table.md``."""
    runs = []
    for seed in config.seeds:
        for algorithm in config.algorithms:
            own = ["--algorithm", algorithm, "--seed", str(seed)]
            arguments = [*train_arguments, *own, "--out", str(config.out)]
            runs.append(parse(arguments))
    logs = train_all(runs)
    figures.training_curves(logs, config.out / "curves.png")
    (config.out / "table.md").write_text(table(logs))
    print(table(logs))


def train_all(runs: Iterable[RunConfig]) -> list[Path]:
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


def options(run: Any) -> list[str]:
    """What a program has to be told for a configuration, defaults and None too."""
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


class Measure(NamedTuple):
    """What runs are compared by, after their last epoch.

    Attributes:
      title: for people.
      name: in the record of an epoch.
      scale: a factor.
      digits: behind the point.
      unit: after a value, with a space in front.
    """

    title: str
    name: str
    scale: float
    digits: int
    unit: str


ACCURACY = Measure("test accuracy of the consensus", "test_accuracy", 100, 2, " %")
LOSS = Measure("loss of the consensus on held-out text", "test_loss", 1, 4, "")


def table(logs: list[Path]) -> str:
    """What the runs ended with, as a Markdown table: accuracy, or loss without one."""
    runs = figures.by_algorithm(logs)
    last = next(iter(runs.values()))[0]["epoch"][-1]
    measure = ACCURACY if ACCURACY.name in last else LOSS
    rows = []
    for name in (name for name in ALGORITHMS if name in runs):
        each = ", ".join(
            f"{value:.{measure.digits}f}" for value in results(runs[name], measure)
        )
        spread = mean_and_spread(runs[name], measure)
        rows.append([ALGORITHMS[name][0], f"{spread}{measure.unit}", each])
    return markdown.table(["algorithm", f"{measure.title}, mean ± std", "seeds"], rows)


def results(runs: Sequence[dict[str, Any]], measure: Measure = ACCURACY) -> np.ndarray:
    """What the last epoch of each run has: by default accuracies in percent."""
    return measure.scale * np.array([run["epoch"][-1][measure.name] for run in runs])


def mean_and_spread(runs: Sequence[dict[str, Any]], measure: Measure = ACCURACY) -> str:
    """The mean of these results, and over several runs their standard deviation."""
    values, digits = results(runs, measure), measure.digits
    spread = f" ± {values.std(ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{values.mean():.{digits}f}{spread}"


if __name__ == "__main__":
    own, of_runs = command.divided(sys.argv[1:])
    command.run(lambda config: main(config, of_runs), SweepConfig, __doc__, own)
