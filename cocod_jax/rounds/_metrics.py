"""What a merge reports."""

import jax
import jax.numpy as jnp
import optax

from cocod_jax._trees import barrier, same_shapes, wide
from cocod_jax._typing import Params, Tree
from cocod_jax.rounds._types import MergeMetrics


def merge_metrics(
    params: Params, snapshot: Params, arriving: Tree, outgoing: Tree
) -> MergeMetrics:
    """How far the worker went, and how far what arrived is from what it sent."""
    # Each metric takes its differences anew, from behind a barrier of its own (the
    # compiler would make one of two that are alike). A difference that metrics share is
    # written to memory, as a dot product's operands are, and with two of them, each as
    # large as the model, the merge on a CPU takes three times as long.
    difference = lambda one, other: wide(optax.tree.sub(one, other))
    distance = optax.tree.norm(difference(*barrier((arriving, outgoing))))
    progress_norm = optax.tree.norm(difference(*barrier((params, snapshot))))
    if not same_shapes(outgoing, snapshot):
        return MergeMetrics(distance, progress_norm, jnp.zeros_like(distance))
    x, s, m, o = barrier((params, snapshot, arriving, outgoing))
    each = lambda progress, correction: jnp.real(jnp.conj(progress) * correction)
    products = jax.tree.map(each, difference(x, s), difference(m, o))
    norms = distance * progress_norm
    cosine = optax.tree.sum(products) / jnp.where(norms == 0, 1, norms)
    # Rounding may take the cosine of parallel trees beyond 1.
    return MergeMetrics(distance, progress_norm, jnp.clip(cosine, -1, 1))
