"""Google's TPUs, and the compiler for them."""

from collections.abc import Mapping
from typing import Any

import jax

from cocod_jax.certify._compile import Maker
from cocod_jax.certify._plugin import (
    check_available,
    installed,
    plugin_directory,
    without_a_word,
)
from cocod_jax.certify._reasons import REASONS, Flags
from cocod_jax.execution._flags import (
    TPU_FLAGS,
    as_xla_flags,
    missing_flags,
    tpu_generation,
    warn_of_nan,
)

PLATFORM = "tpu"

TARGETS = {"v5e": 2, "v5p": 3, "v6e": 2}
"""The dimensions of the torus that the chips of a slice form."""


def tpus(target: str | None, devices: int, hosts: int) -> list[jax.Device]:
    """The chips of one slice to compile for; none needs to exist.

    Raises:
      ImportError: when the compiler is not installed; it says how to install it.
      ValueError: when no slice has as many chips.
    """
    if target is None:
        return jax.devices()[:devices]
    if devices & (devices - 1):
        raise ValueError(
            f"devices={devices} must be a power of 2 for target={target!r}."
        )
    # Imported here, so that the library loads where JAX lacks this module.
    from jax.experimental import topologies

    check_available("tpu")
    # JAX finds its backends now, before the compiler could become one of them.
    jax.devices()
    dimensions = TARGETS[target]
    on_a_host = (*_sides(devices // hosts, dimensions), 1)[:3]
    chips = "x".join(map(str, _sides(devices, dimensions)))
    with without_a_word(**_variables()):
        return topologies.get_topology_desc(
            f"{target}:{chips}", PLATFORM, chips_per_host_bounds=on_a_host
        ).devices


def _variables() -> dict[str, str]:
    """What the compiler reads when it loads: its place, no lock, and no logs."""
    variables = {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_MIN_LOG_LEVEL": "4"}
    if installed("tpu"):
        library = plugin_directory("tpu") / "libtpu" / "libtpu.so"
        variables["TPU_LIBRARY_PATH"] = str(library)
    return variables


def _sides(chips: int, dimensions: int) -> tuple[int, ...]:
    """The most compact box of so many chips, a power of 2."""
    exponent = chips.bit_length() - 1
    return tuple(2 ** ((exponent + i) // dimensions) for i in range(dimensions))


def _settings(target: str | None, options: Mapping[str, float]) -> dict[str, Any]:
    warn_of_nan(_generation(target), options)
    return dict(options)


def _flags(target: str | None, options: Mapping[str, float]) -> Flags:
    generation = _generation(target)
    missing = missing_flags(TPU_FLAGS.get(generation, {}), options)
    reason = REASONS["tpu-flags"]
    named = f" The flags for {generation}: {as_xla_flags(missing)}"
    lacking = reason._replace(cure=reason.cure + named) if missing else None
    return Flags(lacking, early_start=True)


def _generation(target: str | None) -> str:
    return tpu_generation(jax.devices()[0]) if target is None else target


TPU = Maker(PLATFORM, TARGETS, tpus, _settings, _flags)
