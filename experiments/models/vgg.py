"""VGG-16 with batch norm for small images."""

import jax
from flax import nnx

from experiments.models.resnet import batch_norm

# Convolutions of each stage, and their channels in units of the first stage's.
_STAGES = ((2, 1), (2, 2), (3, 4), (3, 8), (3, 8))


class VGG16(nnx.Module):
    """Simonyan & Zisserman 2015 with batch norm, and one dense layer as its head.

    Five poolings halve the image: it must have at least 32 x 32 pixels.
    """

    def __init__(self, channels: int, num_classes: int, width: int, rngs: nnx.Rngs):
        convs, norms, cin = [], [], channels
        for depth, factor in _STAGES:
            for _ in range(depth):
                cout = width * factor
                convs.append(
                    nnx.Conv(
                        cin,
                        cout,
                        (3, 3),
                        kernel_init=nnx.initializers.he_normal(),
                        rngs=rngs,
                    )
                )
                norms.append(batch_norm(cout, rngs))
                cin = cout
        self.convs, self.norms = nnx.List(convs), nnx.List(norms)
        self.head = nnx.Linear(cin, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        if min(x.shape[1:3]) < 32:
            raise ValueError(
                f"images of {x.shape[1:3]} pixels are too small for VGG-16, which "
                "halves them five times; give it at least 32 x 32."
            )
        layers = iter(zip(self.convs, self.norms, strict=True))
        for depth, _ in _STAGES:
            for _ in range(depth):
                conv, norm = next(layers)
                x = nnx.relu(norm(conv(x)))
            x = nnx.max_pool(x, (2, 2), strides=(2, 2))
        return self.head(x.mean(axis=(1, 2)))
