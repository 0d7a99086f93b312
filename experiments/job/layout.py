"""Where workers are: on a device each, or on several that share the model."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

import cocod_jax as cj
from experiments.algorithms import AXIS
from experiments.command import UsageError
from experiments.job.peaks import peak
from experiments.models.sharding import partition_specs

AXES = (AXIS, "fsdp", "tensor")
AUTO = (AxisType.Auto,) * len(AXES)
BATCHES = PartitionSpec(AXIS, None, "fsdp")
"""How the devices of a worker share its batches; those of "tensor" all have them."""


class Layout(NamedTuple):
    """The devices of a run.

    Attributes:
      devices: of all workers and all processes, one worker's after another's.
      fsdp: among how many a worker divides its parameters and its batches.
      tensor: among how many it divides its heads and hidden channels.
      exchange_devices: one for each worker, beside which it takes its local steps;
        None where it exchanges on its own.
    """

    devices: list[jax.Device]
    fsdp: int = 1
    tensor: int = 1
    exchange_devices: list[jax.Device] | None = None

    @property
    def each(self) -> int:
        """The devices of a worker."""
        return self.fsdp * self.tensor

    @property
    def workers(self) -> int:
        """Their number."""
        return len(self.devices) // self.each

    @property
    def own_device(self) -> jax.Device:
        """The first device of this process."""
        return next(d for d in self.devices if d.process_index == jax.process_index())

    @property
    def own_workers(self) -> range:
        """The workers that have a device of this process."""
        process = jax.process_index()
        own = [i for i, d in enumerate(self.devices) if d.process_index == process]
        return range(own[0] // self.each, own[-1] // self.each + 1)

    @property
    def peak(self) -> float | None:
        """What all devices can do, in floating-point operations per second."""
        one = peak(self.devices[0])
        return None if one is None else one * len(self.devices)

    @property
    def mesh(self) -> Mesh | None:
        """The mesh of all devices, where workers have several."""
        if self.each == 1:
            return None
        devices = np.reshape(self.devices, (self.workers, self.fsdp, self.tensor))
        return Mesh(devices, AXES, axis_types=AUTO)

    def initial_state(self, round_: cj.Round, init: Any, key: jax.Array) -> Any:
        """The initial values of a key, the same on all workers.

        No device ever has more of a shared model than its part.
        """
        if self.mesh is None:
            state = round_.init(*init(key), key=key)
            return cj.replicate(state, len(self.own_workers))
        on = functools.partial(NamedSharding, self.mesh)
        shapes, _ = jax.eval_shape(init, key)
        shardings = jax.tree.map(on, partition_specs(shapes))
        made = jax.jit(init, out_shardings=(shardings, on(PartitionSpec())))(key)
        return cj.replicate(round_.init(*made, key=key), mesh=self.mesh)

    def distribute(
        self, round_: cj.Round, dispatched: Callable[[Any], None], **options: Any
    ) -> Any:
        """The round on all workers.

        It takes batches from the host, those of :attr:`own_workers`, and returns the
        metrics of all workers to every process.

        Args:
          round_: what every worker runs.
          dispatched: gets the metrics of this process's workers as soon as a round is
            dispatched.
          **options: of ``distribute``.
        """
        if self.mesh is None:
            run = cj.distribute(
                round_,
                AXIS,
                devices=self.devices,
                exchange_devices=self.exchange_devices,
                **options,
            )
        else:
            run = cj.distribute(round_, via="shard_map", mesh=self.mesh)

        def run_own(state: Any, batches: Any) -> tuple[Any, Any]:
            if self.mesh is not None:
                batches = jax.tree.map(self._of_all_workers, batches)
            state, metrics = run(state, batches)
            dispatched(metrics)
            return state, metrics if jax.process_count() == 1 else self._shown(metrics)

        return run_own

    def meet(self, step: int, asked: Callable[[], bool]) -> Callable[[], "Met"]:
        """What the workers of all processes say of a round.

        Args:
          step: up to which this process's workers go in it.
          asked: whether this process was asked to stop.

        Returns:
          The function that tells; nothing waits before it is called. It raises
          UsageError unless all workers are in this round.
        """
        if jax.process_count() == 1:
            return lambda: Met(self.workers, asked())
        mesh = Mesh(np.array(self.devices), "devices")
        each = NamedSharding(mesh, PartitionSpec("devices"))
        own = np.tile(np.array([step, asked()], np.int32), (len(self.devices), 1))
        said = jax.make_array_from_callback(own.shape, each, lambda at: own[at])
        found = _copied(NamedSharding(mesh, PartitionSpec()))(said)
        return lambda: met(np.asarray(found)[:: self.each], step)

    def _of_all_workers(self, batches: np.ndarray) -> jax.Array:
        """Batches of this process's workers as its part of those of all."""
        first = self.own_workers.start
        assert self.mesh is not None

        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None  # for a pyrefly that takes jax at its word
            workers, *others = index
            start, stop, _ = workers.indices(self.workers)
            return batches[start - first : stop - first, *others]

        shape = self.workers, *batches.shape[1:]
        sharding = NamedSharding(self.mesh, BATCHES)
        return jax.make_array_from_callback(shape, sharding, part)

    def _shown(self, metrics: Any) -> Any:
        """The metrics of all workers, in each process; nothing waits for them."""
        mesh = self.mesh or Mesh(np.array(self.devices), AXIS)
        by_worker = NamedSharding(mesh, PartitionSpec(AXIS))

        def of_all(leaf: jax.Array) -> jax.Array:
            if not leaf.is_fully_addressable:
                return leaf
            own = [shard.data for shard in leaf.addressable_shards]
            shape = self.workers, *leaf.shape[1:]
            return jax.make_array_from_single_device_arrays(shape, by_worker, own)

        everywhere = NamedSharding(mesh, PartitionSpec())
        return _copied(everywhere)(jax.tree.map(of_all, metrics))


