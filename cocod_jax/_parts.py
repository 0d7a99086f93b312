"""A part of the parameters, such as a round trains, and the rest, which is left alone.

A part has ``optax.MaskedNode()`` where the rest has leaves, as in ``optax.masked``:
trees of a part have leaves of the part alone, and everything that walks over leaves
(an optimizer, an exchange, a norm) sees nothing else.
"""

import inspect
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import numpy as np
import optax

from cocod_jax._text import shown
from cocod_jax._typing import Params

Mask: TypeAlias = Any
"""A tree of bools, a prefix of the parameters'; or a predicate of leaves,
``(leaf) -> bool`` or ``(path, leaf) -> bool``."""


def all_of_it(params: Params) -> Params:
    """The trained part of most rounds."""
    return params


def part_by(mask: Mask | None, name: str = "trainable") -> Callable[[Params], Params]:
    """``(params) -> part`` for one worker's parameters; None takes them all.

    Args:
      mask: says which leaves are of the part.
      name: of the argument that it came in, for errors.

    Raises:
      TypeError: when a predicate does not take a leaf, or a path and a leaf.
    """
    if mask is None:
        return all_of_it
    mask_of = _mask_of(mask, name)

    def part(params: Params) -> Params:
        chosen = mask_of(params)
        if not any(jax.tree.leaves(chosen)):
            raise ValueError(
                f"{name}={shown(mask)} selects none of the "
                f"{len(jax.tree.leaves(params))} leaves of the parameters."
            )
        keep = lambda leaf, yes: leaf if yes else optax.MaskedNode()
        return jax.tree.map(keep, params, chosen)

    return part


def whole_of(part: Params, params: Params) -> Params:
    """``params`` with the leaves of ``part`` where it has some."""
    is_rest = lambda node: isinstance(node, optax.MaskedNode)
    take = lambda own, rest: rest if is_rest(own) else own
    return jax.tree.map(take, part, params, is_leaf=is_rest)


def _mask_of(mask: Mask, name: str) -> Callable[[Params], Any]:
    """``(params) -> mask``, a bool for each leaf.

    Raises:
      TypeError: as :func:`part_by`; in use, when a value is no bool.
      ValueError: in use, when a tree of bools is no prefix of the parameters'.
    """
    if not callable(mask):
        return lambda params: _bools(_spread(mask, params, name), name)
    parameters = inspect.signature(mask)
    for arguments in (("leaf",), ("path", "leaf")):
        try:
            parameters.bind(*arguments)
        except TypeError:
            continue
        if len(arguments) == 1:
            return lambda params: _bools(jax.tree.map(mask, params), name)
        return lambda params: _bools(jax.tree.map_with_path(mask, params), name)
    raise TypeError(
        f"{name}{parameters} must take (leaf) or (path, leaf), and say whether the "
        "leaf is of the part."
    )


def _spread(mask: Any, params: Params, name: str) -> Any:
    try:
        return jax.tree.broadcast(mask, params)
    except ValueError as error:
        raise ValueError(
            f"{name} has the structure {jax.tree.structure(mask)}, which is no "
            f"prefix of the parameters', {jax.tree.structure(params)}."
        ) from error


def _bools(mask: Any, name: str) -> Any:
    for path, value in jax.tree.leaves_with_path(mask):
        if not isinstance(value, bool | np.bool):
            leaf = jax.tree_util.keystr(path) or "the root"
            raise TypeError(
                f"{name} must say True or False of every leaf; of {leaf} it says "
                f"{shown(value)}."
            )
    return mask
