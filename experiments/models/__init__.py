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
    """A network and its initial values.

    Attributes:
      apply: ``(params, model_state, images, *, train) -> (logits, model_state)``,
        pure; ``images`` is float32 [batch, height, width, channels], ``logits``
        float32 [batch, num_classes].
      params: nested dicts of float32 arrays.
      model_state: the batch statistics, nested dicts of float32 arrays; empty for a
        network without batch norm.
    """

    apply: Callable[..., tuple[jax.Array, Any]]
    params: Any
    model_state: Any


def build(
    name: str,
    *,
    num_classes: int,
    channels: int,
    key: jax.Array,
    width: int | None = None,
) -> Model:
    """A network by its name: resnet18, vgg16 or cnn.

    Args:
      name: which.
      num_classes: the number of logits.
      channels: those of the images.
      key: the PRNG key of the initial parameters.
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
    graph, params, model_state, rest = nnx.split(
        network(channels, num_classes, width, nnx.Rngs(key)),
        nnx.Param,
        nnx.BatchStat,
        ...,
    )

    def apply(
        params: Any, model_state: Any, images: jax.Array, *, train: bool
    ) -> tuple[jax.Array, Any]:
        module = nnx.merge(
            graph, _filled(like[0], params), _filled(like[1], model_state), rest
        )
        module.set_attributes(use_running_average=not train, raise_if_not_found=False)
        logits = module(images)
        return logits, nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))

    like = params, model_state
    return Model(apply, nnx.to_pure_dict(params), nnx.to_pure_dict(model_state))


def _filled(state: nnx.State, values: Any) -> nnx.State:
    """The state with other values, and variables of its own."""
    state = jax.tree.map(lambda leaf: leaf, state)
    nnx.replace_by_pure_dict(state, values)
    return state


def parameter_count(params: Any) -> int:
    """The number of scalars in a tree of arrays or of their shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
