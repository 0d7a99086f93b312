"""One run, and the faults that befall it at random moments."""

import dataclasses
import json
import math
import random
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from experiments.chaos.config import Cell, Kind
from experiments.chaos.launched import Launched
from experiments.config import RunConfig

POLL = 0.1
LIMIT = 10
"""Of timeouts: a fault that has ended nothing by then has had no effect."""
DELAY = 0.5
"""Seconds, for several rounds: a fault comes in any part of one."""


class Fault(NamedTuple):
    """What befalls whom, and when.

    Attributes:
      kind: what it is.
      process: the number of the process.
      rounds: how many the run has to have done before; None while it starts.
      delay: seconds that it comes later; from the start where the run has to have done
        none.
    """

    kind: Kind
    process: int
    rounds: int | None
    delay: float


def draw(cell: Cell, rounds: int, start: float) -> list[list[Fault]]:
    """The faults of every run of a cell, in order.

    Every kind comes as often as the others. Some come at any moment while the processes
    start, the others at any moment of the training.

    Args:
      cell: which runs.
      rounds: that a run has.
      start: seconds that processes start for.
    """
    rng = random.Random(f"{cell.job} {cell.processes} {cell.seed}")
    number = cell.runs * cell.faults
    kinds = [cell.kinds[i % len(cell.kinds)] for i in range(number)]
    rng.shuffle(kinds)
    runs = []
    for i in range(0, number, cell.faults):
        moments = sorted(rng.randint(1, rounds * 9 // 10) for _ in range(cell.faults))
        runs.append([])
        for kind, moment in zip(kinds[i : i + cell.faults], moments, strict=True):
            starting = rng.random() < cell.starting
            process = rng.randrange(cell.processes)
            delay = rng.uniform(0, start if starting else DELAY)
            own = None if starting else moment
            runs[-1].append(Fault(kind, process, own, round(delay, 2)))
    return runs


@dataclasses.dataclass(kw_only=True)
class Befallen:
    """What became of a fault; times are seconds since it came.

    Attributes:
      fault: what it was.
      named: whether the launcher has named the process.
      ended: when all processes had ended; None where it ended none.
      recovered: when the run had logged another round; None where the next fault came
        before.
      redone: rounds that had to be done again.
    """

    fault: Fault
    named: bool = False
    ended: float | None = None
    recovered: float | None = None
    redone: int = 0

    def record(self) -> dict[str, Any]:
        """The fields, for a log."""
        own = self.fault._asdict()
        own["fault"] = own.pop("kind")
        return own | {**dataclasses.asdict(self), "fault": self.fault.kind}


class Progress:
    """Follows the log of a run.

    Attributes:
      rounds: how many it has.
      goes_on: whether the processes that run now have added some.
      last: the fault that came last; what the log says of it is noted there.
    """

    rounds = 0
    goes_on = False
    last: Befallen | None = None

    def __init__(self, run: RunConfig):
        self._log = run.log
        self._start: str | None = None  # as the log has it
        self._ended: str | None = None  # that of processes that have ended
        self._at, self._had = 0.0, 0

    def befallen(self, fault: Fault) -> Befallen:
        """A fault that has just come."""
        self.last, self._at = Befallen(fault=fault), time.monotonic()
        return self.last

    def restarted(self) -> None:
        """It has ended all processes, and others start."""
        assert self.last is not None
        self.last.ended = self._since()
        self._ended, self._had, self.goes_on = self._start, self.rounds, False

    def look(self) -> None:
        """Reads the log as it is now."""
        text = self._log.read_bytes() if self._log.exists() else b""
        rounds = own = 0  # in all, and of the last processes that have begun
        for line in text.splitlines(keepends=True):
            if not line.endswith(b"\n"):
                break
            if line.startswith(b'{"kind": "round"'):
                rounds, own = rounds + 1, own + 1
            elif line.startswith((b'{"kind": "run"', b'{"kind": "resumed"')):
                self._start, own = json.loads(line)["time"], 0
        self.goes_on = own > 0 and self._start != self._ended
        if self.last is not None and self.last.ended is not None:
            if self._start != self._ended:
                self.last.redone = max(0, self._had - (rounds - own))
            if self.goes_on and self.last.recovered is None:
                self.last.recovered = self._since()
        self.rounds = rounds

    def _since(self) -> float:
        return round(time.monotonic() - self._at, 2)


def disturb(
    cell: Cell, run: RunConfig, launched: Launched, faults: Sequence[Fault]
) -> list[Befallen]:
    """Lets faults befall a launched run, and waits for its end.

    Returns:
      What became of them; those are left out that the run has ended before.

    Raises:
      RuntimeError: when the run fails in the end, with what it has printed last.
    """
    progress, found = Progress(run), []

    def wait(until: Callable[[], bool], seconds: float = math.inf) -> None:
        deadline = time.monotonic() + seconds
        while not until() and launched.status is None and time.monotonic() < deadline:
            time.sleep(POLL)
            progress.look()

    never = lambda: False
    for fault in faults:
        if (least := fault.rounds) is not None:
            wait(lambda least=least: progress.goes_on and progress.rounds >= least)
        wait(never, fault.delay)
        before, printed = launched.restarts, len(launched.lines)
        if not launched.befall(fault.kind, fault.process):
            break
        found.append(progress.befallen(fault))
        names = lambda own=fault, line=printed: launched.names(own.process, line)
        restarted = lambda before=before: launched.restarts > before
        is_over = names if fault.kind == "slowed" else restarted
        wait(is_over, LIMIT * cell.timeout)
        found[-1].named = names()
        launched.mend(fault.kind, fault.process)
        if restarted():
            progress.restarted()
    wait(never)
    if launched.status:
        words = "\n".join(launched.lines[-50:])
        raise RuntimeError(f"{run.log.stem} failed at last:\n{words}")
    return found
