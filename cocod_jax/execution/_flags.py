"""The compiler's flags for the overlap, by platform."""

import os
import re
import warnings
from collections.abc import Mapping

import jax

SCHEDULER = "xla_gpu_enable_latency_hiding_scheduler"
# From compute capability 9.0 (Hopper) on the compiler has a cost model of the GPU, and
# the model turns the scheduler on.
COST_MODEL = "xla_gpu_enable_analytical_sol_latency_estimator"

# Without these two the scheduler starts an exchange only as long before its end as it
# believes that it takes; it believes in a fast network.
EARLY_START = {"xla_gpu_experimental_parallel_collective_overlap_limit": 2}
if jax.__version_info__ >= (0, 10, 2):  # older compilers refuse its name
    EARLY_START["xla_gpu_experimental_collective_start_as_early_as_possible"] = True

# Flags for asynchronous all-reduces, by kind of TPU. This library has not read what a
# compiler makes of a round with them.
TPU_FLAGS = {
    "TPU v5 lite": (
        "xla_enable_async_all_reduce=true",
        "xla_tpu_enable_async_collective_fusion=true",
        "xla_tpu_enable_async_collective_fusion_fuse_all_reduce=true",
        "xla_tpu_enable_async_collective_fusion_multiple_steps=true",
        "xla_tpu_overlap_compute_collective_tc=true",
    ),
    "TPU v6 lite": (
        "xla_tpu_enable_sparse_core_collective_offload_all_reduce=true",
        "xla_tpu_enable_async_collective_fusion_fuse_all_reduce=false",
        "xla_tpu_use_tc_device_shape_on_sc=true",
    ),
}


def needs_scheduler(device: jax.Device) -> bool:
    """Whether this GPU is one on which the scheduler is off by default.

    From compute capability 9.0 (Hopper) on it is on for programs such as a round.
    """
    major, _, _ = str(getattr(device, "compute_capability", "")).partition(".")
    return device.platform == "gpu" and major in ("6", "7", "8")


def xla_flag(name: str) -> int | None:
    """What ``XLA_FLAGS`` say about a switch or a number; None for nothing.

    The last word counts. A switch is 0 or 1.
    """
    flags = os.environ.get("XLA_FLAGS", "").lower()
    values = re.findall(rf"--{name}(?:=(\w+))?(?=\s|$)", flags)
    if not values:
        return None
    switch = {"": 1, "true": 1, "false": 0}
    return switch[values[-1]] if values[-1] in switch else int(values[-1])


def compiler_options(device: jax.Device | str | None = None) -> dict[str, int]:
    """What lets the compiler hide exchanges, for a jitted program of your own.

    On NVIDIA GPUs a program needs them that is one step, such as a step with
    ``cj.every(..., streamed=True)``: its exchange then starts where the step does.
    :func:`cocod_jax.distribute` gives them to ``shard_map`` and ``vmap`` itself.
    ``jax.pmap`` takes no options; there the same names go into ``XLA_FLAGS``.

    Args:
      device: where the program runs, or a platform such as ``"gpu"``; None is the
        first of ``jax.devices()``.

    Returns:
      Names and values for ``jax.jit(step, compiler_options=...)``. Empty on CPUs, where
      no exchange can be hidden within one program, and on TPUs and AMD's GPUs, whose
      schedules this library does not read.

    Examples:
      >>> step = jax.jit(lambda x: x + 1, compiler_options=cj.compiler_options())
      >>> for name, value in cj.compiler_options("gpu").items():
      ...     print(name, value)
      xla_gpu_experimental_parallel_collective_overlap_limit 2
      xla_gpu_experimental_collective_start_as_early_as_possible True
      xla_gpu_enable_latency_hiding_scheduler True
    """
    if device is None:
        device = jax.devices()[0]
    if isinstance(device, str):
        return EARLY_START | {SCHEDULER: True} if device in ("gpu", "cuda") else {}
    if device.platform != "gpu" or _is_amd(device):
        return {}
    return EARLY_START | ({SCHEDULER: True} if needs_scheduler(device) else {})


def as_xla_flags(options: Mapping[str, int]) -> str:
    """Options in the spelling of ``XLA_FLAGS``."""
    return " ".join(f"--{name}={value}".lower() for name, value in options.items())


def warn_without_flags(device: jax.Device, *, streamed: bool) -> None:
    """Warns when the compiler would not hide the exchange on this device."""
    missing = {
        name: value
        for name, value in compiler_options(device).items()
        if (streamed or name == SCHEDULER) and (xla_flag(name) or 0) < value
    }
    if missing:
        warnings.warn(
            f"On {device.device_kind} the exchange is not hidden: set XLA_FLAGS="
            f"{as_xla_flags(missing)!r} before JAX starts, or take via='shard_map'.",
            stacklevel=3,
        )


def _is_amd(device: jax.Device) -> bool:
    return str(getattr(device, "compute_capability", "")).startswith("gfx")
