"""Numbers that a user gives, checked where they are given."""

import math
from numbers import Integral, Real


def check_positive(**values: float) -> None:
    """Raises ValueError, with name and value, unless all are finite and above 0."""
    for name, value in values.items():
        if not (isinstance(value, Real) and 0 < value < math.inf):
            raise ValueError(
                f"{name}={value!r} must be a finite number above 0{_not_of_jax(value)}."
            )


def check_non_negative(**values: float) -> None:
    """Raises ValueError, with name and value, unless all are finite, 0 or more."""
    for name, value in values.items():
        if not (isinstance(value, Real) and 0 <= value < math.inf):
            raise ValueError(
                f"{name}={value!r} must be a finite number, 0 or more"
                f"{_not_of_jax(value)}."
            )


def check_counts(**values: int) -> None:
    """Raises ValueError, with name and value, unless all are integers, 1 or more."""
    for name, value in values.items():
        if not (_is_integer(value) and value >= 1):
            raise ValueError(f"{name}={value!r} must be an integer of at least 1.")


def check_whole(**values: int) -> None:
    """Raises ValueError, with name and value, unless all are integers, 0 or more."""
    for name, value in values.items():
        if not (_is_integer(value) and value >= 0):
            raise ValueError(f"{name}={value!r} must be an integer, 0 or more.")


def _not_of_jax(value: object) -> str:
    is_array = hasattr(value, "item") and not isinstance(value, Real)
    return ", of Python or NumPy: take .item() of it" * is_array


def _is_integer(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)
