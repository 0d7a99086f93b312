"""What a bug report should say about a machine: versions, devices, flags."""

import contextlib
import os
import platform
import re
from collections import Counter
from importlib import metadata

import jax

from cocod_jax.certify import compiler_available
from cocod_jax.certify._plugin import COMPILERS
from cocod_jax.execution._flags import (
    EARLY_START,
    SCHEDULER,
    as_xla_flags,
    compiler_options,
    needs_scheduler,
)

_PACKAGES = (
    "cocod_jax",
    "jax",
    "jaxlib",
    "jax-cuda12-plugin",
    "jax-cuda13-plugin",
    "libtpu",
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
    facts = {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        **_versions(),
        "XLA_FLAGS": _without_paths(os.environ.get("XLA_FLAGS", "")) or "not set",
    }
    if flags := os.environ.get("LIBTPU_INIT_ARGS"):
        facts["LIBTPU_INIT_ARGS"] = _without_paths(flags)
    try:
        devices = jax.devices()
    except RuntimeError as error:  # this may be the problem to report
        facts["devices"] = f"none; {_without_paths(str(error))}"
    else:
        kinds = Counter(device.device_kind for device in devices)
        facts["platform"] = devices[0].platform
        facts["devices"] = ", ".join(f"{n} x {kind}" for kind, n in kinds.items())
        facts["processes"] = str(jax.process_count())
        facts["flags for the overlap"] = _overlap_flags(devices[0])
    for kind, compiler in COMPILERS.items():
        install = f"not installed; python -m cocod_jax.certify {compiler.option}"
        said = "installed" if compiler_available(kind) else install
        facts[f"compiler for {compiler.devices}"] = said
    return "\n".join(f"{name}: {value}" for name, value in facts.items())


def _versions() -> dict[str, str]:
    """The version of each package that is installed."""
    versions = {}
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def _without_paths(text: str) -> str:
    return re.sub(r"[^\s=]*[/\\]\S*", "<path>", text)


def _overlap_flags(device: jax.Device) -> str:
    """What the compiler needs to hide an exchange on this device, as far as known."""
    if device.platform == "cpu":
        return "none; a CPU hides an exchange only with distribute's exchange_devices"
    if device.platform == "tpu":
        return _tpu_flags(device)
    if str(getattr(device, "compute_capability", "")).startswith("gfx"):
        return (
            "unknown; no schedule of an AMD GPU was read, and what hides an exchange "
            f"elsewhere is off unless XLA_FLAGS=--{SCHEDULER}=true"
        )
    streamed = f"; programs of one step need '{as_xla_flags(EARLY_START)}' as well"
    if needs_scheduler(device):
        return (
            f"XLA_FLAGS=--{SCHEDULER}=true; without it this GPU hides nothing{streamed}"
        )
    return (
        "none; from Hopper on the latency-hiding scheduler is on by default" + streamed
    )


def _tpu_flags(device: jax.Device) -> str:
    flags = compiler_options(device)
    if not flags:
        return f"unknown; no schedule of a {device.device_kind} was read"
    return (
        f"LIBTPU_INIT_ARGS='{as_xla_flags(flags)}'; without them this TPU hides "
        "nothing. Certificates say so; no TPU has run a round. Watch for NaN, which "
        "such flags have caused in another program"
    )
