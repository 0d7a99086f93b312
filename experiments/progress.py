"""Where long work is: what moves on a terminal, and plain lines elsewhere."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from experiments.signals import undisturbed

SILENCE = 15.0
"""Seconds after which a line says what goes on, where there is no terminal."""


class Reporter:
    """What goes on, and how much of it is done.

    On a terminal a bar, a spinner and the elapsed time move. Elsewhere a line says the
    same at once, and then again whenever nothing was printed for some seconds.

    Attributes:
      console: where it is shown.
    """

    def __init__(self, console: Console, live: Progress, silence: float):
        self.console = console
        self._live = live
        self._task = live.add_task("", total=None)
        self._silence = silence
        self._start = time.monotonic()
        self._printed = -float("inf")
        self._speaking = threading.Lock()

    def now(
        self, words: str, done: int | None = None, total: int | None = None
    ) -> None:
        """What goes on from now on; what is left out stays as it was."""
        self._live.update(self._task, description=words, completed=done, total=total)
        self.speak()

    def within(self, title: str) -> Callable[..., None]:
        """:meth:`now`, with a title before the words."""
        return lambda words, **counts: self.now(f"{title}, {words}", **counts)

    def print(self, shown: object) -> None:
        """A table, or anything else that rich can print; it stays."""
        self._printed = time.monotonic()
        self.console.print(shown)

    def line(self, text: str, style: str | None = None) -> None:
        """A line that stays."""
        self._printed = time.monotonic()
        self.console.print(text, style=style, highlight=False, soft_wrap=True)

    def speak(self) -> None:
        """Says what goes on if nothing was printed for a while, where nothing moves."""
        if self.console.is_terminal:
            return
        with self._speaking:
            task = self._live.tasks[0]
            silent = time.monotonic() - self._printed
            if task.description and silent >= self._silence:
                elapsed = time.monotonic() - self._start
                part = f"{task.completed:.0f}/{task.total:.0f}   " if task.total else ""
                self.line(f"{elapsed:4.0f} s   {part}{task.description}")


@contextmanager
def report(
    console: Console | None = None, silence: float = SILENCE
) -> Iterator[Reporter]:
    """A :class:`Reporter` for the work inside the context."""
    console = console or Console()
    live = Progress(
        SpinnerColumn(),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    reporter = Reporter(console, live, silence)
    over = threading.Event()

    def speak() -> None:
        while not over.wait(0.5):
            reporter.speak()

    thread = threading.Thread(target=speak, daemon=True)
    with undisturbed():  # for good in a thread that starts here: signals are not its
        if console.is_terminal:
            live.start()
        else:
            thread.start()
    try:
        yield reporter
    finally:
        over.set()
        if console.is_terminal:
            live.stop()
        else:
            thread.join()


class Training:
    """A training run, round by round on a terminal, elsewhere a line an epoch.

    Args:
      reporter: shows it.
      epochs: how many there are.
      rounds: how many there are.
      unit: what the speed counts, such as "images".
      done: how many of the rounds an earlier program has done.
    """

    def __init__(
        self, reporter: Reporter, epochs: float, rounds: int, unit: str, done: int = 0
    ):
        self._reporter = reporter
        self._epochs = epochs
        self._rounds = rounds
        self._unit = unit
        self._done, self._before, self._first_done = done, done, 0.0
        self._round, self._result = "", ""

    def round_done(
        self, epoch: int, loss: float, speed: float, utilisation: float | None = None
    ) -> None:
        """After every round: the finished epochs, and how this one goes."""
        self._first_done = self._first_done or time.monotonic()
        self._done += 1
        self._round = (
            f"epoch {min(epoch + 1, self._epochs):g}/{self._epochs:g}   "
            f"loss {loss:.4f}   {self._speed(speed, utilisation)}"
        )
        self._now()

    def _speed(self, speed: float, utilisation: float | None) -> str:
        mfu = "" if utilisation is None else f"   MFU {utilisation:.1%}"
        return f"{speed:,.0f} {self._unit}/s{mfu}"

    def _now(self) -> None:
        self._reporter.now(f"{self._round}{self._result}", self._done, self._rounds)

    def alarm(self, sentence: str) -> None:
        """A line that stays."""
        self._reporter.line(sentence, style="red")

    def epoch_done(self, record: Mapping[str, float], result: str) -> None:
        """After every epoch: its record in the log, and its result in a word."""
        self._result = f"   test {result}"
        self._now()
        if self._reporter.console.is_terminal:
            return
        speed = self._speed(
            record[f"{self._unit}_per_second"], record.get("model_flops_utilisation")
        )
        # The first round is not counted: it was compiled.
        since = time.monotonic() - self._first_done
        timed = max(self._done - self._before - 1, 1)
        left = (self._rounds - self._done) * since / timed
        self._reporter.line(
            f"epoch {record['epoch']:3.4g}/{self._epochs:g}   "
            f"round {self._done}/{self._rounds}   loss {record['train_loss']:.4f}"
            f"{self._result}   {speed}   ETA {left:.0f} s"
        )
