"""What a data set is, and how its images become the input of a network."""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from experiments.data.pipeline import Example


class Dataset(NamedTuple):
    """Images in memory, one byte a pixel, and how to prepare them.

    Attributes:
      train_images: uint8 [n, height, width, channels].
      train_labels: int32 [n].
      test_images: uint8 [m, height, width, channels].
      test_labels: int32 [m].
      num_classes: labels are below it.
      mean: float32 [channels], the training images' mean with pixels in 0..1.
      std: float32 [channels], their standard deviation.
      crop: pixels of padding for the random crop of training images.
      flip: whether training images may be mirrored.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    num_classes: int
    mean: np.ndarray
    std: np.ndarray
    crop: int
    flip: bool

    @property
    def example(self) -> Example:
        """An image and its label."""
        return image_example(self.train_images.shape[1:])

    def take(
        self, chosen: np.ndarray, rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """A batch of training images, augmented and normalised, and their labels."""
        images = augmented(self, self.train_images[chosen], rng)
        return {"image": normalised(self, images), "label": self.train_labels[chosen]}


def image_example(image_shape: Sequence[int]) -> Example:
    """An image of [height, width, channels] and its label."""
    return {
        "image": jax.ShapeDtypeStruct(tuple(image_shape), np.float32),
        "label": jax.ShapeDtypeStruct((), np.int32),
    }


def make_dataset(
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    *,
    crop: int,
    flip: bool,
) -> Dataset:
    """A data set from (images, labels) pairs, with the training half's statistics."""
    images, labels = train
    # From the histogram of each channel: exact, and without a float copy.
    levels = np.arange(256) / 255
    channels = np.moveaxis(images, -1, 0).reshape(images.shape[-1], -1)
    share = (
        np.stack([np.bincount(c, minlength=256) for c in channels]) / channels[0].size
    )
    mean = share @ levels
    std = np.sqrt(share @ levels**2 - mean**2)
    return Dataset(
        images,
        labels.astype(np.int32),
        test[0],
        test[1].astype(np.int32),
        num_classes=int(labels.max()) + 1,
        mean=mean.astype(np.float32),
        std=std.astype(np.float32),
        crop=crop,
        flip=flip,
    )


def digest(dataset: Dataset) -> str:
    """A SHA-256 of all images and labels."""
    content = hashlib.sha256()
    for part in dataset[:4]:
        content.update(part.tobytes())
    return content.hexdigest()


def normalised(dataset: Dataset, images: np.ndarray) -> np.ndarray:
    """uint8 images as float32 with mean 0 and deviation 1 in each channel."""
    return (images.astype(np.float32) / 255 - dataset.mean) / dataset.std


def augmented(
    dataset: Dataset, images: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Each image padded, cropped at a random place and, if allowed, mirrored.

    Args:
      dataset: says how.
      images: uint8 [batch, height, width, channels].
      rng: what the crops and mirrors are drawn from.

    Returns:
      uint8 images of the same shape.
    """
    batch, height, width, _ = images.shape
    pad = dataset.crop
    padded = np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    top, left = rng.integers(0, 2 * pad + 1, size=(2, batch, 1))
    rows, columns = top + np.arange(height), left + np.arange(width)
    if dataset.flip:
        mirror = rng.random(batch) < 0.5
        columns[mirror] = columns[mirror, ::-1]
    which = np.arange(batch)[:, None, None]
    return padded[which, rows[:, :, None], columns[:, None, :]]
