"""Whether the processes of a run were started with the same settings."""

import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from cocod_jax._text import shown


def check_agreement(settings: Mapping[str, Any]) -> None:
    """Makes sure that all processes were started with the same settings.

    Processes that differ in their program wait for each other for ever, and those that
    differ in a rate or in the seed of the data train on, on something that nobody
    asked for. Call it in all of them before the first round, with whatever must be
    the same: the configuration, the seed, a digest of the data. One process always
    agrees with itself.

    Args:
      settings: by name, values that JSON can hold; others count by their ``str``.
        Where a value is a mapping itself its entries are compared one by one.

    Raises:
      TypeError: when ``settings`` is no mapping.
      ValueError: in all processes, when one differs from the first: it names the
        settings and the processes, and says what both have.

    Examples:
      >>> cj.workers.check_agreement({"seed": 0, "optimizer": {"rate": 0.1}})
    """
    if not isinstance(settings, Mapping):
        raise TypeError(
            f"settings={shown(settings)} must be a mapping of names to values."
        )
    own = dict(_flat(settings))
    first, *others = _of_all_processes(own)
    for process, other in enumerate(others, start=1):
        names = sorted(
            name for name in first | other if first.get(name) != other.get(name)
        )
        if names:
            differ = "; ".join(
                f"{name} is {first.get(name, 'missing')} in process 0 and "
                f"{other.get(name, 'missing')} in process {process}"
                for name in names
            )
            raise ValueError(
                f"the processes do not agree: {differ}. Start all of them alike."
            )


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Any:
    """(name, JSON) of each value; an entry of an entry is named ``outer.inner``."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", json.dumps(value, default=str)


def _of_all_processes(own: dict[str, str]) -> list[dict[str, str]]:
    """What each process has."""
    if jax.process_count() == 1:
        return [own]
    text = np.frombuffer(json.dumps(own).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.array(text.size))
    padded = np.pad(text, (0, int(lengths.max()) - text.size))
    rows = multihost_utils.process_allgather(padded)
    return [
        json.loads(row[:length].tobytes())
        for row, length in zip(rows, lengths, strict=True)
    ]
