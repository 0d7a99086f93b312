"""The compiler's flags for the overlap, by platform."""

import os
import re
import warnings
from collections.abc import Mapping
from typing import TypeAlias

import jax

from cocod_jax._text import shown

Options: TypeAlias = dict[str, float]

SCHEDULER = "xla_gpu_enable_latency_hiding_scheduler"
# From compute capability 9.0 (Hopper) on the compiler has a cost model of the GPU, and
# the model turns the scheduler on.
COST_MODEL = "xla_gpu_enable_analytical_sol_latency_estimator"

# Without these two the scheduler starts an exchange only as long before its end as it
# believes that it takes; it believes in a fast network. The limit is of collectives in
# flight: the exchange, and beside it those of the devices of a worker.
EARLY_START: Options = {"xla_gpu_experimental_parallel_collective_overlap_limit": 4}
if jax.__version_info__ >= (0, 10, 2):  # older compilers refuse its name
    EARLY_START["xla_gpu_experimental_collective_start_as_early_as_possible"] = True

# Without these an all-reduce on TPUs is synchronous. Sparse cores do it where there are
# any; other cores do a part of it in each of their own kernels.
_ON_SPARSE_CORES: Options = {
    "xla_tpu_enable_sparse_core_collective_offload_all_reduce": True
}
_IN_KERNELS: Options = {
    "xla_enable_async_all_reduce": True,
    "xla_tpu_enable_async_collective_fusion_fuse_all_reduce": True,
}
# Without these the exchange of a single step starts late, and ends early. They tell the
# scheduler that an all-reduce takes a hundred times as long, or kernels a hundredth.
_LONG_ALL_REDUCE: Options = {"xla_tpu_sparse_core_all_reduce_latency_multiplier": 100}
_SHORT_KERNELS: Options = {
    "xla_lhs_output_fusion_latency_multiplier": 0.01,
    "xla_lhs_loop_fusion_latency_multiplier": 0.01,
}
# No TPU has run a round with them; compiled schedules are all that shows what they do.
TPU_FLAGS: dict[str, Options] = {
    "v5e": _IN_KERNELS | _SHORT_KERNELS,
    "v5p": _ON_SPARSE_CORES | _LONG_ALL_REDUCE,
    "v6e": _ON_SPARSE_CORES | _LONG_ALL_REDUCE,
}
# What a whole round does without.
_OF_ONE_STEP = EARLY_START.keys() | _LONG_ALL_REDUCE.keys() | _SHORT_KERNELS.keys()
_GENERATIONS = {"TPU v5 lite": "v5e", "TPU v5": "v5p", "TPU v6 lite": "v6e"}

# Together they turned another program's results into NaN on v6e, without a word; each
# alone did not: https://github.com/AI-Hypercomputer/maxdiffusion/issues/429
NAN_ON_V6E = (
    "xla_tpu_enable_async_collective_fusion",
    "xla_tpu_overlap_compute_collective_tc",
)


def needs_scheduler(device: jax.Device) -> bool:
    """Whether this GPU is one on which the scheduler is off by default.

    From compute capability 9.0 (Hopper) on it is on for programs such as a round.
    """
    major, _, _ = str(getattr(device, "compute_capability", "")).partition(".")
    return device.platform == "gpu" and major in ("6", "7", "8")


def tpu_generation(device: jax.Device) -> str:
    """Such as ``v5e``; JAX's name for those that are not known."""
    return _GENERATIONS.get(device.device_kind, device.device_kind)


def xla_flag(name: str) -> float | None:
    """What ``XLA_FLAGS``, or ``LIBTPU_INIT_ARGS``, say about a switch or a number.

    None for nothing. The last word counts. A switch is 0 or 1.
    """
    variables = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
    flags = " ".join(os.environ.get(name, "") for name in variables).lower()
    values = re.findall(rf"--{name}(?:=(\S+))?(?=\s|$)", flags)
    if not values:
        return None
    switch = {"": 1, "true": 1, "false": 0}
    return switch[values[-1]] if values[-1] in switch else float(values[-1])


