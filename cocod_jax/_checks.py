"""Argument validation."""

import inspect
import math
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from numbers import Integral, Real
from typing import Any

import numpy as np

from cocod_jax._text import shown


def check_positive(**values: float) -> None:
    """Raises ValueError, with name and value, unless all are finite and above 0."""
    for name, value in values.items():
        if not (_is_number(value) and value > 0):
            raise ValueError(
                f"{name}={shown(value)} must be a finite number above 0"
                f"{_not_of_jax(value)}."
            )


def check_non_negative(**values: float) -> None:
    """Raises ValueError, with name and value, unless all are finite, 0 or more."""
    for name, value in values.items():
        if not (_is_number(value) and value >= 0):
            raise ValueError(
                f"{name}={shown(value)} must be a finite number, 0 or more"
                f"{_not_of_jax(value)}."
            )


def check_shares(**values: float) -> None:
    """Raises ValueError, with name and value, unless all are numbers in 0..1."""
    for name, value in values.items():
        if not (_is_number(value) and 0 <= value <= 1):
            raise ValueError(
                f"{name}={shown(value)} must be a number in 0..1{_not_of_jax(value)}."
            )


def check_fractions(**values: float) -> None:
    """Raises ValueError, with name and value, unless all are above 0, up to 1."""
    for name, value in values.items():
        if not (_is_number(value) and 0 < value <= 1):
            raise ValueError(
                f"{name}={shown(value)} must be above 0, up to 1{_not_of_jax(value)}."
            )


def is_transform(value: Any) -> bool:
    """Whether it has the functions of an optax transform."""
    return all(callable(getattr(value, name, None)) for name in ("init", "update"))


def check_counts(**values: int) -> None:
    """Raises ValueError, with name and value, unless all are integers, 1 or more."""
    for name, value in values.items():
        if not (_is_integer(value) and value >= 1):
            raise ValueError(f"{name}={shown(value)} must be an integer of at least 1.")


def check_whole(**values: int) -> None:
    """Raises ValueError, with name and value, unless all are integers, 0 or more."""
    for name, value in values.items():
        if not (_is_integer(value) and value >= 0):
            raise ValueError(f"{name}={shown(value)} must be an integer, 0 or more.")


def check_period(period: int, delay: int | None) -> tuple[int, int]:
    """The period and the delay, the delay's default filled in.

    Raises:
      ValueError: when one is not an integer, or not in its range.
    """
    check_counts(period=period)
    if delay is None:
        return int(period), int(period)
    check_whole(delay=delay)
    if delay > period:
        raise ValueError(f"delay={delay} must be in 0..period={period}.")
    return int(period), int(delay)


def check_sequence(of: str = "one number for each worker", **values: Any) -> None:
    """Raises TypeError, with name and value, unless all can be iterated over.

    Characters of a word are no entries, nor are the keys of a mapping.

    Args:
      of: what the entries are, for the message.
      **values: by their names.
    """
    for name, value in values.items():
        try:
            iter(value)  # an array without axes is an Iterable, but has no iterator
            is_sequence = not isinstance(value, str | bytes | Mapping)
        except TypeError:
            is_sequence = False
        if not is_sequence:
            raise TypeError(f"{name}={shown(value)} must be a sequence, {of}.")


def check_pair(returned: Any, name: str, parts: str) -> tuple[Any, Any]:
    """What a user's function returned; TypeError, with its name, unless two values.

    An array of two rows would unpack as well.
    """
    if isinstance(returned, tuple) and len(returned) == 2:
        return returned
    came = f"a {type(returned).__name__}"
    if isinstance(returned, tuple):
        came += f" of {len(returned)}"
    raise TypeError(f"{name} must return ({parts}); it returned {came}.")


def check_flags(**values: bool) -> None:
    """Raises TypeError, with name and value, unless all are True or False."""
    for name, value in values.items():
        if not isinstance(value, bool | np.bool):
            raise TypeError(f"{name}={shown(value)} must be True or False.")


def check_kind(kind: type, **values: Any) -> None:
    """Raises TypeError, with name and value, unless all are of this class."""
    for name, value in values.items():
        if not isinstance(value, kind):
            raise TypeError(
                f"{name}={shown(value)} must be of the type {kind.__name__}."
            )


def check_choices(choices: Collection[str], **values: str) -> None:
    """Raises ValueError, with name and value, unless all are one of these names."""
    for name, value in values.items():
        if not isinstance(value, str) or value not in choices:
            raise ValueError(
                f"{name}={shown(value)} must be one of {', '.join(choices)}."
            )


def check_paths(**values: str | os.PathLike[str]) -> None:
    """Raises TypeError, with name and value, unless all name files or folders."""
    for name, value in values.items():
        if not isinstance(value, str | os.PathLike):
            raise TypeError(f"{name}={shown(value)} must be a path, or a string.")


def check_takes(arguments: Iterable[str], **functions: Callable) -> None:
    """Raises TypeError, with name, unless all are functions of these arguments."""
    for name, function in functions.items():
        if not callable(function):
            raise TypeError(f"{name}={shown(function)} must be a function.")
        try:
            signature = inspect.signature(function)
        except (TypeError, ValueError):  # built-in functions may have none
            continue
        try:
            signature.bind(*arguments)
        except TypeError as error:
            raise TypeError(
                f"{name}{signature} must take ({', '.join(arguments)}): {error}."
            ) from None


def _not_of_jax(value: object) -> str:
    is_array = hasattr(value, "item") and not isinstance(value, Real)
    return ", of Python or NumPy: take .item() of it" * is_array


def _is_number(value: object) -> bool:
    """Whether it is finite, and a number of Python or NumPy that floats can hold."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer that no float is as large as
        return False


def _is_integer(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)
