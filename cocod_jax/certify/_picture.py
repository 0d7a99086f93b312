"""A schedule as a picture, in text and in matplotlib.

Both draw one row that computes and one row for each collective, in the order of
the schedule. Widths are no durations: the schedule does not know those.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from cocod_jax._text import human_bytes
from cocod_jax.certify._schedule import Collective, Event, Schedule
from cocod_jax.style import GREEN, ORANGE, SKY_BLUE, pyplot

_MANY = 6  # collectives drawn; the others are counted


class _Slot(NamedTuple):
    """A span of the schedule in which the same things happen."""

    compute: str
    in_flight: frozenset[int]
    width: float = 1


def _slots(timeline: tuple[Event, ...]) -> Iterator[_Slot]:
    """Cuts a timeline into spans: of steps, or of waiting for a collective."""
    in_flight: frozenset[int] = frozenset()
    idle = False  # something started and nothing has run beside it yet
    done = [i for i, event in enumerate(timeline) if event.what == "done"]
    last = max(done, default=None)  # what starts here may end in another computation
    of_one_step = any(event.what == "operations" for event in timeline)
    for i, event in enumerate(timeline):
        if event.collective is None:
            count = f"{event.steps:.0f}" if of_one_step else f"{event.steps:.3g}"
            unit = "operation" if of_one_step else "local step"
            plural = "" if count == "1" else "s"
            yield _Slot(f"{count} {unit}{plural}", in_flight, event.steps)
            idle = False
        elif event.what == "start":
            in_flight, idle = in_flight | {event.collective}, True
        else:
            if idle:
                yield _Slot("", in_flight)
            in_flight, idle = in_flight - {event.collective}, False
            if i == last and not of_one_step:
                yield _Slot("merge", in_flight)


def _name(collective: Collective) -> str:
    size = human_bytes(collective.bytes)
    return f"{collective.kind} {collective.dtype} {size}"


def picture(schedule: Schedule) -> str:
    """The schedule in text.

    For example::

        compute                 [ 8 local steps ][ merge ]
        all-reduce f32 44.7 MB  =================
    """
    return "\n\n".join(_rows(schedule, line) for line in schedule.timelines)


def _rows(schedule: Schedule, timeline: tuple[Event, ...]) -> str:
    slots = list(_slots(timeline))
    cells = [f"[ {s.compute} ]" if s.compute else " " * 9 for s in slots]
    shown = _shown(timeline)
    width = max(len(_name(schedule.collectives[i])) for i in shown)
    rows = [f"{'compute':{width}}  {''.join(cells)}"]
    for index in shown:
        collective = schedule.collectives[index]
        marks = [
            ("=" if index in slot.in_flight else " ") * len(cell)
            for slot, cell in zip(slots, cells, strict=True)
        ]
        notes = "" if collective.is_async else "  synchronous"
        notes += "" if collective.place == "round" else f"  in a {collective.place}"
        rows.append(f"{_name(collective):{width}}  {''.join(marks).rstrip()}{notes}")
    hidden_rows = len(_started(timeline)) - len(shown)
    return "\n".join(rows + [f"... and {hidden_rows} more"] * (hidden_rows > 0))


def draw(schedule: Schedule, ax: Any = None) -> Any:
    """The schedule on matplotlib axes, made here when there are none."""
    if ax is None:
        _, ax = pyplot().subplots(figsize=(8, 2.2), layout="constrained")
    names, time = ["compute"], 0.0
    for timeline in schedule.timelines:
        rows = {index: len(names) + n for n, index in enumerate(_shown(timeline))}
        names += [_name(schedule.collectives[index]) for index in rows]
        starts: dict[int, float] = {}
        for slot in _slots(timeline):
            ended = starts.keys() - slot.in_flight
            for index in ended:
                _bar(ax, rows[index], starts.pop(index), time, "start ... done")
            starts |= {i: time for i in rows.keys() & slot.in_flight - starts.keys()}
            if slot.compute:
                _bar(ax, 0, time, time + slot.width, slot.compute)
            time += slot.width
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    ax.set_xticks([])
    ax.set_xlabel("order in the compiler's schedule")
    return ax


def _bar(ax: Any, row: int, start: float, end: float, label: str) -> None:
    colour = {"start ... done": ORANGE, "merge": GREEN}.get(label, SKY_BLUE)
    ax.barh(row, end - start, left=start, color=colour)
    center = (start + end) / 2
    ax.text(center, row, label, ha="center", va="center", fontsize="small")


def _started(timeline: tuple[Event, ...]) -> list[int]:
    return [
        event.collective
        for event in timeline
        if event.what == "start" and event.collective is not None
    ]


def _shown(timeline: tuple[Event, ...]) -> list[int]:
    return _started(timeline)[:_MANY]