def compiler_options(device: jax.Device | str | None = None) -> Options:
    """What lets the compiler hide exchanges, for a jitted program of your own.

    On NVIDIA GPUs a program needs them that is one step, such as a step with
    ``cj.every(..., streamed=True)``: its exchange then starts where the step does. On
    TPUs every program needs them: without them no exchange is asynchronous.
    :func:`cocod_jax.distribute` gives them to ``shard_map`` and ``vmap`` itself.
    ``jax.pmap`` takes no options; there the same names go into ``XLA_FLAGS``, for TPUs
    into ``LIBTPU_INIT_ARGS``.

    Args:
      device: where the program runs, or ``"cpu"``, ``"gpu"``, ``"v5e"``, ``"v5p"`` or
        ``"v6e"``; None is the first of ``jax.devices()``.

    Returns:
      Names and values for ``jax.jit(step, compiler_options=...)``. Empty on CPUs, where
      no exchange can be hidden within one program, and on AMD's GPUs and other TPUs,
      for which this library knows none.

    Raises:
      TypeError: when it is neither a name nor a device.
      ValueError: when it is another name.

    Examples:
      >>> step = jax.jit(lambda x: x + 1, compiler_options=cj.compiler_options())
      >>> for name, value in cj.compiler_options("gpu").items():
      ...     print(name, value)
      xla_gpu_experimental_parallel_collective_overlap_limit 4
      xla_gpu_experimental_collective_start_as_early_as_possible True
      xla_gpu_enable_latency_hiding_scheduler True
    """
    if device is None:
        device = jax.devices()[0]
    if isinstance(device, str):
        named = {"cpu": {}, "gpu": EARLY_START | {SCHEDULER: True}} | TPU_FLAGS
        if device not in named:
            raise ValueError(
                f"device={device!r} must be one of {', '.join(named)}, a device, or "
                "None; those of NVIDIA's are all 'gpu'."
            )
        return dict(named[device])
    if not isinstance(device, jax.Device):
        raise TypeError(
            f"device={shown(device)} must be a name such as 'gpu', a device, or None."
        )
    if device.platform == "tpu":
        return dict(TPU_FLAGS.get(tpu_generation(device), {}))
    if device.platform != "gpu" or _is_amd(device):
        return {}
    return EARLY_START | ({SCHEDULER: True} if needs_scheduler(device) else {})


def as_xla_flags(options: Mapping[str, float]) -> str:
    """Options in the spelling of ``XLA_FLAGS``."""
    return " ".join(f"--{name}={value}".lower() for name, value in options.items())


def missing_flags(
    needed: Mapping[str, float], options: Mapping[str, float] | None = None
) -> Options:
    """Those of some flags that neither options nor the environment give."""
    said = lambda name: (options or {}).get(name, xla_flag(name)) or 0
    return {name: value for name, value in needed.items() if said(name) < value}


def warn_without_flags(device: jax.Device, *, streamed: bool) -> None:
    """Warns when the compiler would not hide the exchange on this device."""
    needed = compiler_options(device)
    if not streamed:
        needed = {n: value for n, value in needed.items() if n not in _OF_ONE_STEP}
    if missing := missing_flags(needed):
        variable = "LIBTPU_INIT_ARGS" if device.platform == "tpu" else "XLA_FLAGS"
        warnings.warn(
            f"On {device.device_kind} the exchange is not hidden: set {variable}="
            f"{as_xla_flags(missing)!r} before JAX starts, or take via='shard_map'.",
            stacklevel=3,
        )


def warn_of_nan(generation: str, options: Mapping[str, float] | None = None) -> None:
    """Warns of the flags that gave NaN on v6e, as options or in the environment."""
    given = ((options or {}).get(name, xla_flag(name)) for name in NAN_ON_V6E)
    if generation == "v6e" and all(given):
        first, second = NAN_ON_V6E
        warnings.warn(
            f"{first} and {second} together have given NaN on v6e, without an error: "
            "https://github.com/AI-Hypercomputer/maxdiffusion/issues/429. Leave out "
            f"{second}.",
            stacklevel=3,
        )


def _is_amd(device: jax.Device) -> bool:
    return str(getattr(device, "compute_capability", "")).startswith("gfx")
