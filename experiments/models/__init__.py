"""The networks of the experiments, as pure functions of plain trees."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from flax import nnx

from experiments.models.cnn import CNN
from experiments.models.resnet import ResNet18
from experiments.models.vgg import VGG16

# Each with the channels of its first stage in the literature.
_NETWORKS = {"resnet18": (ResNet18, 64), "vgg16": (VGG16, 64), "cnn": (CNN, 32)}


class Model(NamedTuple):
    """A network, as two pure functions.

    Attributes:
      init: ``(key) -> (params, model_state)``, the initial values by a PRNG key:
        nested dicts of float32 arrays. ``model_state`` is the batch statistics; it is
        empty for a network without batch norm.
      apply: ``(params, model_state, images, *, train) -> (logits, model_state)``;
        ``images`` is float32 [batch, height, width, channels], ``logits`` float32
        [batch, num_classes].
    """

    init: Callable[[jax.Array], tuple[Any, Any]]
    apply: Callable[..., tuple[jax.Array, Any]]


def build(
    name: str, *, num_classes: int, channels: int, width: int | None = None
) -> Model:
    """A network by its name: resnet18, vgg16 or cnn.

    Args:
      name: which.
      num_classes: the number of logits.
      channels: the images' channels.
      width: channels of the first stage; the others follow in proportion. None is
        the width in the literature.

    Raises:
      ValueError: when the name is unknown, or the width is not a positive integer.
    """
    if name not in _NETWORKS:
        raise ValueError(f"name={name!r} must be one of {sorted(_NETWORKS)}.")
    network, default_width = _NETWORKS[name]
    width = default_width if width is None else width
    if isinstance(width, bool) or not isinstance(width, int) or width < 1:
        raise ValueError(f"width={width!r} must be an integer of at least 1.")

    def module(key: jax.Array) -> nnx.Module:
        return network(channels, num_classes, width, nnx.Rngs(key))

    # Shapes alone: computing the values of a big network takes seconds.
    shapes = nnx.eval_shape(lambda: module(jax.random.key(0)))
    graph, *like = nnx.split(shapes, nnx.Param, nnx.BatchStat)

    def init(key: jax.Array) -> tuple[Any, Any]:
        _, params, model_state = nnx.split(module(key), nnx.Param, nnx.BatchStat)
        return nnx.to_pure_dict(params), nnx.to_pure_dict(model_state)

    def apply(
        params: Any, model_state: Any, images: jax.Array, *, train: bool
    ) -> tuple[jax.Array, Any]:
        values = (params, model_state)
        filled = nnx.merge(graph, *map(_filled, like, values))
        filled.set_attributes(use_running_average=not train, raise_if_not_found=False)
        logits = filled(images)
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
