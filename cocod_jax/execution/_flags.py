"""The compiler's flags for the overlap, by platform."""

import os
import re
import warnings

import jax

SCHEDULER = "xla_gpu_enable_latency_hiding_scheduler"
# From compute capability 9.0 (Hopper) on the compiler has a cost model of the GPU, and
# the model turns the scheduler on.
COST_MODEL = "xla_gpu_enable_analytical_sol_latency_estimator"

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


def xla_flag(name: str) -> bool | None:
    """What ``XLA_FLAGS`` say about a switch, or None; the last word counts."""
    flags = os.environ.get("XLA_FLAGS", "").lower()
    values = re.findall(rf"--{name}(?:=(\w+))?(?=\s|$)", flags)
    return values[-1] in ("", "true", "1") if values else None


def compiler_options(device: jax.Device) -> dict[str, bool] | None:
    """What ``jax.jit`` is given for programs of this device."""
    return {SCHEDULER: True} if needs_scheduler(device) else None


def warn_without_scheduler(device: jax.Device) -> None:
    """Warns when the compiler would not hide the exchange on this device."""
    if needs_scheduler(device) and not xla_flag(SCHEDULER):
        warnings.warn(
            f"On {device.device_kind} the exchange is not hidden: set XLA_FLAGS="
            f"--{SCHEDULER}=true before JAX starts, or take via='shard_map'.",
            stacklevel=3,
        )
