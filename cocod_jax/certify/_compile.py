"""Compiles a program for devices that need not exist, whoever made them."""

import warnings
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from cocod_jax._meshes import outside_of_meshes
from cocod_jax.certify._program import Program, spread
from cocod_jax.certify._reasons import Flags


class Maker(NamedTuple):
    """What differs between the compilers for GPUs and for TPUs.

    Attributes:
      platform: the name that JAX exports a program for.
      targets: the devices that can be compiled for.
      devices: ``(target, number, hosts)`` to devices; a target of None is this machine.
      settings: ``(target, options)`` to all that the compiler is told.
      flags: ``(target, options)`` to what the options, and those of the environment,
        leave to the compiler.
    """

    platform: str
    targets: Collection[str]
    devices: Callable[[str | None, int, int], list[jax.Device]]
    settings: Callable[[str | None, Mapping[str, float]], dict[str, Any]]
    flags: Callable[[str | None, Mapping[str, float]], Flags]


class Compiled(NamedTuple):
    """What the compiler made of a program.

    Attributes:
      hlo: its text, in the order of execution.
      temp_bytes: memory of one device beside its inputs and outputs.
      flags: what they left to the compiler.
    """

    hlo: str
    temp_bytes: int
    flags: Flags


def compile_program(
    program: Program,
    maker: Maker,
    *,
    target: str | None,
    hosts: int,
    options: Mapping[str, float],
) -> Compiled:
    """Compiles a program for a target, or for this machine's devices (None).

    Args:
      program: what to compile.
      maker: of the devices.
      target: one of the maker's.
      hosts: that the devices are spread over.
      options: as ``jax.jit`` takes them in ``compiler_options``.
    """
    exported, wanted = program.exported, program.exported.nr_devices
    devices = maker.devices(target, wanted, hosts)
    if len(devices) < wanted:
        raise ValueError(
            f"the program is for {wanted} devices, and this machine has "
            f"{len(devices)}; give a target, such as target='h100', to compile for it."
        )
    on = lambda mesh: Mesh(np.array(devices).reshape(mesh.axis_sizes), mesh.axis_names)
    shardings = [NamedSharding(on(s.mesh), s.spec) for s in program.shardings]
    settings = maker.settings(target, options)
    run = jax.jit(exported.call, donate_argnums=program.donated)
    inputs = spread(exported.in_avals, shardings)
    with outside_of_meshes(), warnings.catch_warnings():
        # JAX writes to its cache what it cannot read again without the device.
        unread = "Error reading persistent compilation cache"
        warnings.filterwarnings("ignore", unread, UserWarning)
        compiled = run.lower(*inputs).compile(compiler_options=settings)
    hlo, memory = compiled.as_text(), compiled.memory_analysis()
    if hlo is None or memory is None:
        raise NotImplementedError(f"the compiler for {devices[0]} shows no schedule.")
    return Compiled(hlo, memory.temp_size_in_bytes, maker.flags(target, options))
