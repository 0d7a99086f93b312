"""Compiles a program for NVIDIA GPUs, which need not exist.

Devices of another kind take a module of their own with the same names: ``PLATFORM``,
``TARGETS`` and ``compile_program``.
"""

import functools
import tempfile
import warnings
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from cocod_jax._meshes import outside_of_meshes
from cocod_jax.certify._plugin import load_compiler, plugin_directory
from cocod_jax.certify._program import Program, spread
from cocod_jax.execution._flags import COST_MODEL, EARLY_START, SCHEDULER, xla_flag

PLATFORM = "cuda"
"""The name that JAX exports a program for."""

TARGETS = {"h100": 9.0, "h200": 9.0, "a100": 8.0, "v100": 7.0}
"""The GPUs that are described in ``targets/``, with their compute capability."""


class Compiled(NamedTuple):
    """What the compiler made of a program.

    Attributes:
      hlo: its text, in the order of execution.
      temp_bytes: memory of one device beside its inputs and outputs.
      scheduler: whether the latency-hiding scheduler was on.
      early_start: whether exchanges were told to start as early as they can.
    """

    hlo: str
    temp_bytes: int
    scheduler: bool
    early_start: bool


def compile_program(
    program: Program, *, target: str | None, hosts: int, options: Mapping[str, int]
) -> Compiled:
    """Compiles a program for a target, or for this machine's GPUs (None).

    Args:
      program: what to compile.
      target: one of ``TARGETS``.
      hosts: that the devices are spread over.
      options: as ``jax.jit`` takes them in ``compiler_options``.
    """
    if target is None and "rocm" in jax.devices()[0].client.platform_version.lower():
        raise NotImplementedError(
            "the certificate reads what the compiler for NVIDIA GPUs writes, and this "
            "machine has AMD's; give a target, such as target='h100'."
        )
    exported, wanted = program.exported, program.exported.nr_devices
    devices = jax.devices()[:wanted] if target is None else gpus(target, wanted, hosts)
    if len(devices) < wanted:
        raise ValueError(
            f"the program is for {wanted} devices, and this machine has "
            f"{len(devices)}; give a target, such as target='h100', to compile for it."
        )
    on = lambda mesh: Mesh(np.array(devices).reshape(mesh.axis_sizes), mesh.axis_names)
    shardings = [NamedSharding(on(s.mesh), s.spec) for s in program.shardings]
    assembler = plugin_directory() / "nvidia" / "cuda_nvcc"
    with_files: dict[str, Any] = {"xla_gpu_kernel_cache_file": _kernels(), **options}
    if assembler.is_dir():  # it knows all targets; one on the PATH may not
        with_files["xla_gpu_cuda_data_dir"] = str(assembler)
    run = jax.jit(exported.call, donate_argnums=program.donated)
    inputs = spread(exported.in_avals, shardings)
    with outside_of_meshes(), warnings.catch_warnings():
        # JAX writes to its cache what it cannot read again without the GPU.
        unread = "Error reading persistent compilation cache"
        warnings.filterwarnings("ignore", unread, UserWarning)
        compiled = run.lower(*inputs).compile(compiler_options=with_files)
    hlo, memory = compiled.as_text(), compiled.memory_analysis()
    if hlo is None or memory is None:
        raise NotImplementedError(f"the compiler for {devices[0]} shows no schedule.")
    said = lambda name: options.get(name, xla_flag(name))
    # Where the cost model turns the scheduler on, the flag alone does not turn it off.
    has_model = _capability(target) >= 9 and said(COST_MODEL) in (None, True)
    return Compiled(
        hlo,
        memory.temp_size_in_bytes,
        scheduler=has_model or bool(said(SCHEDULER)),
        early_start=all((said(n) or 0) >= value for n, value in EARLY_START.items()),
    )


def _kernels() -> str:
    """The file in which the compiler keeps this process's kernels.

    Programs that differ in their schedule, such as a round with two delays, share
    kernels, and making them is much of the work.
    """
    return str(Path(_folder().name) / "kernels")


@functools.cache
def _folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="cocod_jax_")


def gpus(target: str, devices: int, hosts: int) -> list[jax.Device]:
    """GPUs to compile for, spread evenly over hosts; none needs to exist.

    Raises:
      ImportError: when the compiler is not installed; it says how to install it.
    """
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


def _capability(target: str | None) -> float:
    if target is not None:
        return TARGETS[target]
    return float(getattr(jax.devices()[0], "compute_capability", 0))
