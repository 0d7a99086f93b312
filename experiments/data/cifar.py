"""CIFAR-10 and CIFAR-100 from their official binary archives.

The binary format is plain bytes: each record is one or two label bytes and the
3 x 32 x 32 pixels, channels first. Nothing is unpickled, nothing is unpacked to disk.
"""

import dataclasses
import hashlib
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from experiments.data.dataset import Dataset, make_dataset

_PIXELS = 3 * 32 * 32


@dataclasses.dataclass(frozen=True)
class Archive:
    """What is known about an official archive.

    Attributes:
      url: where to download it.
      size: in bytes.
      md5: its checksum, in hexadecimal.
      folder: the folder inside.
      train: the files of the training half.
      test: the file of the test half.
      records: how many a file of the training half has, and the test file.
      label_bytes: how many each record has; the last one is the label.
      num_classes: labels are below it.
    """

    url: str
    size: int
    md5: str
    folder: str
    train: tuple[str, ...]
    test: str
    records: tuple[int, int]
    label_bytes: int
    num_classes: int

    @property
    def name(self) -> str:
        """The name of the downloaded file."""
        return self.url.rsplit("/", 1)[-1]


CIFAR10 = Archive(
    url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    size=170_052_171,
    md5="c32a1d4ab5d03f1284b67883e8d87530",
    folder="cifar-10-batches-bin",
    train=tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
    test="test_batch.bin",
    records=(10_000, 10_000),
    label_bytes=1,
    num_classes=10,
)
CIFAR100 = Archive(
    url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
    size=168_513_733,
    md5="03b5dce01913d631647c71ecec9e9cb8",
    folder="cifar-100-binary",
    train=("train.bin",),
    test="test.bin",
    records=(50_000, 10_000),
    label_bytes=2,  # coarse, fine
    num_classes=100,
)


def read_cifar(archive: Archive, data_dir: Path | None) -> Dataset:
    """The data set from the archive, or from its unpacked folder, in ``data_dir``.

    An archive is checked by its checksum, an unpacked folder by the files' sizes.

    Raises:
      FileNotFoundError: when neither is there, saying what to download and where to.
      ValueError: when the archive or a file in it is not of the right size, or the
        archive's checksum is wrong.
    """
    train_records, test_records = archive.records
    with _opened(archive, data_dir) as read:
        train = [_records(read, archive, name, train_records) for name in archive.train]
        test = _records(read, archive, archive.test, test_records)
    images, labels = zip(*train, strict=True)
    return make_dataset(
        (np.concatenate(images), np.concatenate(labels)), test, crop=4, flip=True
    )


def is_there(archive: Archive, data_dir: Path) -> bool:
    """Whether the folder has the archive, or the archive's folder."""
    return (data_dir / archive.folder).is_dir() or (data_dir / archive.name).is_file()


@contextmanager
def _opened(
    archive: Archive, data_dir: Path | None
) -> Iterator[Callable[[str], bytes]]:
    """A function from a file's name to its bytes."""
    if data_dir is None or not is_there(archive, data_dir):
        raise FileNotFoundError(
            f"neither {archive.name} nor {archive.folder}/ is in --data-dir "
            f"{data_dir}. Download {archive.url} ({archive.size / 1e6:.0f} MB), put it "
            "into a folder, as it is or unpacked, and pass the folder as --data-dir."
        )
    folder, packed = data_dir / archive.folder, data_dir / archive.name
    if folder.is_dir():
        yield lambda file: (folder / file).read_bytes()
    else:
        _check(archive, packed)
        with tarfile.open(packed) as tar:
            yield lambda file: _member(tar, f"{archive.folder}/{file}")


def _member(tar: tarfile.TarFile, name: str) -> bytes:
    file = tar.extractfile(name)
    if file is None:
        raise ValueError(f"{name} in {tar.name} is not a file.")
    return file.read()


def _check(archive: Archive, packed: Path) -> None:
    size = packed.stat().st_size
    if size != archive.size:
        raise ValueError(
            f"{packed} has {size:,} bytes instead of {archive.size:,}: the download is "
            f"incomplete, or another file. Download {archive.url} again."
        )
    with packed.open("rb") as file:
        md5 = hashlib.file_digest(file, "md5").hexdigest()
    if md5 != archive.md5:
        raise ValueError(
            f"{packed} has the MD5 checksum {md5} instead of {archive.md5}: it is "
            f"damaged. Download {archive.url} again."
        )


def _records(
    read: Callable[[str], bytes], archive: Archive, name: str, records: int
) -> tuple[np.ndarray, np.ndarray]:
    """The images [n, 32, 32, 3] and the labels [n] of one file."""
    content = read(name)
    length = archive.label_bytes + _PIXELS
    if len(content) != records * length:
        raise ValueError(
            f"{archive.folder}/{name} has {len(content):,} bytes instead of "
            f"{records * length:,}, {records} records of {length} bytes: it is "
            f"truncated, or another file. Unpack {archive.url} again."
        )
    table = np.frombuffer(content, np.uint8).reshape(records, length)
    labels = table[:, archive.label_bytes - 1]
    if labels.max() >= archive.num_classes:
        raise ValueError(
            f"{archive.folder}/{name} has a label {labels.max()}, but there are "
            f"{archive.num_classes} classes: it is damaged. Unpack {archive.url} again."
        )
    pixels = table[:, archive.label_bytes :].reshape(-1, 3, 32, 32)
    return pixels.transpose(0, 2, 3, 1), labels
