"""Child processes that do not outlive this program."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

from experiments.signals import undisturbed


def start(argv: Sequence[str], **options: Any) -> subprocess.Popen:
    """Starts a command, without input, in a process group of its own.

    On Linux the kernel kills it when this process ends, however that is.

    Args:
      argv: the command.
      **options: of :class:`subprocess.Popen`.
    """
    return subprocess.Popen(
        [*_dies_with_parent(), *argv],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        **options,
    )


def signal_group(child: subprocess.Popen, number: int) -> None:
    """Sends a signal to a child and to what it has started."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, number)


def end(children: Iterable[subprocess.Popen]) -> None:
    """Kills what is left of the children and of what they have started."""
    with undisturbed():  # by a second Ctrl-C
        for child in children:
            signal_group(child, signal.SIGKILL)
            child.wait()


def _dies_with_parent() -> list[str]:
    """What to put before a command for that."""
    setpriv = shutil.which("setpriv")  # from util-linux
    return [setpriv, "--pdeathsig", "KILL"] if setpriv else []
