"""What the logs of the study say."""

from pathlib import Path
from statistics import median
from typing import Any, get_args

from cocod_jax.observe.loggers import read_jsonl
from experiments import markdown
from experiments.chaos.config import Kind

HEAD = [
    "faults",
    "restarts",
    "named",
    "all ended [s]",
    "recovered [s]",
    "rounds redone",
]


def report(folder: Path) -> str:
    """Two tables of all logs in a folder, as Markdown: by job, and by kind of fault."""
    faults, runs, jobs = [], [], []
    for log in sorted(folder.glob("*.jsonl")):
        records = read_jsonl(log)
        (first,) = records["run"]
        cell, own, ends = first["config"], records["fault"], records["result"]
        name = [cell["job"], str(cell["processes"])]
        jobs.append([*name, *counted(own), *results(ends)])
        faults, runs = faults + own, runs + ends
    jobs.append(["all", "", *counted(faults), *results(runs)])
    kinds = [
        [kind, *counted([each for each in faults if each["fault"] == kind])]
        for kind in get_args(Kind)
    ]
    by_job = markdown.table(["job", "processes", *HEAD, "runs", "equal", "lost"], jobs)
    return f"{by_job}\n{markdown.table(['fault', *HEAD], kinds)}"


def counted(faults: list[dict[str, Any]]) -> list[str]:
    """The cells of a row: how many there were, and what they took."""
    seconds = lambda name: [each[name] for each in faults if each[name] is not None]
    return [
        str(len(faults)),
        str(len(seconds("ended"))),
        str(sum(each["named"] for each in faults)),
        spread(seconds("ended")),
        spread(seconds("recovered")),
        str(sum(each["redone"] for each in faults)),
    ]


def results(runs: list[dict[str, Any]]) -> list[str]:
    """How many runs there were, how many ended as the one without faults did."""
    lost = sum(each["lost_bytes"] for each in runs)
    equal = sum(each["lost_bytes"] == 0 for each in runs)
    return [str(len(runs)), str(equal), f"{lost} bytes"]


def spread(seconds: list[float]) -> str:
    """Median and worst, and of how many."""
    if not seconds:
        return "-"
    return f"{median(seconds):.1f}, {max(seconds):.1f} (of {len(seconds)})"
