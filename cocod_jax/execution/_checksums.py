"""Checksums of a checkpoint's files, which are those of what was written."""

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

_SUMS = "checksums.json"  # one in the folder of each part of a checkpoint


def summing(handler: Any) -> Any:
    """This handler of Orbax, leaving the checksums of its files beside them.

    Orbax calls ``finalize`` in the background, in one process, once all have written.
    """
    finalize = handler.finalize

    def then_sum(folder: Any) -> None:
        finalize(folder)
        folder = Path(folder)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        sums = {path.relative_to(folder).as_posix(): _sum_of(path) for path in files}
        (folder / _SUMS).write_text(json.dumps(sums, indent=1))

    handler.finalize = then_sum
    return handler


def _sum_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sums(folder: Path) -> None:
    """Raises ValueError, in all processes, unless all files are what was written."""
    sums = {
        file.parent / name: saved
        for file in sorted(folder.glob(f"*/{_SUMS}"))  # earlier versions left none
        for name, saved in json.loads(file.read_text()).items()
    }
    paths = list(sums)
    damaged = -1
    for index in range(jax.process_index(), len(paths), jax.process_count()):
        try:
            is_whole = _sum_of(paths[index]) == sums[paths[index]]
        except OSError:  # others would wait for a process that raises here
            is_whole = False
        if not is_whole:
            damaged = index
    if jax.process_count() > 1:
        damaged = int(multihost_utils.process_allgather(np.int32(damaged)).max())
    if damaged >= 0:
        name = paths[damaged].relative_to(folder)
        raise ValueError(f"{name} is not what was written.")
