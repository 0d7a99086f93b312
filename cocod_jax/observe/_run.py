"""A run as its log tells it, with the numbers that can be drawn."""

import itertools
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import numpy as np

from cocod_jax.observe._files import in_order
from cocod_jax.observe.loggers import Records

Row = dict[str, float]
POINTS = 300  # of a curve; more would not be seen
_COUNTS_ANEW = ("resized", "resumed")  # from its "step" on


class Run(NamedTuple):
    """The records of a log, in order.

    Steps are those that were done: they go on where the log counts anew, as that of a
    run does whose number of workers has changed.

    Attributes:
      name: the log's, without its ending.
      circumstances: what "run" says, empty where the log has no such record.
      rounds: the numbers of each, with a "step".
      epochs: the numbers of each, with an "epoch".
      workers: of each round with a record "workers", the step and, by name, an array
        with a number for each worker.
      sizes: from which step on there were how many workers, as the log says.
      records: all of them by kind; those that count anew have the step of the log as
        "step_after".
    """

    name: str
    circumstances: dict[str, Any]
    rounds: list[Row]
    epochs: list[Row]
    workers: list[tuple[float, dict[str, np.ndarray]]]
    sizes: list[tuple[Any, Any]]
    records: Records

    @property
    def config(self) -> dict[str, Any]:
        """The configuration, empty where there is none."""
        config = self.circumstances.get("config", {})
        return config if isinstance(config, dict) else {}

    @property
    def step_seconds(self) -> list[Row]:
        """Steps, and the seconds of one by the clock, between rounds of one epoch.

        "seconds" begin anew with every epoch. The first round of each is left out: it
        may have been compiled.
        """
        timed = [row for row in self.rounds if "seconds" in row]
        found = []
        for before, row in itertools.pairwise(timed):
            steps, seconds = (row[n] - before[n] for n in ("step", "seconds"))
            if steps > 0 and seconds > 0:
                found.append({"step": row["step"], "step_seconds": seconds / steps})
        return found


def read_run(log: Path) -> Run:
    """Reads a log; what is no number is no part of a curve.

    Raises:
      ValueError: when it holds no record, or a line is none.
      OSError: when it cannot be read.
    """
    records: Records = {}
    sizes: list[tuple[Any, Any]] = []
    for kind, record in _going_on(in_order(log)):
        records.setdefault(kind, []).append(record)
        if kind in ("run", *_COUNTS_ANEW) and "workers" in record:
            size = record["workers"]
            if not sizes or sizes[-1][1] != size:
                sizes.append((record.get("step", 0), size))
    if not records:
        raise ValueError(f"{log} holds no record.")
    return Run(
        name=log.stem,
        circumstances=records.get("run", [{}])[0],
        rounds=_rows(records, "round", "step"),
        epochs=_rows(records, "epoch", "epoch"),
        workers=_by_worker(records.get("workers", [])),
        sizes=sizes,
        records=records,
    )


def _going_on(
    records: Iterable[tuple[str, dict[str, Any]]],
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Records whose "step" counts what was done.

    A record "resized" has the step in the count of before, "step_before", and in the
    one from there on, which is kept as "step_after". One that was "resumed" does what
    the log has of later steps once more.
    """
    ahead = last = 0
    for kind, record in records:
        if (step := _count(record, "step")) is not None:
            if kind in _COUNTS_ANEW:
                before = _count(record, "step_before")
                if before is None:
                    before = max(last, step)
                record["step_after"] = step
                ahead, last = ahead + before - step, step
            elif kind == "round":
                last = step
            record["step"] = step + ahead
        yield kind, record


def _count(record: Mapping[str, Any], name: str) -> float | None:
    """A number of steps, if it is one that can be added to."""
    value = record.get(name)
    return value if _is_number(value) and abs(value) <= 2**53 else None


def _is_number(value: Any) -> TypeGuard[float]:
    """Whether it can be drawn: a bool is none, nor what no float can hold."""
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) <= sys.float_info.max
    return isinstance(value, float)


def _rows(records: Records, kind: str, count: str) -> list[Row]:
    rows = (
        {name: float(value) for name, value in record.items() if _is_number(value)}
        for record in records.get(kind, [])
    )
    return [row for row in rows if math.isfinite(row.get(count, math.nan))]


def _by_worker(
    records: Sequence[Mapping[str, Any]],
) -> list[tuple[float, dict[str, np.ndarray]]]:
    found = []
    for record in records:
        values = {
            name: np.array(value, float)
            for name, value in record.items()
            if isinstance(value, list) and value and all(map(_is_number, value))
        }
        if _is_number(record.get("step")):
            found.append((record["step"], values))
    return found


def thinned(rows: Sequence[Row], count: str) -> tuple[list[Row], int]:
    """At most :data:`POINTS` rows, each the mean of so many that follow each other.

    Args:
      rows: all of them.
      count: what they are drawn against; a mean stands where its last row does.

    Returns:
      The rows, and how many became one.
    """
    size = -(-len(rows) // POINTS)
    groups = [rows[i : i + size] for i in range(0, len(rows), max(1, size))]
    means = []
    for group in groups:
        names = set.intersection(*map(set, group))
        mean = {name: float(np.mean([row[name] for row in group])) for name in names}
        means.append(mean | {count: group[-1][count]})
    return means, size
