"""Exchanges and rules that use the whole contract, for tests only.

An exchange with a state on a narrow wire, in as few lines as will do, and a rule that
overwrites.
"""

import jax
import jax.numpy as jnp
from jax import lax

import cocod_jax as cj
from cocod_jax.exchanges._base import own_share
from cocod_jax.exchanges._wire import ravel, unravel


def int8_with_feedback(axis_name):
    """Every worker sends 8 bits a number, and remembers what they left out."""

    def init(tree):
        return {"error": jax.tree.map(jnp.zeros_like, ravel(tree))}

    def send(state, tree, weight=None):
        sent, errors = {}, {}
        for dtype, buffer in ravel(tree).items():
            wanted = buffer + state["error"][dtype]
            scale = jnp.maximum(jnp.abs(wanted).max(), 1e-30) / 127
            codes = jnp.round(wanted / scale).astype(jnp.int8)
            errors[dtype] = wanted - codes.astype(dtype) * scale
            # One collective: a second one, of the scales, would have to wait for it.
            head = jnp.stack([scale, jnp.asarray(own_share(axis_name, None, weight))])
            head = lax.bitcast_convert_type(head.astype(jnp.float32), jnp.int8)
            sent[dtype] = lax.all_gather(
                jnp.concatenate([head.ravel(), codes]), axis_name
            )
        return sent, {"error": errors}

    def receive(sent, like):
        means = {}
        for dtype, rows in sent.items():
            head = rows[:, :8].reshape(-1, 2, 4)
            scale, share = lax.bitcast_convert_type(head, jnp.float32).T
            means[dtype] = jnp.einsum(
                "i,ij->j", scale * share, rows[:, 8:].astype(dtype)
            )
        return unravel(means, like)

    return cj.Exchange(init, send, receive, axis_name)


def overwriting(exchange):
    """Every worker takes the stale mean, and loses its own progress."""
    return cj.MergeRule(exchange, lambda m, x, state, s: (m, state))
