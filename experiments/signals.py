"""How a program is stopped: what ends it unwinds the stack, so that it can tidy up."""

import signal
from collections.abc import Callable, Iterable, Iterator
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
def handled(
    numbers: Iterable[int], handler: Callable[[int, FrameType | None], None]
) -> Iterator[None]:
    """Lets a handler take signals, save for those that this process is to ignore.

    A shell starts background jobs that ignore Ctrl-C, and ``nohup`` starts what ignores
    the end of its terminal.
    """
    heard = [each for each in numbers if signal.getsignal(each) != signal.SIG_IGN]
    previous = {number: signal.signal(number, handler) for number in heard}
    try:
        yield
    finally:
        for number, handler_before in previous.items():
            signal.signal(number, handler_before)


@contextmanager
def like_ctrl_c() -> Iterator[None]:
    """Lets every signal of :data:`ENDS` unwind the stack, as Ctrl-C does.

    Raises:
      Stopped: a KeyboardInterrupt, where the signal arrives.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(number)

    with handled(ENDS, stop):
        yield


class Request:
    """Whether a signal has asked this program to stop.

    Attributes:
      number: the signal's; None while none has come.
    """

    number: int | None = None

    def obey(self) -> None:
        """Raises Stopped; as SIGTERM where another process has got the signal."""
        raise Stopped(signal.SIGTERM if self.number is None else self.number)


@contextmanager
def asked() -> Iterator[Request]:
    """Lets the first signal ask for an end, where the program sees fit.

    Yields:
      What was asked for. A second signal unwinds the stack as Ctrl-C does.

    Raises:
      Stopped: a KeyboardInterrupt, where the second signal arrives.
    """
    request = Request()

    def ask(number: int, frame: FrameType | None) -> None:
        if request.number is not None:
            raise Stopped(number)
        request.number = number

    with handled((signal.SIGINT, *ENDS), ask):
        yield request


@contextmanager
def undisturbed() -> Iterator[None]:
    """Holds signals back, Ctrl-C too; commands started meanwhile ignore them."""
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, *ENDS})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
