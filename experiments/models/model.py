"""A network as two pure functions of plain trees."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from flax import nnx


class Model(NamedTuple):
    """A network, as two pure functions.

    Attributes:
      init: ``(key) -> (params, model_state)``, the initial values by a PRNG key:
        nested dicts of float32 arrays. ``model_state`` is the batch statistics; it is
        empty for a network without batch norm.
      apply: ``(params, model_state, inputs, *, train) -> (logits, model_state)``.
        For images ``inputs`` is float32 [batch, height, width, channels] and
        ``logits`` float32 [batch, num_classes]; for text they are int32
        [batch, length] and float32 [batch, length, vocabulary].
    """

    init: Callable[[jax.Array], tuple[Any, Any]]
    apply: Callable[..., tuple[jax.Array, Any]]


def as_functions(module: Callable[[jax.Array], nnx.Module]) -> Model:
    """The two functions of a module, by what makes it from a PRNG key."""
    # Shapes alone: computing the values of a big network takes seconds.
    shapes = nnx.eval_shape(lambda: module(jax.random.key(0)))
    graph, *like = nnx.split(shapes, nnx.Param, nnx.BatchStat)

    def init(key: jax.Array) -> tuple[Any, Any]:
        _, params, model_state = nnx.split(module(key), nnx.Param, nnx.BatchStat)
        return nnx.to_pure_dict(params), nnx.to_pure_dict(model_state)

    def apply(
        params: Any, model_state: Any, inputs: jax.Array, *, train: bool
    ) -> tuple[jax.Array, Any]:
        values = (params, model_state)
        filled = nnx.merge(graph, *map(_filled, like, values))
        filled.set_attributes(use_running_average=not train, raise_if_not_found=False)
        logits = filled(inputs)
        return logits, nnx.to_pure_dict(nnx.state(filled, nnx.BatchStat))

    return Model(init, apply)


def _filled(state: nnx.State, values: Any) -> nnx.State:
    """The state with other values, and variables of its own."""
    state = jax.tree.map(lambda leaf: leaf, state)
    nnx.replace_by_pure_dict(state, values)
    return state


def parameter_count(init: Callable[[jax.Array], tuple[Any, Any]]) -> int:
    """The number of scalars that are trained, of a model by its initial values."""
    params, _ = jax.eval_shape(lambda: init(jax.random.key(0)))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
