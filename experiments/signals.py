"""How a program is stopped: what ends it unwinds the stack, so that it can tidy up."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ENDS = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)  # the last is Ctrl-\
"""What ends a program besides Ctrl-C: ``kill``, a closed terminal."""


class Stopped(KeyboardInterrupt):
    """A signal has come that is to do what Ctrl-C does."""

    def __init__(self, number: int):
        super().__init__(signal.strsignal(number))
        self.status = 128 + number


def exit_status(stop: KeyboardInterrupt) -> int:
    """What shells expect of a program that was stopped so."""
    return stop.status if isinstance(stop, Stopped) else 128 + signal.SIGINT


@contextmanager
def like_ctrl_c() -> Iterator[None]:
    """Lets every signal of :data:`ENDS` unwind the stack, as Ctrl-C does.

    Ctrl-C itself stays as it was: a shell starts background jobs that ignore it.

    Raises:
      Stopped: a KeyboardInterrupt, where the signal arrives.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(number)

    previous = {number: signal.signal(number, stop) for number in ENDS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Holds signals back, Ctrl-C too; commands started meanwhile ignore them."""
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, *ENDS})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
