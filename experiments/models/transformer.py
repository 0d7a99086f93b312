"""A decoder-only transformer for text.

RMSNorm in front of each half of a block, rotary positions, SwiGLU, no biases, and one
matrix for the embedding and the logits.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.config import Size
from experiments.models.model import Model, as_functions
from experiments.models.sharding import divide_batch

_INIT = 0.02  # standard deviation of the initial weights, GPT-2's


class Shape(NamedTuple):
    """How large a transformer is."""

    layers: int
    heads: int
    width: int

    @property
    def hidden(self) -> int:
        """Channels inside of a feed-forward layer.

        Its three matrices have about as many parameters as two of 4 x width.
        """
        return 32 * -(-8 * self.width // (3 * 32))


SIZES: dict[Size, Shape] = {
    "tiny": Shape(layers=2, heads=4, width=64),
    "mini": Shape(layers=4, heads=4, width=128),
    "10m": Shape(layers=6, heads=6, width=384),
    "125m": Shape(layers=12, heads=12, width=768),
    "350m": Shape(layers=24, heads=16, width=1024),
}
"""By name; the last two are GPT-3's, whose names count a vocabulary of 50,000."""


def build(
    size: Size, *, vocabulary: int, dtype: str = "float32", remat: bool = False
) -> Model:
    """A transformer by the name of its size.

    Args:
      size: one of :data:`SIZES`.
      vocabulary: the number of different tokens.
      dtype: what it computes in; parameters and logits are float32.
      remat: whether the backward pass computes the inside of each block again,
        for less memory.

    Raises:
      ValueError: when the size is unknown.
    """
    if size not in SIZES:
        raise ValueError(f"size={size!r} must be one of {[*SIZES]}.")

    def module(key: jax.Array) -> nnx.Module:
        rngs = nnx.Rngs(key)
        return Transformer(SIZES[size], vocabulary, jnp.dtype(dtype), remat, rngs)

    return as_functions(module)


def flops(size: Size, *, vocabulary: int, context: int) -> float:
    """Floating-point operations of the training on one token.

    Six for each parameter of a matrix, the logits' with them, and twelve for each
    channel, position and layer of the attention, causal or not (Chowdhery et al.,
    PaLM, 2022, appendix B).
    """
    shape = SIZES[size]
    block = shape.width * (4 * shape.width + 3 * shape.hidden)
    matrices = shape.layers * block + vocabulary * shape.width
    return 6 * matrices + 12 * shape.layers * shape.width * context


class Transformer(nnx.Module):
    """Tokens to the logits of the tokens that follow them."""

    def __init__(
        self,
        shape: Shape,
        vocabulary: int,
        dtype: jnp.dtype,
        remat: bool,
        rngs: nnx.Rngs,
    ):
        self.embedding = nnx.Embed(
            vocabulary,
            shape.width,
            dtype=dtype,
            embedding_init=nnx.initializers.normal(_INIT),
            rngs=rngs,
        )
        self.blocks = nnx.List([Block(shape, dtype, rngs) for _ in range(shape.layers)])
        self.norm = nnx.RMSNorm(shape.width, dtype=dtype, rngs=rngs)
        self.remat = remat

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """int32 [batch, length] to float32 [batch, length, vocabulary]."""
        x = divide_batch(self.embedding(tokens))
        run = nnx.remat(Block.__call__) if self.remat else Block.__call__
        for block in self.blocks:
            x = divide_batch(run(block, x))
        matrix = self.embedding.embedding[...].astype(x.dtype)
        # A sum over the channels in float32, in which the loss is computed too.
        return jnp.einsum(
            "blc,vc->blv", self.norm(x), matrix, preferred_element_type=jnp.float32
        )


class Block(nnx.Module):
    """Attention and a feed-forward layer, each added to what came in."""

    def __init__(self, shape: Shape, dtype: jnp.dtype, rngs: nnx.Rngs):
        norm = functools.partial(nnx.RMSNorm, shape.width, dtype=dtype, rngs=rngs)
        self.before_attention, self.before_feed_forward = norm(), norm()
        self.attention = Attention(shape, dtype, rngs)
        self.feed_forward = FeedForward(shape, dtype, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.attention(self.before_attention(x))
        return x + self.feed_forward(self.before_feed_forward(x))


class Attention(nnx.Module):
    """Causal self-attention with rotary positions."""

    def __init__(self, shape: Shape, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.heads = shape.heads
        self.qkv = _linear(shape.width, 3 * shape.width, dtype, rngs)
        self.out = _linear(shape.width, shape.width, dtype, rngs, shape.layers)

    def __call__(self, x: jax.Array) -> jax.Array:
        # Heads first, so that a division of the columns divides the heads.
        qkv = self.qkv(x).reshape(*x.shape[:2], self.heads, 3, -1)
        q, k, v = (qkv[:, :, :, i] for i in range(3))
        y = jax.nn.dot_product_attention(rotary(q), rotary(k), v, is_causal=True)
        return self.out(y.reshape(x.shape))


class FeedForward(nnx.Module):
    """SwiGLU (Shazeer, 2020)."""

    def __init__(self, shape: Shape, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.gate = _linear(shape.width, shape.hidden, dtype, rngs)
        self.up = _linear(shape.width, shape.hidden, dtype, rngs)
        self.down = _linear(shape.hidden, shape.width, dtype, rngs, shape.layers)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(nnx.silu(self.gate(x)) * self.up(x))


def rotary(x: jax.Array, base: float = 10_000.0) -> jax.Array:
    """Turns each pair of channels by an angle that grows with the position.

    A product of two such vectors depends on their distance alone (Su et al., 2021).

    Args:
      x: [batch, length, heads, channels], an even number of channels.
      base: the slowest pair takes this many positions for a radian, about.

    Returns:
      The same shape and dtype; computed in float32.
    """
    half = x.shape[-1] // 2
    speed = base ** (-jnp.arange(half) / half)
    angle = jnp.outer(jnp.arange(x.shape[1]), speed)[None, :, None]
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = (
        a * jnp.cos(angle) - b * jnp.sin(angle),
        a * jnp.sin(angle) + b * jnp.cos(angle),
    )
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)


def _linear(
    cin: int, cout: int, dtype: jnp.dtype, rngs: nnx.Rngs, layers: int | None = None
) -> nnx.Linear:
    """Without a bias; what is added to the stream in each of ``layers`` starts smaller.

    The stream's variance then does not grow with the depth (GPT-2).
    """
    std = _INIT if layers is None else _INIT / (2 * layers) ** 0.5
    return nnx.Linear(
        cin,
        cout,
        use_bias=False,
        dtype=dtype,
        kernel_init=nnx.initializers.normal(std),
        rngs=rngs,
    )
