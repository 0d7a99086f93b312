"""Which process keeps the others waiting, while it does."""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax

FOLDER = "pace"
"""The folder, in that of a run, in which every process says how far it is."""


class Pace:
    """Says which process is slow: others have gone on, and it has not for some time.

    A context manager. Every process writes how many rounds it has begun and how many
    its devices have done into a file of its own, at most once a second; the first
    process reads them all. The files are in a folder that the processes share, so that
    nothing waits for them. A process that loads data slowly is behind with the rounds
    that it has begun, and one with slow devices with those that they have done.

    Args:
      folder: that of the run.
      seconds: for which a process may be behind the others without a step forward.
      say: takes the sentence, in the first process; in a thread of its own.
      process: which one this is.
      number: how many there are; one alone keeps nobody waiting.
    """

    def __init__(
        self,
        folder: Path,
        seconds: float,
        say: Callable[[str], None],
        *,
        process: int,
        number: int,
    ):
        self._folder, self._seconds, self._say = folder / FOLDER, seconds, say
        self._process, self._number = process, number
        self._lock = threading.Lock()
        self._pending: list[Any] = []
        self._begun = 0
        self._written: tuple[int, int] | None = None
        self._behind: dict[int, tuple[tuple[int, int], float]] = {}
        self._named: dict[int, tuple[int, int]] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> "Pace":
        if self._number > 1:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._number > 1:
            self._thread.join()
            (self._folder / str(self._process)).unlink(missing_ok=True)
            with suppress(OSError):  # the others are still there
                self._folder.rmdir()

    def dispatched(self, result: Any) -> None:
        """Takes what this process's devices make in a round that it has dispatched."""
        if self._number > 1:
            with self._lock:
                self._begun += 1
                self._pending.append(jax.tree.leaves(result)[0])

    def _follow(self) -> None:
        while not self._over.wait(min(1.0, self._seconds / 4)):
            self.write()
            if self._process == 0:
                self.look(time.monotonic())

    def write(self) -> None:
        """Writes how far this process is, if it has gone on."""
        with self._lock:
            self._pending = [each for each in self._pending if not each.is_ready()]
            position = self._begun, self._begun - len(self._pending)
        if position != self._written:
            text = f"{position[0]} {position[1]}"
            (self._folder / str(self._process)).write_text(text)
            self._written = position

    def look(self, now: float) -> None:
        """Reads how far all are, now, in seconds, and names those that are slow."""
        found = {}
        for process in range(self._number):
            # It has not written yet, or is writing.
            with suppress(OSError, ValueError):
                begun, done = (self._folder / str(process)).read_text().split()
                found[process] = int(begun), int(done)
        if not found:
            return
        first = tuple(map(max, zip(*found.values(), strict=True)))
        for process, position in found.items():
            if position == first:
                self._behind.pop(process, None)
                continue
            before, since = self._behind.get(process, (position, now))
            since = since if before == position else now
            self._behind[process] = position, since
            if now - since >= self._seconds and self._named.get(process) != position:
                self._named[process] = position
                self._say(
                    f"Process {process} is slow: the others have waited for "
                    f"{now - since:.0f} s in its round {position[1] + 1}."
                )
