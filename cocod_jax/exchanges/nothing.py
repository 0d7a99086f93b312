"""No exchange at all."""

from collections.abc import Sequence

from cocod_jax._typing import ExchangeState, Sent, Tree, Weight
from cocod_jax.exchanges._base import Exchange, normalised, stateless


def nothing(weights: Sequence[float] | None = None) -> Exchange:
    """The exchange of workers that send nothing; each receives its own tree.

    Args:
      weights: one positive, finite number for each worker (shared), by which
        :func:`cocod_jax.consensus` averages the workers at the end. None counts all
        workers the same.

    Returns:
      A :class:`cocod_jax.Exchange` without state, axis or collective.

    Raises:
      TypeError: when ``weights`` is no sequence.
      ValueError: when a weight is not positive and finite.

    Examples:
      >>> print(cj.exchanges.nothing().average(jnp.array([1.0, 3.0])))
      [1. 3.]
    """

    def send(
        state: ExchangeState, tree: Tree, weight: Weight | None = None
    ) -> tuple[Sent, ExchangeState]:
        del tree, weight
        return (), state

    def receive(sent: Sent, like: Tree) -> Tree:
        del sent
        return like

    shares = None if weights is None else normalised(weights)
    return Exchange(stateless, send, receive, None, shares)
