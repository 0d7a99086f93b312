"""Exchanges and rules that use the whole contract, for tests only.

Each stands for what the library is to carry: an exchange with state on a narrow wire,
one that divides after the collective, a rule that keeps an anchor, one that corrects
gradients, and one that overwrites.
"""

import jax
import jax.numpy as jnp
import optax
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


def finite_workers(axis_name):
    """The mean of the workers whose numbers are all finite."""

    def send(state, tree, weight=None):
        share, sums = own_share(axis_name, None, weight), {}
        for dtype, buffer in ravel(tree).items():
            finite = jnp.isfinite(buffer).all()
            counted = jnp.where(finite, buffer, 0) * jnp.asarray(share, dtype)
            own = jnp.where(finite, jnp.asarray(share, dtype), 0)
            sums[dtype] = lax.psum(jnp.append(counted, own), axis_name)
        return sums, state

    def receive(sent, like):
        return unravel({d: total[:-1] / total[-1] for d, total in sent.items()}, like)

    nothing = lambda tree: optax.EmptyState()
    return cj.Exchange(nothing, send, receive, axis_name)


def healing(exchange):
    """CoCoD-SGD, but a worker that is not finite takes what arrives."""

    def merge(arriving, params, state, snapshot):
        leaves = jax.tree.leaves((params, snapshot))
        finite = jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]).all()
        move = lambda m, x, s: jnp.where(finite, m + (x - s), m)
        return jax.tree.map(move, arriving, params, snapshot), state

    return cj.MergeRule(exchange, merge)


def overwriting(exchange):
    """Every worker takes the stale mean, and loses its own progress."""
    return cj.MergeRule(exchange, lambda m, x, state, s: (m, state))
