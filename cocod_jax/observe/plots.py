"""Figures of runs, drawn from their logs.

The logs are those of :func:`cocod_jax.observe.loggers.to_jsonl`. Records of the
kind "round" are drawn against their "step"; records of the kind "epoch", which a run
may write as well, against their "epoch". A record of the kind "run" may hold the
run's "config", by which runs are told apart. :func:`timelines` says what a record
of the kind "timeline" holds.

All figures of the library share one style: :func:`cocod_jax.timeline.gantt` and the
certificate's ``plot`` have it as well. No function shows its figure or changes the
backend: a notebook shows what is returned, and a script calls its ``savefig``.
"""

import itertools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cocod_jax._checks import check_paths, check_sequence
from cocod_jax._text import shown
from cocod_jax.observe.loggers import Records, read_jsonl
from cocod_jax.style import ALGORITHMS, COMPUTE, EXCHANGE, OTHERS, bars, pyplot, tidy

# For each kind of record: the count to draw it against, and what its axis is called.
_COUNTS = {"epoch": ("epoch", "epochs"), "round": ("step", "local steps")}
_LABELS = {
    "loss": "training loss",
    "train_loss": "training loss",
    "test_accuracy": "test accuracy of the consensus [%]",
    "grad_norm": "norm of a gradient",
    "distance": "distance from the mean",
    "progress_norm": "norm of the progress",
}
# For each lane: label, colour, top and height; a worker spans 0 to 1.
_LANES = {
    "compute": ("computation", COMPUTE, 0.0, 0.55),
    "exchange": ("exchange", EXCHANGE, 0.55, 0.25),
}


def curves(
    logs: str | Path | Sequence[str | Path],
    values: Sequence[str] = ("loss", "distance"),
    *,
    by: str | None = None,
) -> Any:
    """Values of runs against local steps or epochs, a panel for each value.

    Args:
      logs: a folder of logs, one log, or several.
      values: what to draw, by its name in the records of epochs or rounds.
      by: a name in the runs' configuration, such as "period": runs for which it is
        the same become one curve, their mean, with a band from the lowest to the
        highest. None draws a curve for each log.

    Returns:
      A matplotlib figure.

    Raises:
      ImportError: when matplotlib is not installed; it says how to install it.
      TypeError: when ``logs``, ``values`` or ``by`` is of another kind.
      ValueError: when there is no log or no value, when a log lacks a value, or has it
        for each epoch where another log has it for each round.

    Examples:
      >>> folder = getfixture("tmp_path")
      >>> for period in 4, 8:
      ...     with cj.loggers.to_jsonl(folder / f"{period}.jsonl") as log:
      ...         log.write("run", config={"period": period})
      ...         for step in 8, 16:
      ...             log(step, {"loss": 1 / step, "distance": 0.01 * period})
      >>> figure = cj.plots.curves(folder, by="period")
      >>> [ax.get_ylabel() for ax in figure.axes]
      ['training loss', 'distance from the mean']
    """
    check_sequence("one name for each panel", values=values)
    if not values:
        raise ValueError("values is empty; name at least one, such as 'loss'.")
    _check_by(by)
    runs = {path: read_jsonl(path) for path in _paths(logs)}
    kinds = [_kind(runs, value) for value in values]
    groups = _groups(runs, by)
    figure, axes = pyplot().subplots(
        1,
        len(values),
        figsize=(4.5 * len(values), 3.6),
        layout="constrained",
        squeeze=False,
    )
    for ax, value, kind in zip(axes[0], values, kinds, strict=True):
        for label, colour, group in groups:
            curve(ax, group, value, label, colour)
        ax.set_xlabel(_COUNTS[kind][1])
        ax.set_ylabel(_LABELS.get(value, value.replace("_", " ")))
        if not _is_share(value) and _positive(ax):
            ax.set_yscale("log", nonpositive="mask")
        tidy(ax)
    if len(groups) > 1:
        axes[0, -1].legend(frameon=False)
    return figure


