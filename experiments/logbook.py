"""The log of a run: its circumstances first, and last how it ended."""

import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax

from cocod_jax.observe.loggers import Logbook, to_jsonl


@contextmanager
def opened(
    path: Path, config: Any, *, resumed: int | None = None, **more: Any
) -> Iterator[Logbook]:
    """A log that begins with a record "run" and ends with a record "end".

    Args:
      path: the file; one that is there is replaced.
      config: the configuration of the run, a dataclass.
      resumed: the step from which an earlier run goes on, in the file that is there;
        the record is then "resumed".
      **more: further fields of this record.

    Yields:
      The log. The record "end" has a status: "finished", "interrupted" after Ctrl-C or
      a signal like it, "failed" after another exception.
    """
    with to_jsonl(path, append=resumed is not None) as log:
        first = circumstances(config) | more
        if resumed is None:
            log.write("run", **first)
        else:
            log.write("resumed", step=resumed, **first)
        try:
            yield log
        except BaseException as error:
            stopped = isinstance(error, KeyboardInterrupt)
            with suppress(OSError):  # of a disk that is full, as the error may say
                log.write("end", status="interrupted" if stopped else "failed")
            raise
        log.write("end", status="finished")


def circumstances(config: Any) -> dict[str, Any]:
    """Commit, versions, machine, command and configuration: what a result depends on.

    The commit is None outside of a git checkout, and ends in "-dirty" when files other
    than results have changed since.
    """
    packages = ("cocod-jax", "jax", "jaxlib", "flax", "optax", "numpy")
    device = jax.devices()[0]
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", _module(), *sys.argv[1:]]),
        "config": plain(config),
        "commit": _commit(),
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in packages},
        },
        "devices": [device.platform, device.device_kind, jax.device_count()],
        "processor": {"model": _processor(), "cores": os.cpu_count()},
    }


def _module() -> str:
    """The module that ``python -m`` was given."""
    spec = sys.modules["__main__"].__spec__
    return "experiments" if spec is None else spec.name.removesuffix(".__main__")


def _commit() -> str | None:
    def git(*args: str) -> str:
        return subprocess.check_output(
            ["git", *args],
            cwd=Path(__file__).parent,
            stderr=subprocess.DEVNULL,
            text=True,
        ).strip()

    try:
        commit = git("rev-parse", "--short=12", "HEAD")
        # A run may be replacing its own earlier log, on which it does not depend.
        code = (":(top)", ":(top,exclude)experiments/results")
        changed = git("status", "--porcelain", "--untracked-files=no", "--", *code)
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit}-dirty" if changed else commit


def _processor() -> str:
    """The processor's model; on Linux only a file names it."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    model = re.search(r"^model name\s*: (.+)$", text, re.MULTILINE)
    return model[1] if model else platform.processor()


def plain(config: Any) -> dict[str, Any]:
    """A configuration as it comes back from JSON."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))
