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

TARGETS = {"v4": 3, "v5e": 2, "v5p": 3, "v6e": 2}
"""The dimensions of the torus that the chips of a slice form."""


def tpus(target: str | None, devices: int, hosts: int) -> list[jax.Device]:
    """The chips of one slice to compile for; none needs to exist.

    Raises:
      ImportError: when the compiler is not installed; it says how to install it.
      ValueError: when no slice has as many chips.
    """
    if target is None:
        return jax.devices()[:devices]
    # Imported here, so that the library loads where JAX lacks this module.
    from jax.experimental import topologies

    check_available("tpu")
    # JAX finds its backends now, before the compiler could become one of them.
    jax.devices()
    library = {}
    if installed("tpu"):
        library["TPU_LIBRARY_PATH"] = str(plugin_directory("tpu") / "libtpu/libtpu.so")
    with without_a_word(**library):
        return topologies.get_topology_desc(
            f"{target}:{_slice(devices, TARGETS[target])}", PLATFORM
        ).devices


def _slice(chips: int, dimensions: int) -> str:
    """The most compact slice with so many chips, such as ``2x4`` for 8.

    Raises:
      ValueError: when ``chips`` is no power of 2.
    """
    if chips & (chips - 1):
        raise ValueError(
            f"devices={chips} must be a power of 2 for TPUs, whose slices are."
        )
    exponent = chips.bit_length() - 1
    sides = ((exponent + i) // dimensions for i in range(dimensions))
    return "x".join(str(2**side) for side in sides)


def _settings(target: str | None, options: Mapping[str, int]) -> dict[str, Any]:
    warn_of_nan(_generation(target), options)
    return dict(options)


def _flags(target: str | None, options: Mapping[str, int]) -> Flags:
    generation = _generation(target)
    needed = TPU_FLAGS.get(generation, {})
    missing = missing_flags({n: v for n, v in needed.items() if options.get(n) != v})
    if not missing:
        return Flags(None, early_start=True)
    reason = REASONS["tpu-flags"]
    named = f" The flags for {generation}: {as_xla_flags(missing)}"
    return Flags(reason._replace(cure=reason.cure + named), early_start=True)


def _generation(target: str | None) -> str:
    return tpu_generation(jax.devices()[0]) if target is None else target


TPU = Maker(PLATFORM, TARGETS, tpus, _settings, _flags)
