"""What the log of a run begins with: the circumstances."""

import dataclasses
import datetime
import importlib.metadata
import json
import platform
import shlex
import sys
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
    """A configuration as it comes back from JSON."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))
