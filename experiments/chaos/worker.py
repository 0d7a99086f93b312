"""The main job, in which a signal raises an exception: ``SIGUSR1``."""

import runpy
import signal
from types import FrameType


class Fault(Exception):
    """What the study raises in a process."""


def fail(number: int, frame: FrameType | None) -> None:
    """Raises it, wherever the process is."""
    raise Fault("the study of faults has raised this")


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, fail)
    runpy.run_module("experiments.train", run_name="__main__")
