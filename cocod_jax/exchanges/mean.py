"""The weighted mean of all workers: one all-reduce for each dtype on the wire."""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax

from cocod_jax._text import shown
from cocod_jax._typing import AxisName, ExchangeState, Sent, Tree, Weight
from cocod_jax.exchanges._base import (
    Exchange,
    check_axis_name,
    check_exchange,
    normalised,
    own_share,
    stateless,
)
from cocod_jax.exchanges._wire import ravel, unravel


def mean(axis_name: AxisName, weights: Sequence[float] | None = None) -> Exchange:
    r"""The weighted mean over a named axis, with one all-reduce per dtype.

    .. math:: m = \sum_i p_i x_i, \qquad p_i = w_i / \sum_j w_j

    ``send`` ravels the leaves into one buffer per dtype and sums the workers' weighted
    buffers; ``receive`` unravels the sum. Leaves narrower than 32 bits (bfloat16,
    float16) are summed in float32, in the float32 buffer, and come back in their own
    dtype. Leaves that are not floating point stay with their worker. A tree without
    leaves sends nothing.

    Args:
      axis_name: the axis that ``pmap``, ``shard_map`` or ``vmap`` binds; a tuple
        of names averages over all of them.
      weights: one positive, finite number for each worker (shared); they are
        normalised. None gives every worker the same weight.

    Returns:
      A :class:`cocod_jax.Exchange` without state.

    Raises:
      TypeError: at construction, when ``axis_name`` is not a string or a tuple
        of strings, or ``weights`` is no sequence.
      ValueError: at construction, when a weight is not positive and finite; in
        ``send``, when ``axis_name`` is not bound, when there is not one weight for
        each worker, when ``weight`` is not a scalar, or when the tree has leaves, and
        none of them is floating point.

    Examples:
      >>> exchange = cj.mean("workers", weights=(1, 3))
      >>> params = {"w": jnp.array([[0.0, 4.0], [8.0, 4.0]])}  # a row per worker
      >>> average = jax.vmap(exchange.average, axis_name="workers")
      >>> print(average(params)["w"])
      [[6. 4.]
       [6. 4.]]
    """
    check_axis_name(axis_name)
    shares = None if weights is None else normalised(weights)

    def send(
        state: ExchangeState, tree: Tree, weight: Weight | None = None
    ) -> tuple[Sent, ExchangeState]:
        share = own_share(axis_name, shares, weight)
        # Weighted before the sum: work that is left until after it, such as a division,
        # invites compilers to finish the exchange ahead of the steps.
        sums = {
            dtype: lax.psum(buffer * jnp.asarray(share, dtype), axis_name)
            for dtype, buffer in ravel(tree).items()
        }
        return sums, state

    return Exchange(stateless, send, unravel, axis_name, shares)


def as_exchange(
    axis_or_exchange: AxisName | Exchange, weights: Sequence[float] | None = None
) -> Exchange:
    """The exchange itself, or the mean over the axis of that name.

    Raises:
      TypeError: when it is neither.
      ValueError: when both an exchange and ``weights`` are given.
    """
    if isinstance(axis_or_exchange, Exchange):
        _check_no_weights(weights)
        check_exchange(axis_or_exchange)
        return axis_or_exchange
    if not isinstance(axis_or_exchange, str | tuple):
        raise TypeError(
            f"axis_or_exchange={shown(axis_or_exchange)} must be the name of the axis "
            'of the workers, such as "workers", or an Exchange.'
        )
    return mean(axis_or_exchange, weights)


def _check_no_weights(weights: Sequence[float] | None) -> None:
    if weights is not None:
        raise ValueError(
            f"weights={weights!r} was given beside an exchange, which has its own; "
            "give the weights to the exchange: cj.mean(axis_name, weights)."
        )
