"""What a merge reports."""

import jax
import jax.numpy as jnp

from cocod_jax._trees import barrier, few_leaves, norm, same_shapes, wide
from cocod_jax._typing import Params, Tree
from cocod_jax.rounds._types import MergeMetrics


def merge_metrics(
    params: Params, snapshot: Params, arriving: Tree, outgoing: Tree
) -> MergeMetrics:
    """How far the worker went, and how far what arrived is from what it sent."""
    same = same_shapes(outgoing, snapshot)
    trees = map(few_leaves, (params, snapshot, arriving, outgoing))
    params, snapshot, arriving, outgoing = trees

    # Each metric takes its differences anew, from behind barriers of its own (the
    # compiler would make one of two that are alike). A difference that metrics share is
    # written to memory, as a dot product's operands are, and with two of them, each as
    # large as the model, the merge on a CPU takes three times as long.
    def difference(one: jax.Array, other: jax.Array) -> jax.Array:
        return wide(jnp.subtract(*barrier((one, other))))

    distance = norm(jax.tree.map(difference, arriving, outgoing))
    progress_norm = norm(jax.tree.map(difference, params, snapshot))
    if not same:
        return MergeMetrics(distance, progress_norm, jnp.zeros_like(distance))

    def product(x: jax.Array, s: jax.Array, m: jax.Array, o: jax.Array) -> jax.Array:
        x, s, m, o = barrier((x, s, m, o))
        return jnp.sum(jnp.real(jnp.conj(wide(x - s)) * wide(m - o)))

    products = list(map(product, params, snapshot, arriving, outgoing))
    norms = distance * progress_norm
    # Divided before the sum, which is then no sum of scalars either: see norm.
    cosine = jnp.sum(jnp.array(products) / jnp.where(norms == 0, 1, norms))
    # Rounding may take the cosine of parallel trees beyond 1.
    return MergeMetrics(distance, progress_norm, jnp.clip(cosine, -1, 1))
