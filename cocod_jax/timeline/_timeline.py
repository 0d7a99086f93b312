"""What the clock has recorded, and its pictures in text and in matplotlib.

Both pictures draw the first workers. Each worker has a row for what it computes; one
row shows the exchanges of all, or one each where they exchange at different times.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from cocod_jax._checks import check_counts, check_kind
from cocod_jax.style import BLUE, ORANGE, SKY_BLUE, VERMILION, bars, pyplot

_MANY = 4  # workers to draw
_MARKS = {"compute": "#+", "exchange": "=-"}  # in even rounds, and in odd ones
_COLOURS = {"compute": (BLUE, SKY_BLUE), "exchange": (VERMILION, ORANGE)}


@dataclasses.dataclass(frozen=True, eq=False)
class Timeline:
    """What every worker did when; times are float64, in seconds from the start.

    Attributes:
      step_starts: [N, steps].
      step_ends: [N, steps], the times to draw the losses of steps against.
      step_rounds: [steps], the number of each step's round.
      exchange_starts: [N, exchanges]; workers differ in them only with gossip.
      exchange_ends: [N, exchanges].
      exchange_rounds: [exchanges], the number of each exchange's round.
    """

    step_starts: np.ndarray
    step_ends: np.ndarray
    step_rounds: np.ndarray
    exchange_starts: np.ndarray
    exchange_ends: np.ndarray
    exchange_rounds: np.ndarray

    @property
    def seconds(self) -> float:
        """Seconds from the start until the last worker has everything."""
        return float(max(self.step_ends.max(), self.exchange_ends.max(initial=0)))

    @property
    def seconds_per_step(self) -> float:
        """Seconds for one local step of every worker, waiting included."""
        return self.seconds / self.step_ends.shape[1]

    @property
    def idle(self) -> np.ndarray:
        """[N], the fraction of the time in which a worker computes nothing."""
        return 1 - (self.step_ends - self.step_starts).sum(axis=1) / self.seconds

    @property
    def intervals(self) -> np.ndarray:
        """All steps and exchanges, with worker, lane, round, start and end.

        A structured array; ``lane`` is "compute" or "exchange".
        """
        kinds = (
            ("compute", self.step_starts, self.step_ends, self.step_rounds),
            (
                "exchange",
                self.exchange_starts,
                self.exchange_ends,
                self.exchange_rounds,
            ),
        )
        tables = []
        for lane, starts, ends, rounds in kinds:
            fields = [("worker", int), ("lane", "U8"), ("round", int)]
            times = [("start", float), ("end", float)]
            table = np.empty(starts.shape, np.dtype(fields + times))
            table["worker"] = np.arange(len(starts))[:, None]
            table["lane"], table["round"] = lane, rounds
            table["start"], table["end"] = starts, ends
            tables.append(table.ravel())
        return np.concatenate(tables)

    def text(self, width: int = 72) -> str:
        """The timeline in ``width`` columns: ``#`` is a step, ``=`` an exchange.

        Every other round has ``+`` and ``-`` instead. The first workers stand for
        the others.

        Args:
          width: characters in a line, at least 1; more where the names need them.

        Returns:
          Lines, joined.
        """
        check_counts(width=width)
        return _picture(self, width)

    def plot(self, ax: Any = None) -> Any:
        """The timeline on matplotlib axes.

        Args:
          ax: where to draw; None makes a figure of its own.

        Returns:
          The axes.

        Raises:
          ImportError: when matplotlib is not installed; it says how to install it.
        """
        return _draw(self, ax)


class _Row(NamedTuple):
    """One lane of one worker."""

    label: str
    lane: str
    starts: np.ndarray
    ends: np.ndarray
    rounds: np.ndarray


def _rows(timeline: Timeline) -> list[_Row]:
    """What to draw, from the top: the first workers, and how they exchange."""
    starts, ends = timeline.exchange_starts, timeline.exchange_ends
    exchange = [
        _Row("exchange", "exchange", *times, timeline.exchange_rounds)
        for times in zip(starts, ends, strict=True)
    ][:_MANY]
    compute = [
        _Row(f"worker {worker}", "compute", *times, timeline.step_rounds)
        for worker, times in enumerate(
            zip(timeline.step_starts, timeline.step_ends, strict=True)
        )
    ][:_MANY]
    if not starts.size:
        return compute
    if (starts == starts[0]).all():
        return [*compute, exchange[0]]
    return [row for pair in zip(compute, exchange, strict=True) for row in pair]


def _picture(timeline: Timeline, width: int) -> str:
    """The timeline in text, ``width`` columns wide."""
    rows = _rows(timeline)
    label = max(len(row.label) for row in rows) + 2
    columns = max(width - label, 20)
    lines = [f"{row.label:{label}}{_cells(row, timeline, columns)}" for row in rows]
    end = f"{timeline.seconds:.3g} s"
    lines.append(f"{'':{label}}0{end:>{columns - 1}}")
    others = len(timeline.step_starts) - _MANY
    if others > 0:
        lines.append(f"... and {others:,} more worker{'s' * (others > 1)}")
    return "\n".join(lines)


def _cells(row: _Row, timeline: Timeline, columns: int) -> str:
    cell = timeline.seconds / columns
    cells = np.full(columns, "." if row.lane == "compute" else " ")
    marks = np.array(list(_MARKS[row.lane]))[row.rounds % 2]
    # An interval shorter than a cell still marks the cell that holds its middle.
    middles = ((row.starts + row.ends) / 2 / cell).astype(int)
    cells[np.minimum(middles, columns - 1)] = marks
    # Every other cell shows the interval at its own middle.
    times = cell * (np.arange(columns) + 0.5)
    index = np.searchsorted(row.starts, times, side="right") - 1
    inside = (index >= 0) & (times < row.ends[index])
    cells[inside] = marks[index[inside]]
    return "".join(cells).rstrip()


def _draw(timeline: Timeline, ax: Any = None) -> Any:
    """The timeline on matplotlib axes, made here when there are none."""
    rows = _rows(timeline)
    if ax is None:
        size = (8, 0.8 + 0.3 * len(rows))
        _, ax = pyplot().subplots(figsize=size, layout="constrained")
    for height, row in enumerate(rows):
        for odd, colour in enumerate(_COLOURS[row.lane]):
            chosen = row.rounds % 2 == odd
            starts, ends = row.starts[chosen], row.ends[chosen]
            bars(ax, starts, ends, height - 0.4, 0.8, colour)
    ax.axvline(timeline.seconds, color="black", linestyle=":", linewidth=1)
    ax.set_yticks(range(len(rows)), [row.label for row in rows])
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_xlim(left=0)
    ax.set_xlabel("seconds")
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def gantt(timelines: Mapping[str, Timeline]) -> Any:
    """Several timelines under each other, on one axis of time.

    Rounds are dark and light in turn; a dotted line is a timeline's end.

    Args:
      timelines: each by the name of its algorithm, in the order from the top.

    Returns:
      A matplotlib figure.

    Raises:
      ImportError: when matplotlib is not installed; it says how to install it.
      TypeError: when ``timelines`` is no mapping of names to timelines.
      ValueError: when ``timelines`` is empty.

    Examples:
      >>> from cocod_jax.timeline import SSGD, CoCoDSGD, Compute, gantt, simulate
      >>> figure = gantt({
      ...     name: simulate(algorithm, Compute(0.1, workers=2), 0.2, steps=8)
      ...     for name, algorithm in [("S-SGD", SSGD()), ("CoCoD-SGD", CoCoDSGD(4))]
      ... })
      >>> [ax.get_title("left") for ax in figure.axes]
      ['S-SGD', 'CoCoD-SGD']
    """
    check_kind(Mapping, timelines=timelines)
    check_kind(Timeline, **{f"timelines[{n!r}]": own for n, own in timelines.items()})
    if not timelines:
        raise ValueError("timelines is empty; give at least one.")
    heights = [len(_rows(timeline)) + 1.5 for timeline in timelines.values()]
    figure, axes = pyplot().subplots(
        len(timelines),
        figsize=(9, 0.6 + 0.22 * sum(heights)),
        height_ratios=heights,
        layout="constrained",
        sharex=True,
        squeeze=False,
    )
    for ax, (name, timeline) in zip(axes[:, 0], timelines.items(), strict=True):
        _draw(timeline, ax)
        workers = len(timeline.step_starts)
        shown = f"   {_MANY} of {workers:,} workers" if workers > _MANY else ""
        ax.set_title(name + shown, loc="left", fontsize=10, fontweight="bold")
        pace = f"{timeline.seconds_per_step:.3g} s a step"
        idle = f"{timeline.idle.mean():.0%} idle"
        ax.set_title(f"{pace}, {idle}", loc="right", fontsize=9)
        ax.label_outer()
    longest = max(timeline.seconds for timeline in timelines.values())
    axes[0, 0].set_xlim(0, 1.01 * longest)
    return figure
