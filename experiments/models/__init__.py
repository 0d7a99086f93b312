"""The networks of the experiments, as pure functions of plain trees."""

import jax
from flax import nnx

from experiments.models.cnn import CNN
from experiments.models.model import Model as Model
from experiments.models.model import as_functions
from experiments.models.model import parameter_count as parameter_count
from experiments.models.resnet import ResNet18
from experiments.models.vgg import VGG16

# Each with the channels of its first stage in the literature.
_NETWORKS = {"resnet18": (ResNet18, 64), "vgg16": (VGG16, 64), "cnn": (CNN, 32)}


def build(
    name: str, *, num_classes: int, channels: int, width: int | None = None
) -> Model:
    """A network for images by its name: resnet18, vgg16 or cnn.

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

    return as_functions(module)