def curve(
    ax: Any,
    runs: Sequence[Records],
    value: str,
    label: str,
    colour: str,
    scale: float = 1.0,
    line: str = "-",
) -> None:
    """One curve: the mean of runs, and a band from the lowest to the highest.

    The curve is as long as the shortest run. Accuracies, told by the end of their
    name, are drawn in percent.

    Args:
      ax: matplotlib axes to draw on.
      runs: what :func:`cocod_jax.observe.loggers.read_jsonl` read, at least one.
      value: what to draw, by its name in the records of epochs or rounds.
      label: the curve's, for a legend.
      colour: the curve's and the band's.
      scale: the factor of steps or epochs on the axis, such as the seconds of one.
      line: the style of the curve, in matplotlib's notation.

    Raises:
      ValueError: when a run lacks the value, or has it at other steps than the others.

    Examples:
      >>> figure, ax = cj.style.pyplot().subplots()
      >>> run = {"epoch": [{"epoch": n, "train_loss": 1 / n} for n in (1, 2)]}
      >>> cj.plots.curve(ax, [run], "train_loss", "one run", "black", scale=60)
      >>> print(ax.get_lines()[0].get_xdata())
      [ 60 120]
    """
    kinds, rows = zip(*(_rows(records, value) for records in runs), strict=True)
    length = min(map(len, rows))
    counts = {
        tuple(record[_COUNTS[kind][0]] for record in run[:length])
        for kind, run in zip(kinds, rows, strict=True)
    }
    if len(counts) > 1:
        raise ValueError(
            f"the runs of {label!r} have their {value!r} at different steps or epochs; "
            "draw them one by one."
        )
    x = scale * np.array(counts.pop())
    table = np.array([[record[value] for record in run[:length]] for run in rows])
    if _is_share(value):
        table = 100 * table
    ax.plot(x, table.mean(axis=0), line, color=colour, label=label, linewidth=1.8)
    if len(table) > 1:
        band = table.min(axis=0), table.max(axis=0)
        ax.fill_between(x, *band, color=colour, alpha=0.15, linewidth=0)


def timelines(logs: str | Path | Sequence[str | Path], *, by: str | None = None) -> Any:
    """When the workers computed and when they exchanged, as measured.

    The figure shows the records of the kind "timeline". Each is of one worker and has

    * "name": what ran, such as an algorithm, which becomes a row;
    * "worker": the worker's number, from 0;
    * "intervals": a list of [lane, start, end], where the lane is "compute" or
      "exchange", and the times are seconds of a clock that all workers share.

    A row starts at its own 0. Every worker has two lanes in it: what it computed, and
    below that what it exchanged. :func:`cocod_jax.timeline.gantt` draws simulated
    timelines.

    Args:
      logs: a folder of logs, one log, or several; each has panels of its own.
      by: a name in the records, such as "rate": each of its values becomes a panel.
        None makes a panel for each log.

    Returns:
      A matplotlib figure.

    Raises:
      ImportError: when matplotlib is not installed; it says how to install it.
      TypeError: when ``logs`` or ``by`` is of another kind.
      ValueError: when there is no log, or when a log has no timeline, or one that
        lacks a field.

    Examples:
      >>> path = getfixture("tmp_path") / "log.jsonl"
      >>> with cj.loggers.to_jsonl(path) as log:
      ...     for worker in 0, 1:
      ...         spans = [("compute", 0.0, 0.8), ("exchange", 0.1, 0.5 + worker / 10)]
      ...         log.write("timeline", name="mine", worker=worker, intervals=spans)
      >>> figure = cj.plots.timelines(path)
      >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
      ['mine']
    """
    _check_by(by)
    panels = _panels(_paths(logs), by)
    rows = [list(dict.fromkeys(r["name"] for r in panel)) for _, panel in panels]
    workers = 1 + max(record["worker"] for _, panel in panels for record in panel)
    heights = [0.9 + 0.28 * workers * len(names) for names in rows]
    figure, axes = pyplot().subplots(
        len(panels),
        figsize=(9, 0.6 + sum(heights)),
        height_ratios=heights,
        layout="constrained",
        squeeze=False,
    )
    pitch = workers + 0.6
    for ax, (title, panel), names in zip(axes[:, 0], panels, rows, strict=True):
        for row, name in enumerate(names):
            _timeline(ax, [r for r in panel if r["name"] == name], row * pitch)
        tops = pitch * np.arange(len(names))
        ax.set_yticks(tops + workers / 2 - 0.1, names)
        lanes = np.add.outer(tops, np.arange(workers) + 0.4).ravel()
        numbers = [f"worker {worker}" for worker in range(workers)] * len(names)
        ax.set_yticks(lanes, numbers, minor=True)
        ax.invert_yaxis()
        ax.set_title(title, fontsize=11)
        ax.set_xlabel("seconds")
        tidy(ax)
        ax.grid(visible=False, axis="y")
        ax.tick_params(axis="y", length=0, pad=48)
        ax.tick_params(axis="y", which="minor", length=0, pad=2, labelsize=7)
        ax.spines["left"].set_visible(False)
    handles = [
        pyplot().Rectangle((0, 0), 1, 1, color=colour, label=label)
        for label, colour, *_ in _LANES.values()
    ]
    figure.legend(handles=handles, loc="outside upper right", ncols=2, frameon=False)
    return figure


def _panels(
    paths: Sequence[Path], by: str | None
) -> list[tuple[str, list[dict[str, Any]]]]:
    """The title of each panel, and its records, checked."""
    panels = []
    for path in paths:
        records = read_jsonl(path).get("timeline", [])
        if not records:
            raise ValueError(f"{path} has no record of the kind 'timeline' to draw.")
        for record in records:
            _check_timeline(record, by, path)
        own = defaultdict(list)
        for record in records:
            own[None if by is None else record[by]].append(record)
        log = [path.stem] if len(paths) > 1 else []
        for value, panel in own.items():
            title = log if value is None else [*log, str(value)]
            panels.append((", ".join(title), panel))
    return panels


