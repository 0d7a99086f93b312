"""One worker's function over all workers, by ``pmap``, ``shard_map`` or ``vmap``."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from cocod_jax.execution._flags import compiler_options
from cocod_jax.workers import place
from cocod_jax.workers._mesh import place_on

Via: TypeAlias = Literal["pmap", "shard_map", "vmap"]


@dataclasses.dataclass(frozen=True)
class WorkerMap:
    """How functions of one worker run on all of them.

    Attributes:
      via: the mapping transform.
      axis_name: the name that it gives to the axis of the workers.
      devices: one for each worker, over all processes; None takes the first ones.
      check_vma: ``shard_map``'s check of what varies between devices.
      mesh: of workers that have several devices each; None where each has one.
    """

    via: Via
    axis_name: str
    devices: tuple[jax.Device, ...] | None
    check_vma: bool = True
    mesh: Mesh | None = None

    def over(
        self, function: Callable, donate: tuple[int, ...] = (), **jit: Any
    ) -> Callable:
        """The function over all workers; its arguments must have been placed."""
        if self.via == "vmap":
            mapped = jax.vmap(function, axis_name=self.axis_name)
            return _jit(mapped, donate, jax.devices()[0])
        if self.mesh is not None:
            first = self.mesh.devices.flat[0]
            return _jit(self._blocks(function, self.mesh), donate, first, **jit)

        @functools.cache
        def program(workers: int) -> Callable:
            return self._program(function, donate, workers)

        def call(*args: Any) -> Any:
            return program(jax.tree.leaves(args)[0].shape[0])(*args)

        return call

    def place(self, tree: Any) -> Any:
        """The tree where its workers are.

        Arguments that start elsewhere would make the second call compile again.

        Raises:
          ValueError: when this process does not have one device for each of its
            workers.
        """
        leaves = jax.tree.leaves(tree)
        if not leaves:
            return tree
        if self.mesh is not None:
            return place_on(self.mesh, self.axis_name, tree)
        if self.via == "vmap":  # said aloud, for those who have JAX refuse the rest
            on_device = all(isinstance(leaf, jax.Array) for leaf in leaves)
            return tree if on_device else jax.device_put(tree)
        _, own = _worker_devices(self.devices, np.shape(leaves[0])[0])
        return place(tree, own, self.axis_name)

    def _program(
        self, function: Callable, donate: tuple[int, ...], workers: int
    ) -> Callable:
        every, own = _worker_devices(self.devices, workers)
        if self.via == "pmap":
            return jax.pmap(
                function, self.axis_name, devices=every, donate_argnums=donate
            )

        mesh = Mesh(np.array(every), self.axis_name)
        return _jit(self._blocks(function, mesh), donate, own[0])

    def _blocks(self, function: Callable, mesh: Mesh) -> Callable:
        """Each worker's part; the devices within a worker are left to the compiler."""

        def block(*args: Any) -> Any:
            # A worker's block still has the worker axis, of length 1.
            result = function(*jax.tree.map(lambda leaf: leaf[0], args))
            return jax.tree.map(lambda leaf: leaf[None], result)

        return jax.shard_map(
            block,
            mesh=mesh,
            in_specs=PartitionSpec(self.axis_name),
            out_specs=PartitionSpec(self.axis_name),
            axis_names={self.axis_name},
            check_vma=self.check_vma,
        )


def _jit(
    function: Callable, donate: tuple[int, ...], device: jax.Device, **jit: Any
) -> Callable:
    options = compiler_options(device) or None
    return jax.jit(function, donate_argnums=donate, compiler_options=options, **jit)


def _worker_devices(
    devices: Sequence[jax.Device] | None, workers: int
) -> tuple[list[jax.Device], list[jax.Device]]:
    """One device for each worker: of all processes, and of this one's ``workers``.

    Raises:
      ValueError: when this process does not have one device for each of its workers.
    """
    if devices is None:
        several = jax.process_count() > 1
        devices = jax.devices() if several else jax.devices()[:workers]
    own = [device for device in devices if device.process_index == jax.process_index()]
    if len(own) != workers:
        cure = (
            "each worker needs a device of its own, or via='vmap' to share one."
            if len(own) < workers
            else f"give the first {workers} of them: devices=devices[:{workers}]."
        )
        raise ValueError(f"there are {workers} workers and {len(own)} devices; {cure}")
    return list(devices), own
