"""The input pipeline: the batches of every worker, round by round.

The stream is a pure function of (seed, step, worker): any round can be asked for
at any time, a resumed run sees what an uninterrupted one would have seen, and all
algorithms and periods see the same examples.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import grain
import jax
import numpy as np

import cocod_jax as cj
from experiments.command import UsageError

Example = Mapping[str, jax.ShapeDtypeStruct]
"""The shape and the dtype of one example, by the names of its parts."""


class Source(Protocol):
    """What examples are taken from."""

    @property
    def example(self) -> Example:
        """What one is."""
        ...

    def take(self, chosen: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
        """A batch of them by their indices; ``rng`` draws an augmentation."""
        ...


class Pipeline:
    """The training data of N workers.

    In every epoch, each worker goes once through its shard in an order of its own,
    drawn from (seed, epoch, worker). Incomplete batches are dropped; the epoch has
    as many steps as the smallest shard has batches.

    Args:
      source: where the examples are.
      shards: for each worker the indices of its examples.
      batch_size: examples in a local batch, or in a micro-batch.
      seed: draws the orders and the augmentation.
      micro_batches: for each worker, how many make its local batch; None means that
        there are none.

    Raises:
      UsageError: a ValueError, when ``batch_size`` is not positive, there is not one
        number of micro-batches for each worker, or a shard has fewer examples than a
        batch.
    """

    def __init__(
        self,
        source: Source,
        shards: Sequence[np.ndarray],
        *,
        batch_size: int,
        seed: int,
        micro_batches: Sequence[int] | None = None,
    ):
        if batch_size < 1:
            raise UsageError(f"batch_size={batch_size} must be at least 1.")
        sizes = [len(shard) for shard in shards]
        check_micro_batches(micro_batches, len(shards))
        counts = micro_batches or [1] * len(shards)
        steps = [
            size // (n * batch_size) for size, n in zip(sizes, counts, strict=True)
        ]
        if min(steps) < 1:
            short = int(np.argmin(steps))
            raise UsageError(
                f"batch_size={batch_size} is more than the {sizes[short]} examples of "
                f"worker {short} allow (the workers have {sizes}); take smaller "
                "batches, fewer workers or a less skewed partition."
            )
        self._source = source
        self._shards = shards
        self._batch_size = batch_size
        self._seed = seed
        self._micro_batches = micro_batches
        self._batch_sizes = [n * batch_size for n in counts]
        self.steps_per_epoch = min(steps)
        self.examples_per_step = sum(self._batch_sizes)

    def rounds(
        self,
        *,
        first_step: int,
        period: int,
        count: int,
        workers: range | None = None,
    ) -> Iterator[Any]:
        """``count`` rounds of ``period`` local steps, prefetched in the background.

        Args:
          first_step: where the first of them begins, in local steps.
          period: k.
          count: how many rounds.
          workers: whose batches; None takes all workers'.

        Yields:
          The parts of the examples by their names, each [workers, period, batch, ...];
          with micro-batches a :class:`cocod_jax.MicroBatches` of them, with one more
          axis before the batch axis. A round may cross from one epoch into the next.
        """
        workers = workers or range(len(self._shards))
        stream = grain.MapDataset.range(count).map(
            lambda r: self._round(first_step + r * period, period, workers)
        )
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
        return iter(stream.to_iter_dataset(options))

    def _round(self, first_step: int, period: int, workers: range) -> Any:
        example, count = self._source.example, len(self._shards)
        shapes = batch_shapes(
            example, count, period, self._batch_size, self._micro_batches
        )
        batches = jax.tree.map(
            lambda leaf: np.zeros((len(workers), *leaf.shape[1:]), leaf.dtype), shapes
        )
        if self._micro_batches is None:
            data = batches
        else:
            data = batches.data
            batches.count[:] = np.array(self._micro_batches)[workers, None]
        # Views, in which the examples of a step have one axis, with micro-batches too.
        views = {
            name: data[name].reshape(len(workers), period, -1, *part.shape)
            for name, part in example.items()
        }
        for row, worker in enumerate(workers):
            own = self._batch_sizes[worker]
            for t in range(period):
                for name, part in self._batch(first_step + t, worker).items():
                    views[name][row, t, :own] = part
        return batches

    def _batch(self, step: int, worker: int) -> dict[str, Any]:
        epoch, position = divmod(step, self.steps_per_epoch)
        chosen = self._shards[worker][self._order(epoch, worker)[position]]
        rng = np.random.default_rng([2, self._seed, epoch, worker, position])
        return self._source.take(chosen, rng)

    def _order(self, epoch: int, worker: int) -> grain.MapDataset[np.ndarray]:
        """The batches of one epoch of one worker, as positions in its shard."""
        seed = np.random.SeedSequence([1, self._seed, epoch, worker]).generate_state(1)
        return (
            grain.MapDataset.range(len(self._shards[worker]))
            .shuffle(seed=int(seed[0]))
            .batch(self._batch_sizes[worker], drop_remainder=True)
        )


def check_micro_batches(micro_batches: Sequence[int] | None, workers: int) -> None:
    """Raises ValueError unless there is a positive number for each worker, or None."""
    if micro_batches is None:
        return
    if len(micro_batches) != workers or min(micro_batches) < 1:
        raise UsageError(
            f"micro_batches={micro_batches} must be a positive number for each of "
            f"{workers} workers."
        )


def batch_shapes(
    example: Example,
    workers: int,
    period: int,
    batch_size: int,
    micro_batches: Sequence[int] | None = None,
) -> Any:
    """What :meth:`Pipeline.rounds` yields, as :class:`jax.ShapeDtypeStruct`.

    Args:
      example: the parts of one example.
      workers: N.
      period: k.
      batch_size: examples in a local batch, or in a micro-batch.
      micro_batches: for each worker, how many make its local batch; where a worker
        has fewer than another, the rest is 0.

    Raises:
      UsageError: a ValueError, when there is not one number of micro-batches for each
        worker.
    """
    check_micro_batches(micro_batches, workers)
    most = () if micro_batches is None else (max(micro_batches),)
    shape = (workers, period, *most, batch_size)
    data = {
        name: jax.ShapeDtypeStruct((*shape, *part.shape), part.dtype)
        for name, part in example.items()
    }
    if micro_batches is None:
        return data
    count: Any = jax.ShapeDtypeStruct((workers, period), np.int32)
    return cj.MicroBatches(data, count)
