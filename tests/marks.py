"""Conditions of tests."""

import itertools
from collections.abc import Container, Iterable, Sequence
from typing import Any

import pytest

from cocod_jax.certify import compiler_available

needs_compiler = pytest.mark.skipif(
    not compiler_available(),
    reason="the compiler for GPUs is not installed: "
    "python -m cocod_jax.certify --install",
)
needs_tpu_compiler = pytest.mark.skipif(
    not compiler_available("tpu"),
    reason="the compiler for TPUs is not installed: "
    "python -m cocod_jax.certify --install tpu",
)


def seldom(values: Iterable[Any], *, but: Container[Any]) -> list[Any]:
    """The values of a parameter, all of which ``pytest -m matrix`` runs.

    Args:
      values: all of them.
      but: those that every run of the tests has.
    """

    def rare(value: Any) -> Any:
        own = value if isinstance(value, tuple) else (value,)
        return pytest.param(*own, marks=pytest.mark.matrix)

    return [value if value in but else rare(value) for value in values]


def pairs(*axes: Sequence[Any]) -> list[Any]:
    """The combinations of several parameters, all of which ``pytest -m matrix`` runs.

    Every run of the tests has so many that any two values of two parameters meet, since
    a fault that takes three is rare.
    """
    whole = [*itertools.product(*map(range, map(len, axes)))]
    met = lambda places: set(itertools.combinations(enumerate(places), 2))
    apart, chosen = set().union(*map(met, whole)), []
    while apart:
        chosen.append(max(whole, key=lambda places: len(met(places) & apart)))
        apart -= met(chosen[-1])
    values = lambda places: tuple(axis[i] for axis, i in zip(axes, places, strict=True))
    return seldom(map(values, whole), but=[*map(values, chosen)])
