"""The transformer of smol_diloco, whose losses are published."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.models.model import Model, as_functions

LAYERS, HEADS, WIDTH = 2, 4, 128


def build(vocabulary: int, context: int) -> Model:
    """The network, with the initial values that PyTorch gives its layers."""
    return as_functions(lambda key: GPT(vocabulary, context, nnx.Rngs(key)))


class GPT(nnx.Module):
    """Tokens to the logits of the tokens that follow them."""

    def __init__(self, vocabulary: int, context: int, rngs: nnx.Rngs):
        embed = functools.partial(
            nnx.Embed, features=WIDTH, embedding_init=nnx.initializers.normal(1.0)
        )
        self.tokens = embed(vocabulary, rngs=rngs)
        self.positions = embed(context, rngs=rngs)
        self.blocks = nnx.List([Block(rngs) for _ in range(LAYERS)])
        self.norm = _norm(rngs)
        self.head = torch_linear(WIDTH, vocabulary, rngs, use_bias=False)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """int32 [batch, length] to float32 [batch, length, vocabulary]."""
        x = self.tokens(tokens) + self.positions(jnp.arange(tokens.shape[1]))[None]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class Block(nnx.Module):
    """Attention and a feed-forward layer, each added to what came in."""

    def __init__(self, rngs: nnx.Rngs):
        self.before_attention, self.before_feed_forward = _norm(rngs), _norm(rngs)
        self.qkv = torch_linear(WIDTH, 3 * WIDTH, rngs, use_bias=False)
        self.out = torch_linear(WIDTH, WIDTH, rngs, use_bias=False)
        self.up = torch_linear(WIDTH, 4 * WIDTH, rngs)
        self.down = torch_linear(4 * WIDTH, WIDTH, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        qkv = self.qkv(self.before_attention(x)).reshape(*x.shape[:2], 3, HEADS, -1)
        x = x + self.out(attention(*jnp.moveaxis(qkv, (2, 3), (0, 2))).reshape(x.shape))
        hidden = self.up(self.before_feed_forward(x))
        return x + self.down(jax.nn.gelu(hidden, approximate=False))


def attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Causal attention; from [batch, heads, length, channels] to heads third.

    ``jax.nn.dot_product_attention`` takes twice as long here, on CPUs and under vmap.
    """
    length, channels = q.shape[-2:]
    scores = jnp.einsum("bhtc,bhsc->bhts", q, k) / channels**0.5
    before = jnp.tril(jnp.ones([length, length], bool))[None, None]
    weights = jax.nn.softmax(jnp.where(before, scores, -jnp.inf))
    return jnp.einsum("bhts,bhsc->bthc", weights, v)


def torch_linear(
    cin: int, cout: int, rngs: nnx.Rngs, *, use_bias: bool = True
) -> nnx.Linear:
    """A layer whose weights and biases PyTorch draws from one range."""
    init = torch_uniform(cin)
    return nnx.Linear(
        cin, cout, use_bias=use_bias, kernel_init=init, bias_init=init, rngs=rngs
    )


def torch_uniform(inputs: int) -> jax.nn.initializers.Initializer:
    """Uniform between plus and minus 1 / sqrt(inputs), PyTorch's default."""
    bound = inputs**-0.5

    def init(key: jax.Array, shape, dtype=jnp.float32, out_sharding=None) -> jax.Array:
        del out_sharding
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def _norm(rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(WIDTH, epsilon=1e-5, rngs=rngs)
