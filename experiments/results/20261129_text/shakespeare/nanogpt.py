"""The main job with nanoGPT's parts: learnt positions, LayerNorm and GELU.

    PYTHONPATH=. python experiments/results/20261129_text/shakespeare/nanogpt.py OPTIONS

with the options of ``python -m experiments.train``.
"""

import functools
import sys
from typing import Any

import jax.numpy as jnp
from flax import nnx

from experiments import command, train
from experiments.config import config_type
from experiments.models import transformer
from experiments.models.transformer import FeedForward, Transformer, _linear

CONTEXT = 64

replaced: Any = transformer, nnx
replaced[0].rotary = lambda x: x
replaced[1].RMSNorm = functools.partial(nnx.LayerNorm, use_bias=False, epsilon=1e-5)


def feed_forward(self, shape, dtype, rngs):
    self.up = _linear(shape.width, 4 * shape.width, dtype, rngs)
    self.down = _linear(4 * shape.width, shape.width, dtype, rngs, shape.layers)


def gelu(self, x):
    return self.down(nnx.gelu(self.up(x), approximate=False))


FeedForward.__init__, FeedForward.__call__ = feed_forward, gelu

without_positions = Transformer.__init__


def with_positions(self, shape, vocabulary, dtype, remat, rngs):
    without_positions(self, shape, vocabulary, dtype, remat, rngs)
    normal = nnx.initializers.normal(0.02)
    self.positions = nnx.Embed(
        CONTEXT, shape.width, dtype=dtype, embedding_init=normal, rngs=rngs
    )


def logits(self, tokens):
    x = self.embedding(tokens) + self.positions(jnp.arange(tokens.shape[1]))[None]
    for block in self.blocks:
        x = block(x)
    return jnp.einsum("blc,vc->blv", self.norm(x), self.embedding.embedding[...])


Transformer.__init__, Transformer.__call__ = with_positions, logits

command.run(train.main, config_type(sys.argv[1:]), __doc__)
