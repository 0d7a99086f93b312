"""NVIDIA's GPUs, and the compiler for them."""

import functools
import tempfile
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import jax

from cocod_jax.certify._compile import Maker
from cocod_jax.certify._plugin import load_compiler, plugin_directory
from cocod_jax.certify._reasons import REASONS, Flags
from cocod_jax.execution._flags import COST_MODEL, EARLY_START, SCHEDULER, xla_flag

PLATFORM = "cuda"

TARGETS = {"h100": 9.0, "h200": 9.0, "a100": 8.0, "v100": 7.0}
"""The GPUs that are described in ``targets/``, with their compute capability."""


def gpus(target: str | None, devices: int, hosts: int) -> list[jax.Device]:
    """GPUs to compile for, spread evenly over hosts; none needs to exist.

    Raises:
      ImportError: when the compiler is not installed; it says how to install it.
      NotImplementedError: when this machine's GPUs are AMD's.
    """
    if target is None:
        return _gpus_of_this_machine()[:devices]
    # Imported here, so that the library loads where JAX lacks this module.
    from jax.experimental import topologies

    description = resources.files("cocod_jax.certify") / "targets" / f"{target}.txtpb"
    topology = lambda: topologies.get_topology_desc(
        platform=PLATFORM,
        topology=f"1x{hosts}x{devices // hosts}",
        target_config=description.read_text(),
    )
    # JAX finds its backends now, before the compiler could become one of them.
    jax.devices()
    try:
        return topology().devices
    except NotImplementedError:
        load_compiler()
        return topology().devices


def _gpus_of_this_machine() -> list[jax.Device]:
    if "rocm" in jax.devices()[0].client.platform_version.lower():
        raise NotImplementedError(
            "the certificate reads what the compiler for NVIDIA GPUs writes, and this "
            "machine has AMD's; give a target, such as target='h100'."
        )
    return jax.devices()


def _settings(target: str | None, options: Mapping[str, float]) -> dict[str, Any]:
    settings: dict[str, Any] = {"xla_gpu_kernel_cache_file": _kernels(), **options}
    assembler = plugin_directory() / "nvidia" / "cuda_nvcc"
    if assembler.is_dir():  # it knows all targets; one on the PATH may not
        settings["xla_gpu_cuda_data_dir"] = str(assembler)
    return settings


def _kernels() -> str:
    """The file in which the compiler keeps this process's kernels.

    Programs that differ in their schedule, such as a round with two delays, share
    kernels, and making them is much of the work.
    """
    return str(Path(_folder().name) / "kernels")


@functools.cache
def _folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="cocod_jax_")


def _flags(target: str | None, options: Mapping[str, float]) -> Flags:
    said = lambda name: options.get(name, xla_flag(name))
    # Where the cost model turns the scheduler on, the flag alone does not turn it off.
    has_model = _capability(target) >= 9 and said(COST_MODEL) in (None, True)
    scheduler = has_model or bool(said(SCHEDULER))
    return Flags(
        missing=None if scheduler else REASONS["scheduler-off"],
        early_start=all((said(n) or 0) >= value for n, value in EARLY_START.items()),
    )


def _capability(target: str | None) -> float:
    if target is not None:
        return TARGETS[target]
    return float(getattr(jax.devices()[0], "compute_capability", 0))


NVIDIA = Maker(PLATFORM, TARGETS, gpus, _settings, _flags)
