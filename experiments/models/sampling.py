"""Text that a language model writes."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@functools.partial(jax.jit, static_argnames=("logits_of", "length", "context"))
def sample(
    logits_of: Callable[[Any, jax.Array], jax.Array],
    params: Any,
    prompt: jax.Array | np.ndarray,
    key: jax.Array,
    temperature: float,
    *,
    length: int,
    context: int,
) -> jax.Array:
    """Tokens that follow a prompt, each drawn with those before it as its context.

    Args:
      logits_of: ``(params, tokens) -> logits`` of a causal model, [batch, length] to
        [batch, length, vocabulary].
      params: its parameters.
      prompt: int32 [n], at least one token; the last ``context`` count.
      key: draws the tokens.
      temperature: divides the logits; 0 takes the likeliest token each time.
      length: how many tokens.
      context: how many tokens the model looks at.

    Returns:
      int32 [length].
    """
    prompt = jnp.asarray(prompt, jnp.int32)[-context:]
    window = jnp.zeros(context, jnp.int32).at[: len(prompt)].set(prompt)

    def step(
        carry: tuple[jax.Array, jax.Array], key: jax.Array
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        window, filled = carry
        # What is behind the last token has no influence: the model is causal.
        logits = logits_of(params, window[None])[0, filled - 1]
        drawn = jax.random.categorical(key, logits / jnp.maximum(temperature, 1e-6))
        token = jnp.where(temperature > 0, drawn, logits.argmax()).astype(jnp.int32)
        window = jnp.where(filled == context, jnp.roll(window, -1), window)
        window = window.at[jnp.minimum(filled, context - 1)].set(token)
        return (window, jnp.minimum(filled + 1, context)), token

    start = window, jnp.asarray(len(prompt))
    return jax.lax.scan(step, start, jax.random.split(key, length))[1]