class Met(NamedTuple):
    """What all workers say of a round.

    Attributes:
      participants: how many are in it.
      asked: whether a process was asked to stop.
    """

    participants: int
    asked: bool


def met(said: np.ndarray, step: int) -> Met:
    """The sum of what the workers say.

    Args:
      said: for each worker the step and whether it was asked to stop, [N, 2].
      step: this process's.

    Raises:
      UsageError: when a worker is in another round: its data and its learning rate are
        those of another time, while it takes part in the mean.
    """
    away = np.flatnonzero(said[:, 0] != step)
    if away.size:
        there = {int(worker): int(said[worker, 0]) for worker in away}
        raise UsageError(
            f"{len(said) - away.size} of {len(said)} workers take part in the round up "
            f"to step {step}; the others are at (worker: step) {there}. All processes "
            "have to go on from one checkpoint, in a folder that they share."
        )
    return Met(len(said), bool(said[:, 1].any()))


@functools.cache
def _copied(sharding: NamedSharding) -> Any:
    """The program that brings a tree there."""
    return jax.jit(lambda tree: tree, out_shardings=sharding)


def shared_shapes(state: Any, batches: Any, layout: tuple[int, int, int]) -> Any:
    """Shapes of a state and batches of all workers, shared as on a mesh.

    What the optimizer keeps of a parameter is shared as the parameter is.

    Args:
      state: the shapes of a state of all workers.
      batches: those of a round's batches.
      layout: the sizes of the mesh's axes.
    """
    mesh = AbstractMesh(layout, AXES, axis_types=AUTO)
    specs = {
        jax.tree_util.keystr(path): spec
        for path, spec in jax.tree.leaves_with_path(
            partition_specs(state.params),
            is_leaf=lambda x: isinstance(x, PartitionSpec),
        )
    }

    def spread(path: Any, leaf: Any) -> Any:
        name = jax.tree_util.keystr(path)
        endings = [ending for ending in specs if name.endswith(ending)]
        own = specs[max(endings, key=len)] if endings else ()
        return leaf.update(sharding=NamedSharding(mesh, PartitionSpec(AXIS, *own)))

    shared = lambda leaf: leaf.update(sharding=NamedSharding(mesh, BATCHES))
    return jax.tree.map_with_path(spread, state), jax.tree.map(shared, batches)
