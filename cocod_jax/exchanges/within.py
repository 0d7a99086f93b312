"""The mean within groups of workers, such as those of one host."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from cocod_jax._checks import check_counts
from cocod_jax._trees import varying_axes
from cocod_jax._typing import ExchangeState, Sent, Tree, Weight
from cocod_jax.exchanges._base import (
    Exchange,
    axis_size,
    check_one_axis,
    normalised,
    own_share,
    stateless,
)
from cocod_jax.exchanges._wire import ravel, unravel


def within(
    axis_name: str, size: int, weights: Sequence[float] | None = None
) -> Exchange:
    r"""The mean of groups of ``size`` consecutive workers, one all-reduce in each.

    .. math:: m_i = \sum_{j \in G(i)} p_j x_j \Big/ \sum_{j \in G(i)} p_j

    The second sum travels at the end of the first. In a group whose workers all have
    the share 0, each receives its own tree.

    Where the workers of a host have a fast network between them, groups are those of
    the hosts. Groups do not hear of each other: rounds of this exchange take turns with
    rounds of :func:`cocod_jax.mean`, which
    :func:`cj.plans.two_level <cocod_jax.rounds.plans.two_level>` plans.

    Args:
      axis_name: the axis that ``pmap``, ``shard_map`` or ``vmap`` binds.
      size: of a group G, a divisor of N (shared).
      weights: one positive, finite number for each worker (shared); they are
        normalised. None gives every worker the same weight.

    Returns:
      A :class:`cocod_jax.Exchange` without state.

    Raises:
      TypeError: at construction, when ``axis_name`` is not a string, or ``weights`` is
        no sequence.
      ValueError: at construction, when ``size`` is not an integer of at least 1, or a
        weight is not positive and finite; in ``send``, when groups of this size cannot
        share the workers evenly, in a ``shard_map`` with ``check_vma``, or as
        :func:`cocod_jax.mean`.

    Examples:
      >>> exchange = cj.exchanges.within("workers", 2)
      >>> x = jnp.array([0.0, 2.0, 6.0, 12.0])
      >>> print(jax.vmap(exchange.average, axis_name="workers")(x))
      [1. 1. 9. 9.]
    """
    check_one_axis(axis_name)
    check_counts(size=size)
    shares = None if weights is None else normalised(weights)

    def send(
        state: ExchangeState, tree: Tree, weight: Weight | None = None
    ) -> tuple[Sent, ExchangeState]:
        share, workers = own_share(axis_name, shares, weight), axis_size(axis_name)
        if workers % size:
            raise ValueError(
                f"size={size}, but axis {axis_name!r} has {workers} workers, which "
                "groups of this size cannot share evenly."
            )
        groups = [[*range(i, i + size)] for i in range(0, workers, size)]
        sums = {}
        for dtype, buffer in ravel(tree).items():
            own = jnp.asarray(share, dtype)
            weighted = jnp.append(buffer * own, own)
            sums[dtype] = _sum(weighted, axis_name, groups)
        return sums, state

    def receive(sent: Sent, like: Tree) -> Tree:
        means = {
            dtype: jnp.where(total[-1] == 0, own, total[:-1] / total[-1])
            for (dtype, total), own in zip(
                sent.items(), ravel(like).values(), strict=True
            )
        }
        return unravel(means, like)

    return Exchange(stateless, send, receive, axis_name, shares, block=1, alike=False)


def _sum(buffer: jax.Array, axis_name: str, groups: list[list[int]]) -> jax.Array:
    """The sum within this worker's group."""
    worker = lax.axis_index(axis_name)
    if axis_name in varying_axes(worker):
        raise ValueError(
            "JAX has no sums within groups in a shard_map that checks types; turn the "
            "check off: cj.distribute(..., check_vma=False)."
        )
    if axis_name in jax.sharding.get_abstract_mesh().manual_axes:
        return lax.psum(buffer, axis_name, axis_index_groups=groups)
    # JAX has none under vmap either, where the numbers of all are in one memory.
    own_group = jnp.array(groups)[worker // len(groups[0])]
    return lax.all_gather(buffer, axis_name)[own_group].sum(axis=0)
