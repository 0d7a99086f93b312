"""A launched run that faults befall, seen from outside."""

import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path

from experiments import children
from experiments.chaos.config import Cell, Kind
from experiments.cluster.network import Network
from experiments.config import RunConfig
from experiments.processes import rendezvous
from experiments.sweep import options

SIGNALS: dict[Kind, signal.Signals] = {
    "killed": signal.SIGKILL,
    "halted": signal.SIGSTOP,
    "exception": signal.SIGUSR1,  # see worker.py
    "slowed": signal.SIGSTOP,
}


class Launched:
    """A context manager: the launcher, its processes, and what it prints.

    Args:
      cell: what runs.
      network: where it does; entered.
      run: the configuration of the main job.
      cache: a folder for compiled programs.

    Attributes:
      lines: all that was printed so far.
    """

    def __init__(self, cell: Cell, network: Network, run: RunConfig, cache: Path):
        self._network, self._run = network, run
        self.lines: list[str] = []
        words = [*_words(cell), "--", "sh", "-c", self._script()]
        self._launcher = children.start(
            [sys.executable, "-m", "experiments.launch", *words],
            env={
                **os.environ,
                "JAX_PLATFORMS": "cpu",
                "JAX_COMPILATION_CACHE_DIR": str(cache),
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _script(self) -> str:
        """What each process runs, by its number: in its own namespace."""
        train = [sys.executable, "-m", "experiments.chaos.worker", *options(self._run)]
        each = [
            f"{worker}) exec {shlex.join(self._network.command(worker, train))};;"
            for worker in range(self._network.workers)
        ]
        address = f"{self._network.address(0)}:${{{rendezvous.ADDRESS}##*:}}"
        number = f"${rendezvous.INDEX}"
        return "\n".join(
            [f"{rendezvous.ADDRESS}={address}", f"case {number} in", *each, "esac"]
        )

    def __enter__(self) -> "Launched":
        return self

    def __exit__(self, *_: object) -> None:
        self._launcher.terminate()
        self._launcher.terminate()  # a second one kills the processes
        try:
            self._launcher.wait(10)
        finally:
            children.end([self._launcher])
            self._reader.join()

    def _read(self) -> None:
        assert self._launcher.stdout is not None
        with self._launcher.stdout as lines:
            for line in lines:
                self.lines.append(line.rstrip("\n"))

    @property
    def status(self) -> int | None:
        """That of the launcher; None while it runs."""
        return self._launcher.poll()

    @property
    def restarts(self) -> int:
        """How often all processes were started again so far."""
        return sum(line.startswith("Restart ") for line in self.lines)

    def befall(self, kind: Kind, process: int) -> bool:
        """Lets a fault befall a process; returns whether the process was there."""
        if kind == "cut":
            self._network.set_link(process, up=False)
            return True
        return self._signal(process, SIGNALS[kind])

    def mend(self, kind: Kind, process: int) -> None:
        """Takes back what outlasts a process."""
        if kind == "cut":
            self._network.set_link(process, up=True)
        elif kind == "slowed":
            self._signal(process, signal.SIGCONT)

    def names(self, process: int, since: int) -> bool:
        """Whether a process was named, in the lines from this one on."""
        sentence = re.compile(rf"(0: )?Process {process} (failed|was missing|is slow)")
        return any(sentence.match(line) for line in self.lines[since:])

    def _signal(self, process: int, number: signal.Signals) -> bool:
        try:
            os.kill(self._pids()[process], number)
        except (KeyError, ProcessLookupError):
            return False
        return True

    def _pids(self) -> dict[int, int]:
        """The processes that run, by their numbers."""
        pid, found = self._launcher.pid, {}
        listed = Path(f"/proc/{pid}/task/{pid}/children")
        for child in listed.read_text().split() if listed.exists() else ():
            try:
                variables = Path(f"/proc/{child}/environ").read_text().split("\0")
            except OSError:  # it has just ended
                continue
            for variable in variables:
                name, _, value = variable.partition("=")
                if name == rendezvous.INDEX:
                    found[int(value)] = int(child)
        return found


def _words(cell: Cell) -> list[str]:
    named = {"-n": cell.processes, "--restarts": cell.faults, "--timeout": cell.timeout}
    return [word for name, value in named.items() for word in (name, str(value))]
