"""Data sets, their split between workers, and the input pipeline.

Those of images are here; the texts are in :mod:`experiments.data.text`.
"""

from pathlib import Path
from typing import Literal

from experiments.data import cifar
from experiments.data.dataset import Dataset as Dataset
from experiments.data.dataset import digest as digest
from experiments.data.dataset import image_example as image_example
from experiments.data.dataset import normalised as normalised
from experiments.data.partition import partition as partition
from experiments.data.pipeline import Pipeline as Pipeline
from experiments.data.pipeline import batch_shapes as batch_shapes

SHAPES = {
    "mnist5k": ((32, 32, 1), 10),
    "digits": ((32, 32, 1), 10),
    "cifar10": ((32, 32, 3), 10),
    "cifar100": ((32, 32, 3), 100),
}
"""By data set, the shape of an image and the number of classes."""


def load(name: str, data_dir: Path | None = None) -> Dataset:
    """A data set by its name: mnist5k, digits, cifar10 or cifar100.

    Args:
      name: which.
      data_dir: the folder of the CIFAR archives.

    Raises:
      ValueError: when the name is unknown, or an archive is damaged.
      FileNotFoundError: when an archive is not there.
    """
    # With scikit-learn, which takes long to import; other data have no need of it.
    from experiments.data import builtin

    loaders = {
        "mnist5k": builtin.mnist5k,
        "digits": builtin.digits,
        "cifar10": lambda: cifar.read_cifar(cifar.CIFAR10, data_dir),
        "cifar100": lambda: cifar.read_cifar(cifar.CIFAR100, data_dir),
    }
    if name not in loaders:
        raise ValueError(f"data={name!r} must be one of {sorted(loaders)}.")
    return loaders[name]()


def cifar_in(data_dir: Path) -> Literal["cifar10", "cifar100"]:
    """The CIFAR data set that a folder has; cifar10 where it has both.

    Raises:
      ValueError: when it has neither.
    """
    if cifar.is_there(cifar.CIFAR10, data_dir):
        return "cifar10"
    if cifar.is_there(cifar.CIFAR100, data_dir):
        return "cifar100"
    wanted = [
        f"{archive.name} or {archive.folder}/"
        for archive in (cifar.CIFAR10, cifar.CIFAR100)
    ]
    raise ValueError(
        f"data_dir={str(data_dir)!r} has neither {wanted[0]} nor {wanted[1]}; pass the "
        "folder that has one of them, or leave it out for mnist5k."
    )
