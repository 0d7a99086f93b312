"""Where workers are: on a device each, or on several that share the model (FSDP)."""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

import cocod_jax as cj
from experiments.algorithms import AXIS
from experiments.models.sharding import partition_specs

AXES = (AXIS, "fsdp")
AUTO = (AxisType.Auto,) * 2


class Layout(NamedTuple):
    """The devices of a run.

    Attributes:
      devices: of all workers, one worker's after another's.
      fsdp: how many each worker has.
    """

    devices: list[jax.Device]
    fsdp: int

    @property
    def workers(self) -> int:
        """Their number."""
        return len(self.devices) // self.fsdp

    @property
    def mesh(self) -> Mesh | None:
        """The mesh of all devices, where workers have several."""
        if self.fsdp == 1:
            return None
        devices = np.reshape(self.devices, (self.workers, self.fsdp))
        return Mesh(devices, AXES, axis_types=AUTO)

    def initial_state(self, round_: cj.Round, init: Any, key: jax.Array) -> Any:
        """The initial values of a key, the same on all workers.

        No device ever has more of a shared model than its part.
        """
        if self.mesh is None:
            return cj.replicate(round_.init(*init(key), key=key), self.workers)
        on = functools.partial(NamedSharding, self.mesh)
        shapes, _ = jax.eval_shape(init, key)
        shardings = jax.tree.map(on, fsdp_specs(shapes))
        made = jax.jit(init, out_shardings=(shardings, on(PartitionSpec())))(key)
        return cj.replicate(round_.init(*made, key=key), mesh=self.mesh)

    def distribute(self, round_: cj.Round, **options: Any) -> Any:
        """The round on all workers, which takes batches from the host."""
        if self.mesh is None:
            return cj.distribute(round_, AXIS, devices=self.devices, **options)
        run = cj.distribute(round_, via="shard_map", mesh=self.mesh)
        sharding = NamedSharding(self.mesh, PartitionSpec(AXIS, None, "fsdp"))
        return lambda state, batches: run(state, jax.device_put(batches, sharding))


def fsdp_specs(params: Any) -> Any:
    """How the devices of a worker share each of its parameters."""
    keep = lambda name: name if name in AXES else None
    return jax.tree.map(
        lambda spec: PartitionSpec(*map(keep, spec)),
        partition_specs(params),
        is_leaf=lambda node: isinstance(node, PartitionSpec),
    )


def shared_shapes(state: Any, batches: Any, workers: int, fsdp: int) -> tuple[Any, Any]:
    """Shapes of a state and batches of all workers, shared as on a mesh.

    What the optimizer keeps of a parameter is shared as the parameter is.
    """
    mesh = AbstractMesh((workers, fsdp), AXES, axis_types=AUTO)
    specs = {
        jax.tree_util.keystr(path): spec
        for path, spec in jax.tree.leaves_with_path(
            fsdp_specs(state.params), is_leaf=lambda x: isinstance(x, PartitionSpec)
        )
    }

    def spread(path: Any, leaf: Any) -> Any:
        name = jax.tree_util.keystr(path)
        endings = [ending for ending in specs if name.endswith(ending)]
        own = specs[max(endings, key=len)] if endings else ()
        return leaf.update(sharding=NamedSharding(mesh, PartitionSpec(AXIS, *own)))

    spec = PartitionSpec(AXIS, None, "fsdp")
    shared = lambda leaf: leaf.update(sharding=NamedSharding(mesh, spec))
    return jax.tree.map_with_path(spread, state), jax.tree.map(shared, batches)
