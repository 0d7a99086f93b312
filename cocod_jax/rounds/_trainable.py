"""The part of the parameters that a round trains, and the rest, which it leaves alone.

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

Trainable: TypeAlias = Any
"""A tree of bools, a prefix of the parameters'; or a predicate of leaves,
``(leaf) -> bool`` or ``(path, leaf) -> bool``."""


def all_of_it(params: Params) -> Params:
    """The trained part of most rounds."""
    return params


def trained_part(trainable: Trainable | None) -> Callable[[Params], Params]:
    """``(params) -> part`` for one worker's parameters; None trains them all.

    Raises:
      TypeError: when a predicate does not take a leaf, or a path and a leaf.
    """
    if trainable is None:
        return all_of_it
    mask_of = _mask_of(trainable)

    def part(params: Params) -> Params:
        mask = mask_of(params)
        if not any(jax.tree.leaves(mask)):
            raise ValueError(
                f"trainable={shown(trainable)} selects none of the "
                f"{len(jax.tree.leaves(params))} leaves of the parameters."
            )
        keep = lambda leaf, yes: leaf if yes else optax.MaskedNode()
        return jax.tree.map(keep, params, mask)

    return part


def whole_of(part: Params, params: Params) -> Params:
    """``params`` with the leaves of ``part`` where it has some."""
    is_rest = lambda node: isinstance(node, optax.MaskedNode)
    take = lambda own, rest: rest if is_rest(own) else own
    return jax.tree.map(take, part, params, is_leaf=is_rest)


def _mask_of(trainable: Trainable) -> Callable[[Params], Any]:
    """``(params) -> mask``, a bool for each leaf.

    Raises:
      TypeError: as :func:`trained_part`; in use, when a value is no bool.
      ValueError: in use, when a tree of bools is no prefix of the parameters'.
    """
    if not callable(trainable):
        return lambda params: _bools(_spread(trainable, params))
    parameters = inspect.signature(trainable)
    for arguments in (("leaf",), ("path", "leaf")):
        try:
            parameters.bind(*arguments)
        except TypeError:
            continue
        if len(arguments) == 1:
            return lambda params: _bools(jax.tree.map(trainable, params))
        return lambda params: _bools(jax.tree.map_with_path(trainable, params))
    raise TypeError(
        f"trainable{parameters} must take (leaf) or (path, leaf), and say whether the "
        "leaf is trained."
    )


def _spread(mask: Any, params: Params) -> Any:
    try:
        return jax.tree.broadcast(mask, params)
    except ValueError as error:
        raise ValueError(
            f"trainable has the structure {jax.tree.structure(mask)}, which is no "
            f"prefix of the parameters', {jax.tree.structure(params)}."
        ) from error


def _bools(mask: Any) -> Any:
    for path, value in jax.tree.leaves_with_path(mask):
        if not isinstance(value, bool | np.bool):
            name = jax.tree_util.keystr(path) or "the root"
            raise TypeError(
                f"trainable must say True or False of every leaf; of {name} it says "
                f"{shown(value)}."
            )
    return mask
