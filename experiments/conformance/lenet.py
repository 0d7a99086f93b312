"""LeNet-5 on digits, its convolutions as products of matrices.

XLA's convolutions are slow on CPUs inside a loop, and where each worker has weights of
its own.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.conformance.gpt import torch_uniform

KERNEL = 5
LAYERS = {
    "first": (KERNEL**2, 6),
    "second": (6 * KERNEL**2, 16),
    "third": (16 * 5**2, 120),
    "fourth": (120, 84),
    "last": (84, 10),
}
"""Inputs and outputs of each layer, of images of 32 x 32 pixels."""


def init(seed: int) -> dict[str, dict[str, jax.Array]]:
    """The network, with the initial values that PyTorch gives its layers."""
    keys = jax.random.split(jax.random.key(seed), (len(LAYERS), 2))
    return {
        name: {
            "weights": torch_uniform(cin)(weights, (cin, cout)),
            "bias": torch_uniform(cin)(bias, (cout,)),
        }
        for (name, (cin, cout)), (weights, bias) in zip(
            LAYERS.items(), keys, strict=True
        )
    }


def logits(params: Any, images: jax.Array) -> jax.Array:
    """float32 [batch, 32, 32, 1] to float32 [batch, 10]."""

    def layer(name: str, x: jax.Array) -> jax.Array:
        bias = params[name]["bias"][(None,) * (x.ndim - 1)]
        return x @ params[name]["weights"] + bias

    x = halved(jax.nn.relu(layer("first", patches(images))))
    x = halved(jax.nn.relu(layer("second", patches(x))))
    x = jax.nn.relu(layer("third", x.reshape(len(x), -1)))
    return layer("last", jax.nn.relu(layer("fourth", x)))


def patches(x: jax.Array) -> jax.Array:
    """What each place of a convolution sees, [batch, height, width, inputs]."""
    rows, columns = (size - KERNEL + 1 for size in x.shape[1:3])
    return jnp.concatenate(
        [
            x[:, row : row + rows, column : column + columns]
            for row, column in np.ndindex(KERNEL, KERNEL)
        ],
        axis=-1,
    )


def halved(x: jax.Array) -> jax.Array:
    """The largest of each 2 x 2."""
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).max(axis=(2, 4))
