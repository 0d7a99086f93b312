"""A small network without batch norm, quick on any machine."""

import itertools

import jax
from flax import nnx


class CNN(nnx.Module):
    """Three strided convolutions, and the mean of what they see."""

    def __init__(self, channels: int, num_classes: int, width: int, rngs: nnx.Rngs):
        widths = [channels, width, 2 * width, 4 * width]
        self.convs = nnx.List(
            [
                nnx.Conv(cin, cout, (3, 3), strides=2, rngs=rngs)
                for cin, cout in itertools.pairwise(widths)
            ]
        )
        self.head = nnx.Linear(widths[-1], num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        for conv in self.convs:
            x = nnx.relu(conv(x))
        return self.head(x.mean(axis=(1, 2)))
