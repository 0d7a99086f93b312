"""The input pipeline: the batches of every worker, round by round.

The stream is a pure function of (seed, step, worker): any round can be asked for
at any time, a resumed run sees what an uninterrupted one would have seen, and all
algorithms and periods see the same images.
"""

from collections.abc import Iterator, Sequence

import grain
import numpy as np

from experiments.data.dataset import Dataset, augmented, normalised


class Pipeline:
    """The training data of N workers.

    In every epoch, each worker goes once through its shard in an order of its own,
    drawn from (seed, epoch, worker). Incomplete batches are dropped; the epoch has
    as many steps as the smallest shard has batches.

    Args:
      dataset: where the images are.
      shards: for each worker the indices of its examples.
      batch_size: examples in a local batch.
      seed: of the orders and of the augmentation.

    Raises:
      ValueError: when ``batch_size`` is not positive, or a shard has fewer examples
        than a batch.
    """

    def __init__(
        self,
        dataset: Dataset,
        shards: Sequence[np.ndarray],
        *,
        batch_size: int,
        seed: int,
    ):
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1.")
        sizes = [len(shard) for shard in shards]
        if min(sizes) < batch_size:
            raise ValueError(
                f"batch_size={batch_size} is more than the {min(sizes)} examples of "
                f"worker {int(np.argmin(sizes))} (the workers have {sizes}); take "
                "smaller batches, fewer workers or a less skewed partition."
            )
        self._dataset = dataset
        self._shards = shards
        self._batch_size = batch_size
        self._seed = seed
        self.steps_per_epoch = min(sizes) // batch_size

    def rounds(
        self, *, first_step: int, period: int, count: int
    ) -> Iterator[dict[str, np.ndarray]]:
        """``count`` rounds of ``period`` local steps, prefetched in the background.

        Yields:
          ``image``, float32 [N, period, batch, height, width, channels], and
          ``label``, int32 [N, period, batch]. A round may cross from one epoch into
          the next.
        """
        stream = grain.MapDataset.range(count).map(
            lambda r: self._round(first_step + r * period, period)
        )
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
        return iter(stream.to_iter_dataset(options))

    def _round(self, first_step: int, period: int) -> dict[str, np.ndarray]:
        batches = [
            [self._batch(first_step + t, worker) for t in range(period)]
            for worker in range(len(self._shards))
        ]
        images = [[image for image, _ in worker] for worker in batches]
        labels = [[label for _, label in worker] for worker in batches]
        return {"image": np.array(images), "label": np.array(labels)}

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
            .batch(self._batch_size, drop_remainder=True)
        )
