"""Processes that train together: they print by line, and they end together."""

import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import NamedTuple, TextIO

from experiments import children
from experiments.processes.missing import Missing
from experiments.signals import ENDS, handled


class Ended(NamedTuple):
    """The end of a process."""

    index: int


class Processes:
    """A context manager: processes that print by line, and end together.

    Inside it a signal to this process is passed on to all of them, and a second one
    kills them.

    Args:
      number: how many there will be.

    Attributes:
      interrupted: whether a signal to this process ended them.
      failed: the first that failed, if one has.
    """

    interrupted = False
    failed: Sequence[int] = ()

    def __init__(self, number: int):
        self._missing = Missing(number)
        self._halted: list[int] = []
        self._children: list[subprocess.Popen[str]] = []
        self._events: queue.SimpleQueue[Ended | signal.Signals] = queue.SimpleQueue()
        self._stopped = False
        self._printing = threading.Lock()
        self._undo = ExitStack()

    def __enter__(self) -> "Processes":
        come = lambda number, frame: self._events.put(signal.Signals(number))
        self._undo.enter_context(handled((signal.SIGINT, *ENDS), come))
        self._undo.callback(
            lambda: children.end(self._children[index] for index in self._running())
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def start(self, argv: Sequence[str], env: Mapping[str, str]) -> None:
        """Starts the next process."""
        child = children.start(
            argv,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",  # takes a carriage return for the end of a line
            errors="surrogateescape",
        )
        self._children.append(child)
        index = len(self._children) - 1
        threading.Thread(target=self._watch, args=(index, child), daemon=True).start()

    def wait(self, grace: float) -> int:
        """Waits for all of them; returns the status of the first that failed, or 0.

        The others then get SIGTERM, and SIGKILL after the grace period, in seconds.
        """
        status, left = 0, len(self._children)
        while left:
            try:
                # A signal that comes before the wait begins is handled after it.
                event = self._events.get(timeout=0.1)
            except queue.Empty:
                continue
            if isinstance(event, signal.Signals):
                self.interrupted = True
                self._stop(signal.SIGKILL if self._stopped else event)
                continue
            left -= 1
            result = self._children[event.index].returncode
            if result and not status:
                self.failed = [event.index]
                status = result if result > 0 else 128 - result  # as shells say it
                self._fail(event.index, status, grace)
        return status

    def missing(self) -> list[int]:
        """The processes without which the others could not go on.

        They were halted as by SIGSTOP, or the others have not heard of them any more.
        """
        return self._halted or self._missing.processes

    def _fail(self, index: int, status: int, grace: float) -> None:
        if not self._stopped:
            self._halted = [each for each in self._running() if self._is_halted(each)]
            self._print(f"Process {index} failed with status {status}.", sys.stderr)
            self._stop(signal.SIGTERM)
        late = threading.Timer(grace, self._stop, [signal.SIGKILL])
        late.daemon = True
        late.start()

    def _stop(self, number: int) -> None:
        self._stopped = True
        for index in self._running():
            # What is halted takes no other signal than this.
            deaf = index in self._halted
            own = signal.SIGKILL if deaf else number
            children.signal_group(self._children[index], own)

    def _running(self) -> list[int]:
        every = enumerate(self._children)
        return [index for index, child in every if child.returncode is None]

    def _is_halted(self, index: int) -> bool:
        if sys.platform != "linux":
            return False
        look = os.WSTOPPED | os.WNOHANG | os.WNOWAIT
        with suppress(ChildProcessError):  # it has ended meanwhile
            return os.waitid(os.P_PID, self._children[index].pid, look) is not None
        return False

    def _watch(self, index: int, child: subprocess.Popen[str]) -> None:
        """Prints what a process prints until it ends, and what it has started."""
        streams = ((child.stdout, sys.stdout), (child.stderr, sys.stderr))
        copies = [
            threading.Thread(target=self._copy, args=(index, *each), daemon=True)
            for each in streams
        ]
        for copy in copies:
            copy.start()
        child.wait()
        children.signal_group(child, signal.SIGKILL)
        for copy in copies:
            copy.join()
        self._events.put(Ended(index))

    def _copy(self, index: int, lines: TextIO, out: TextIO) -> None:
        with lines:
            for line in lines:
                if out is sys.stderr:
                    self._missing.read(index, line)
                self._print(f"{index}: {line}".removesuffix("\n"), out)

    def _print(self, line: str, out: TextIO) -> None:
        with self._printing:
            out.buffer.write(f"{line}\n".encode(errors="surrogateescape"))
            out.flush()
