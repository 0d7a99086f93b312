"""Starts a program as several processes on this machine, which train together.

``python -m experiments.launch -n 2 -- python -m experiments.train --workers 2``

Each process gets the variables by which it finds the others, and the GPU of its number.
Its lines come out with that number before them. When one fails the others are ended,
and its status is that of the launcher.
"""

import dataclasses
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, NamedTuple, TextIO

import tyro

from experiments import children, command, rendezvous
from experiments.cluster.network import free_port
from experiments.signals import ENDS, handled


@dataclasses.dataclass(frozen=True, kw_only=True)
class LaunchConfig:
    """What runs, and how often."""

    command: tyro.conf.Positional[tuple[str, ...]]
    """What every process runs, after --; "python" is the interpreter that runs this."""
    processes: Annotated[int, tyro.conf.arg(aliases=["-n"])]
    """How many processes there are."""
    grace: float = 10.0
    """Seconds that processes have to end by themselves after one has failed."""


def main(config: LaunchConfig) -> int:
    """Runs the processes; returns the status of the first that fails, or 0."""
    if not config.command:
        raise command.UsageError("There is no command: give it after --.")
    if config.processes < 1:
        raise command.UsageError(f"-n {config.processes}: at least 1 has to run.")
    shared = environment(config.processes)
    if shutil.which(config.command[0], path=shared["PATH"]) is None:
        print(f"{config.command[0]}: command not found", file=sys.stderr)
        return 127
    with Processes() as processes:
        for index in range(config.processes):
            own = {rendezvous.INDEX: str(index), "JAX_LOCAL_DEVICE_IDS": str(index)}
            processes.start(config.command, shared | own)
        return processes.wait(config.grace)


def environment(processes: int) -> dict[str, str]:
    """The variables that the processes have in common."""
    folders = [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
    return {
        **os.environ,
        rendezvous.ADDRESS: f"127.0.0.1:{free_port()}",
        rendezvous.NUMBER: str(processes),
        "PATH": os.pathsep.join(folders),
        "PYTHONUNBUFFERED": "1",
    }


class Ended(NamedTuple):
    """The end of a process."""

    index: int


class Processes:
    """A context manager: processes that print by line, and end together.

    Inside it a signal to this process is passed on to all of them, and a second one
    kills them.
    """

    def __init__(self):
        self._children: list[subprocess.Popen[str]] = []
        self._events: queue.SimpleQueue[Ended | signal.Signals] = queue.SimpleQueue()
        self._stopped = False
        self._printing = threading.Lock()
        self._undo = ExitStack()

    def __enter__(self) -> "Processes":
        come = lambda number, frame: self._events.put(signal.Signals(number))
        self._undo.enter_context(handled((signal.SIGINT, *ENDS), come))
        self._undo.callback(lambda: children.end(self._running()))
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
                self._stop(signal.SIGKILL if self._stopped else event)
                continue
            left -= 1
            result = self._children[event.index].returncode
            if result and not status:
                status = result if result > 0 else 128 - result  # as shells say it
                self._fail(event.index, status, grace)
        return status

    def _fail(self, index: int, status: int, grace: float) -> None:
        if not self._stopped:
            self._print(f"Process {index} failed with status {status}.", sys.stderr)
            self._stop(signal.SIGTERM)
        late = threading.Timer(grace, self._stop, [signal.SIGKILL])
        late.daemon = True
        late.start()

    def _stop(self, number: int) -> None:
        self._stopped = True
        for child in self._running():
            children.signal_group(child, number)

    def _running(self) -> list[subprocess.Popen[str]]:
        return [child for child in self._children if child.returncode is None]

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
                self._print(f"{index}: {line}".removesuffix("\n"), out)

    def _print(self, line: str, out: TextIO) -> None:
        with self._printing:
            out.buffer.write(f"{line}\n".encode(errors="surrogateescape"))
            out.flush()


if __name__ == "__main__":
    # Who reads the output may go, as `head` does; then this ends, and its children too.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    command.run(main, LaunchConfig, __doc__)
