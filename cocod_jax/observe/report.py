"""What a bug report should say about a machine: versions, devices, flags."""

import contextlib
import os
import platform
import re
from collections import Counter
from importlib import metadata

import jax

from cocod_jax.certify import compiler_available
from cocod_jax.execution._flags import SCHEDULER, needs_scheduler

_DEPENDENCIES = (
    "jax",
    "jaxlib",
    "jax-cuda12-plugin",
    "jax-cuda13-plugin",
    "optax",
    "flax",
)


def report() -> str:
    """Versions, devices, compiler flags, and whether a certificate can be made.

    ``python -m cocod_jax`` prints it. Paths are left out: they name people.

    Returns:
      Lines to paste into a bug report, each ``name: value``.

    Examples:
      >>> from cocod_jax.observe.report import report
      >>> print(report())
      python: 3...
      devices: ...
    """
    flags = os.environ.get("XLA_FLAGS", "")
    facts = {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cocod_jax": metadata.version("cocod-jax"),
        **_versions(),
        "XLA_FLAGS": _without_paths(flags) or "not set",
    }
    try:
        devices = jax.devices()
    except RuntimeError as error:  # what is wrong may be just this
        facts["devices"] = f"none; {_without_paths(str(error))}"
    else:
        kinds = Counter(device.device_kind for device in devices)
        facts["platform"] = devices[0].platform
        facts["devices"] = ", ".join(f"{n} x {kind}" for kind, n in kinds.items())
        facts["processes"] = str(jax.process_count())
        facts["recommended XLA_FLAGS"] = _recommended(devices[0])
    facts["compiler for certificates"] = (
        "installed"
        if compiler_available()
        else "not installed; python -m cocod_jax.certify --install"
    )
    return "\n".join(f"{name}: {value}" for name, value in facts.items())


def _versions() -> dict[str, str]:
    """Of the packages that are installed."""
    versions = {}
    for name in _DEPENDENCIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def _without_paths(text: str) -> str:
    return re.sub(r"[^\s=]*[/\\]\S*", "<path>", text)


def _recommended(device: jax.Device) -> str:
    if device.platform == "tpu":
        return (
            "none is known to be safe; TPUs hide nothing by default, and which flags "
            "help depends on the generation"
        )
    if str(getattr(device, "compute_capability", "")).startswith("gfx"):
        return "unknown; no schedule of an AMD GPU has been read"
    if needs_scheduler(device):
        return f"--{SCHEDULER}=true; GPUs before Hopper hide nothing without"
    return "none; of NVIDIA's GPUs only those before Hopper need one"
