"""The models of the study, and the plain programs that it compares with."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import models

OPTIMIZER = optax.sgd(0.01, momentum=0.9)


class Job(NamedTuple):
    """A model and its batches.

    Attributes:
      params: its parameters.
      model_state: its batch statistics; None for a stateless loss.
      loss: ``(params, model_state, batch, key) -> (loss, model_state)``.
      draw: ``(*lead) -> batch``, a batch with further axes before its own.
    """

    params: Any
    model_state: Any
    loss: Callable[..., tuple[jax.Array, Any]]
    draw: Callable[..., Any]


def mlp(layers: int, width: int, batch_size: int) -> Job:
    """Layers of one weight matrix and one bias, with a path around each."""
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
    weights = [0.1 / width**0.5 * normal(width, width) for _ in range(layers)]
    params = [(w, np.zeros(width, np.float32)) for w in weights]

    def loss(params: Any, model_state: Any, batch: Any, key: Any) -> Any:
        del key
        for weight, bias in params:
            batch = batch + jnp.tanh(batch @ weight + bias[None])
        return jnp.mean(batch**2), model_state

    return Job(params, None, loss, lambda *lead: normal(*lead, batch_size, width))


def resnet(width: int, batch_size: int) -> Job:
    """ResNet-18 on images of 32 by 32."""
    network = models.build("resnet18", num_classes=10, channels=3, width=width)
    params, model_state = network.init(jax.random.key(0))
    rng = np.random.default_rng(0)

    def loss(params: Any, model_state: Any, batch: Any, key: Any) -> Any:
        del key
        images, labels = batch
        logits, model_state = network.apply(params, model_state, images, train=True)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), model_state

    def draw(*lead: int) -> Any:
        images = rng.normal(size=(*lead, batch_size, 32, 32, 3))
        labels = rng.integers(0, 10, size=(*lead, batch_size))
        return images.astype(np.float32), labels

    return Job(params, model_state, loss, draw)


def transformer(width: int, sequences: int) -> Job:
    """Three layers that predict the next of 128 tokens out of 1,024."""
    layers, heads, tokens, words = 3, 8, 128, 1024
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return (rng.normal(size=shape) / shape[0] ** 0.5).astype(np.float32)

    params = {
        "words": normal(words, width),
        "places": normal(tokens, width),
        "layers": [
            {
                "attend": normal(width, 3 * width),
                "project": normal(width, width),
                "widen": normal(width, 4 * width),
                "narrow": normal(4 * width, width),
                "scales": np.ones([2, width], np.float32),
            }
            for _ in range(layers)
        ],
    }

    def normed(x: jax.Array, scale: jax.Array) -> jax.Array:
        return x * jax.lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6) * scale[None]

    def loss(params: Any, model_state: Any, batch: Any, key: Any) -> Any:
        del key
        x = params["words"][batch] + params["places"][None]
        for layer in params["layers"]:
            first, second = layer["scales"]
            qkv = normed(x, first[None]) @ layer["attend"]
            q, k, v = jnp.split(qkv.reshape(*qkv.shape[:2], heads, -1), 3, axis=-1)
            mixed = jax.nn.dot_product_attention(q, k, v, is_causal=True)
            x = x + mixed.reshape(x.shape) @ layer["project"]
            wide = jax.nn.gelu(normed(x, second[None]) @ layer["widen"])
            x = x + wide @ layer["narrow"]
        logits = x[:, :-1] @ params["words"].T
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch[:, 1:])
        return losses.mean(), model_state

    def draw(*lead: int) -> Any:
        return rng.integers(0, words, size=(*lead, sequences, tokens), dtype=np.int32)

    return Job(params, None, loss, draw)


def plain_step(
    job: Job,
    axis_name: str | None = None,
    optimizer: optax.GradientTransformation = OPTIMIZER,
) -> Callable[..., Any]:
    """``(params, opt_state, model_state, batch)``, and new ones with the loss.

    With the name of an axis it averages the gradients over it.
    """
    gradient_of = jax.value_and_grad(job.loss, has_aux=True)

    def step(params: Any, opt_state: Any, model_state: Any, batch: Any) -> Any:
        (loss, model_state), gradient = gradient_of(params, model_state, batch, None)
        if axis_name is not None:
            gradient = jax.lax.pmean(gradient, axis_name)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, model_state, loss

    return step
