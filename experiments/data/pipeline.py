"""The input pipeline: the batches of every worker, round by round.

The stream is a pure function of (seed, step, worker): any round can be asked for
at any time, a resumed run sees what an uninterrupted one would have seen, and all
algorithms and periods see the same images.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np

import cocod_jax as cj
from experiments.data.dataset import Dataset, augmented, normalised


class Pipeline:
    """The training data of N workers.

    In every epoch, each worker goes once through its shard in an order of its own,
    drawn from (seed, epoch, worker). Incomplete batches are dropped; the epoch has
    as many steps as the smallest shard has batches.

    Args:
      dataset: where the images are.
      shards: for each worker the indices of its examples.
      batch_size: examples in a local batch, or in a micro-batch.
      seed: of the orders and of the augmentation.
      micro_batches: for each worker, how many make its local batch; None means that
        there are none.

    Raises:
      ValueError: when ``batch_size`` is not positive, there is not one number of
        micro-batches for each worker, or a shard has fewer examples than a batch.
    """

    def __init__(
        self,
        dataset: Dataset,
        shards: Sequence[np.ndarray],
        *,
        batch_size: int,
        seed: int,
        micro_batches: Sequence[int] | None = None,
    ):
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1.")
        sizes = [len(shard) for shard in shards]
        counts = micro_batches or [1] * len(shards)
        if len(counts) != len(shards) or min(counts) < 1:
            raise ValueError(
                f"micro_batches={micro_batches} must be a positive number for each of "
                f"{len(shards)} workers."
            )
        steps = [
            size // (n * batch_size) for size, n in zip(sizes, counts, strict=True)
        ]
        if min(steps) < 1:
            short = int(np.argmin(steps))
            raise ValueError(
                f"batch_size={batch_size} is more than the {sizes[short]} examples of "
                f"worker {short} allow (the workers have {sizes}); take smaller "
                "batches, fewer workers or a less skewed partition."
            )
        self._dataset = dataset
        self._shards = shards
        self._batch_size = batch_size
        self._seed = seed
        self._micro_batches = micro_batches
        self._batch_sizes = [n * batch_size for n in counts]
        self.steps_per_epoch = min(steps)
        self.images_per_step = sum(self._batch_sizes)

    def rounds(self, *, first_step: int, period: int, count: int) -> Iterator[Any]:
        """``count`` rounds of ``period`` local steps, prefetched in the background.

        Yields:
          ``image``, float32 [N, period, batch, height, width, channels], and
          ``label``, int32 [N, period, batch]; with micro-batches a
          :class:`cocod_jax.MicroBatches` of both, with one more axis before the
          last batch axis. A round may cross from one epoch into the next.
        """
        stream = grain.MapDataset.range(count).map(
            lambda r: self._round(first_step + r * period, period)
        )
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
        return iter(stream.to_iter_dataset(options))

    def _round(self, first_step: int, period: int) -> Any:
        batches = [
            [self._batch(first_step + t, worker) for t in range(period)]
            for worker in range(len(self._shards))
        ]
        images = [[image for image, _ in worker] for worker in batches]
        labels = [[label for _, label in worker] for worker in batches]
        if self._micro_batches is None:
            return {"image": np.array(images), "label": np.array(labels)}
        data = {"image": self._in_parts(images), "label": self._in_parts(labels)}
        counts = np.array(self._micro_batches, np.int32)
        return cj.MicroBatches(data, np.tile(counts[:, None], period))

    def _in_parts(self, batches: list[list[np.ndarray]]) -> np.ndarray:
        """[N, period, most micro-batches, batch, ...], 0 where a worker has fewer."""
        most = max(self._batch_sizes)
        full = np.zeros(
            (len(batches), len(batches[0]), most, *batches[0][0].shape[1:]),
            batches[0][0].dtype,
        )
        for own, worker in zip(full, batches, strict=True):
            own[:, : len(worker[0])] = worker
        return full.reshape(*full.shape[:2], -1, self._batch_size, *full.shape[3:])

    def _batch(self, step: int, worker: int) -> tuple[np.ndarray, np.ndarray]:
        epoch, position = divmod(step, self.steps_per_epoch)
        chosen = self._shards[worker][self._order(epoch, worker)[position]]
        rng = np.random.default_rng([2, self._seed, epoch, worker, position])
        images = augmented(self._dataset, self._dataset.train_images[chosen], rng)
        return normalised(self._dataset, images), self._dataset.train_labels[chosen]

    def _order(self, epoch: int, worker: int) -> grain.MapDataset[np.ndarray]:
        """The batches of one epoch of one worker, as positions in its shard."""
        seed = np.random.SeedSequence([1, self._seed, epoch, worker]).generate_state(1)
        return (
            grain.MapDataset.range(len(self._shards[worker]))
            .shuffle(seed=int(seed[0]))
            .batch(self._batch_sizes[worker], drop_remainder=True)
        )
