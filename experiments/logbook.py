"""The log of a run: one JSON record a line, the circumstances first."""

import dataclasses
import datetime
import importlib.metadata
import json
import platform
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax


def circumstances(config: Any) -> dict[str, Any]:
    """Versions, devices, command and configuration: what a result depends on."""
    packages = ("cocod-jax", "jax", "jaxlib", "flax", "optax", "numpy")
    device = jax.devices()[0]
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", _module(), *sys.argv[1:]]),
        "config": plain(config),
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in packages},
        },
        "devices": [device.platform, device.device_kind, jax.device_count()],
    }


def _module() -> str:
    """The module that ``python -m`` was given."""
    spec = sys.modules["__main__"].__spec__
    return "experiments" if spec is None else spec.name.removesuffix(".__main__")


def plain(config: Any) -> dict[str, Any]:
    """A configuration as JSON has it."""
    fields = dataclasses.asdict(config).items()
    return {k: str(v) if isinstance(v, Path) else v for k, v in fields}


class Logbook:
    """Appends records to a JSONL file; each is on disk when ``write`` returns."""

    def __init__(self, file: Any, path: Path):
        self._file = file
        self.path = path

    def write(self, kind: str, **record: Any) -> None:
        self._file.write(json.dumps({"kind": kind, **record}) + "\n")
        self._file.flush()


@contextmanager
def open_logbook(path: Path) -> Iterator[Logbook]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        yield Logbook(file, path)


def read(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The records of a log by their kind, in order."""
    records: dict[str, list[dict[str, Any]]] = {}
    for line in path.read_text().splitlines():
        record = json.loads(line)
        records.setdefault(record.pop("kind"), []).append(record)
    return records