def _check_timeline(record: dict[str, Any], by: str | None, path: Path) -> None:
    missing = {"name", "worker", "intervals"} - record.keys()
    if missing:
        raise ValueError(f"{path} has a timeline without {sorted(missing)}.")
    if by is not None and by not in record:
        raise ValueError(f"by={by!r} is not in a timeline of {path}: {sorted(record)}.")
    for interval in record["intervals"]:
        if not isinstance(interval, list | tuple) or len(interval) != 3:
            raise ValueError(
                f"{path} has the interval {interval!r} in a timeline; it has to be "
                "[lane, start, end]."
            )
    unknown = {lane for lane, _, _ in record["intervals"]} - _LANES.keys()
    if unknown:
        raise ValueError(
            f"{path} has intervals of {sorted(unknown)}; a lane is one of "
            f"{sorted(_LANES)}."
        )


def _timeline(ax: Any, records: Sequence[dict[str, Any]], top: float) -> None:
    """The workers of one row under each other, from ``top`` down."""
    starts = [start for record in records for _, start, _ in record["intervals"]]
    origin = min(starts, default=0.0)
    for record in records:
        for lane, (_, colour, offset, height) in _LANES.items():
            spans = [span for own, *span in record["intervals"] if own == lane]
            times = np.array(spans).reshape(-1, 2) - origin
            place = top + record["worker"] + offset
            bars(ax, times[:, 0], times[:, 1], place, height, colour)


def _check_by(by: str | None) -> None:
    if by is not None and not isinstance(by, str):
        raise TypeError(f"by={shown(by)} must be a name, or None.")


def _paths(logs: str | Path | Sequence[str | Path]) -> list[Path]:
    if not isinstance(logs, str | Path):
        check_sequence("a folder, or one log", logs=logs)
        check_paths(**{f"logs[{i}]": path for i, path in enumerate(logs)})
        paths = [Path(path) for path in logs]
    elif Path(logs).is_dir():
        paths = sorted(Path(logs).glob("*.jsonl"))
    else:
        paths = [Path(logs)]
    if not paths:
        raise ValueError(f"logs={logs!r} holds no .jsonl file.")
    return paths


def _rows(
    records: Records, value: str, source: str | Path = "the log"
) -> tuple[str, list[dict[str, Any]]]:
    """The kind of the records that have the value, and these records."""
    for kind in _COUNTS:
        rows = [record for record in records.get(kind, []) if value in record]
        if rows:
            return kind, rows
    known = {name for kind in _COUNTS for row in records.get(kind, []) for name in row}
    raise ValueError(f"{source} has no {value!r} to draw; it has {sorted(known)}.")


def _kind(runs: dict[Path, Records], value: str) -> str:
    """The kind of the records that have the value, the same in all runs."""
    kinds = {_rows(records, value, path)[0]: path for path, records in runs.items()}
    if len(kinds) > 1:
        both = " and ".join(f"{_COUNTS[kind][1]} in {kinds[kind]}" for kind in kinds)
        raise ValueError(f"{value!r} is counted in {both}; draw them apart.")
    (kind,) = kinds
    return kind


def _groups(
    runs: dict[Path, Records], by: str | None
) -> list[tuple[str, str, list[Records]]]:
    """Label, colour and runs of each curve: known algorithms first, in their order."""
    groups = defaultdict(list)
    for path, records in runs.items():
        own = _name(path, runs) if by is None else _setting(records, by, path)
        groups[own].append(records)
    known = [name for name in ALGORITHMS if name in groups]
    others = [name for name in groups if name not in known]
    label = (by or "").replace("_", " ")
    taken = {ALGORITHMS[name][1] for name in known}
    free = [colour for colour in OTHERS if colour not in taken]
    styles = ALGORITHMS | {
        name: (f"{label} {name}".strip(), colour)
        for name, colour in zip(others, itertools.cycle(free), strict=False)
    }
    return [(*styles[name], groups[name]) for name in [*known, *others]]


def _name(path: Path, paths: Iterable[Path]) -> str:
    """The shortest end of a log's path that no other one has."""
    ends = [other.with_suffix("").parts for other in paths]
    own = path.with_suffix("").parts
    for length in range(1, len(own) + 1):
        if sum(end[-length:] == own[-length:] for end in ends) == 1:
            return "/".join(own[-length:])
    return str(path)


def _setting(records: Records, by: str, path: Path) -> str:
    config = records.get("run", [{}])[0].get("config", {})
    if by not in config:
        raise ValueError(f"by={by!r} is not in the config of {path}: {sorted(config)}.")
    return str(config[by])


def _is_share(value: str) -> bool:
    return value.endswith("accuracy")


def _positive(ax: Any) -> bool:
    """Whether the values are above 0, except for zeros at the start of a run."""
    drawn = np.concatenate([line.get_ydata() for line in ax.get_lines()])
    finite = drawn[np.isfinite(drawn)]
    return finite.size > 0 and finite.min() >= 0 < finite.max()
