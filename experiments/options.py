"""What the values of a command line have to be, said by their types.

A class of options inherits from :class:`Options`, and what is out of its range is said
before anything begins::

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class StudyConfig(Options):
        period: Count = 4
        rates: tuple[Positive, ...] = (0.1, 0.3)
"""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from cocod_jax._checks import (
    check_counts,
    check_non_negative,
    check_positive,
    check_shares,
    check_whole,
)
from experiments.cluster.network import parse_rate
from experiments.data.partition import concentration_of


class Must(NamedTuple):
    """Metadata of a type: ``check(name=value)`` raises ValueError, and names both."""

    check: Callable[..., None]


def _one_of(*choices: Any) -> Callable[..., None]:
    """A check that raises ValueError, with name and value, unless it is one of them."""

    def check(**values: Any) -> None:
        for name, value in values.items():
            if value not in choices:
                raise ValueError(f"{name}={value!r} must be one of {[*choices]}.")

    return check


def _check_seed(**values: int) -> None:
    check_whole(**values)
    for name, value in values.items():
        if value >= 2**32:
            raise ValueError(f"{name}={value} must be below 2**32, as JAX draws by it.")


def _check_link(**values: str) -> None:
    for value in values.values():
        if value != "none":
            parse_rate(value)


def _check_partition(**values: str) -> None:
    for name, value in values.items():
        concentration_of(value, name)


def _check_file(**values: Path) -> None:
    for name, value in values.items():
        if not value.is_file():
            raise ValueError(f"{name}={str(value)!r} is no file.")


Count = Annotated[int, Must(check_counts)]
"""1 or more."""
Whole = Annotated[int, Must(check_whole)]
"""0 or more."""
Seed = Annotated[int, Must(_check_seed)]
"""0 or more, in 32 bits: of a larger one JAX would take the last ones alone."""
Positive = Annotated[float, Must(check_positive)]
"""Above 0, and finite."""
NonNegative = Annotated[float, Must(check_non_negative)]
"""0 or more, and finite."""
Share = Annotated[float, Must(check_shares)]
"""From 0 to 1."""
LinkRate = Annotated[str, Must(_check_link)]
"""A rate as ``tc`` writes it, or none for loopback."""
Partition = Annotated[str, Must(_check_partition)]
"""How data are split between workers."""
File = Annotated[Path, Must(_check_file)]
"""A file that is there."""


class Options:
    """A dataclass of options, whose values are what their types say.

    Raises:
      ValueError: when one is not, with its name, or a tuple of such is empty.
    """

    def __post_init__(self):
        for field in dataclasses.fields(self):  # pyrefly: ignore[bad-argument-type]
            for must, name, value in _found(
                field.type, field.name, getattr(self, field.name)
            ):
                must.check(**{name: value})


def _found(kind: Any, name: str, value: Any) -> Iterator[tuple[Must, str, Any]]:
    """What a value has to be, and each of its entries."""
    if value is None:
        return
    if get_origin(kind) is Annotated:
        yield from ((m, name, value) for m in kind.__metadata__ if isinstance(m, Must))
    elif get_origin(kind) is Literal:
        yield Must(_one_of(*get_args(kind))), name, value
    elif get_origin(kind) in (Union, UnionType):
        for each in get_args(kind):
            yield from _found(each, name, value)
    elif get_origin(kind) is tuple:
        of = get_args(kind)[0]
        if get_origin(of) is Annotated and not value:
            raise ValueError(f"{name} is empty; give at least one.")
        for i, entry in enumerate(value):
            yield from _found(of, f"{name}[{i}]", entry)
