"""What a run shows while it goes: a live display, or plain lines in a file."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


class Display:
    """Round by round on a terminal; elsewhere one line an epoch."""

    def __init__(self, console: Console, progress: Progress, epochs: int, rounds: int):
        self._console = console
        self._progress = progress
        self._epochs = epochs
        self._task = progress.add_task(
            "training", total=rounds, epoch=1, loss="", accuracy="", speed=""
        )

    def round_done(self, epoch: int, loss: float, images_per_second: float) -> None:
        """After every round: the finished epochs, and how this one goes."""
        self._progress.update(
            self._task,
            advance=1,
            epoch=min(epoch + 1, self._epochs),
            loss=f"loss {loss:.4f}",
            speed=f"{images_per_second:,.0f} images/s",
        )

    def alarm(self, sentence: str) -> None:
        """A line that stays."""
        self._console.print(sentence, style="red", highlight=False, soft_wrap=True)

    def epoch_done(self, record: dict[str, float]) -> None:
        """After every epoch: its record in the log."""
        accuracy = f"test {record['test_accuracy']:.2%}"
        self._progress.update(self._task, accuracy=accuracy)
        if not self._console.is_terminal:
            task = self._progress.tasks[0]
            remaining = task.time_remaining or 0
            self._console.print(
                f"epoch {record['epoch']:3d}/{self._epochs}   "
                f"round {task.completed:.0f}/{task.total:.0f}   "
                f"loss {record['train_loss']:.4f}   {accuracy}   "
                f"{record['images_per_second']:,.0f} images/s   ETA {remaining:.0f} s",
                highlight=False,
                soft_wrap=True,
            )


@contextmanager
def display(
    console: Console, epochs: int, rounds: tuple[int, int]
) -> Iterator[Display]:
    """A :class:`Display` for a run of so many epochs, and rounds of either kind."""
    progress = Progress(
        TextColumn("epoch {task.fields[epoch]}/" + str(epochs)),
        BarColumn(),
        TextColumn("round {task.completed}/{task.total}"),
        TextColumn("{task.fields[loss]}"),
        TextColumn("[bold]{task.fields[accuracy]}"),
        TextColumn("{task.fields[speed]}"),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    with progress:
        yield Display(console, progress, epochs, sum(rounds))
