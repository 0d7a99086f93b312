"""Eager DiLoCo: a worker's own progress counts before the others' arrives."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from cocod_jax._typing import AxisName, Params
from cocod_jax.exchanges._base import Exchange, own_share
from cocod_jax.exchanges.mean import as_exchange
from cocod_jax.rules._base import MergeRule, check_brings_differences
from cocod_jax.rules.diloco import (
    DiLoCoState,
    anchored,
    outer_optimizer,
    outer_step,
)


class EagerDiLoCoState(NamedTuple):
    """State of :func:`eager_diloco`; per worker.

    Attributes:
      outer: z_i, the worker's own outer parameters, and its outer optimizer's state.
      fresh: a_i, the way from the snapshot at the last merge, which no other worker
        has heard of yet.
    """

    outer: DiLoCoState
    fresh: Params


def eager_diloco(
    axis_or_exchange: AxisName | Exchange,
    outer: optax.GradientTransformation | None = None,
    *,
    weights: Sequence[float] | None = None,
) -> MergeRule:
    r"""The merge rule of DiLoCo with eager updates.

    Where an exchange takes a whole round, the outer gradient that arrives is a round
    old. A worker replaces its own part of it by its newest, with its own share p_i:

    .. math::

       \Delta_i = a_i + (s_i - z_i), \qquad a'_i = x_i - s_i, \qquad
       z_i \leftarrow \mathrm{outer}\Bigl(z_i,\; -\sum_j p_j \Delta_j
       - p_i (a'_i - a_i)\Bigr), \qquad x_i \leftarrow z_i, \qquad a_i \leftarrow a'_i

    What travels, :math:`\Delta_i`, is how far the worker went from snapshot to
    snapshot. With delay k it is the last round, since a round then begins at
    :math:`s_i = z_i`, and this is the paper's algorithm. With delay 0 nothing is
    fresh, and the rule is :func:`cocod_jax.rules.diloco`.

    :func:`cocod_jax.cocod` counts all of a worker's own progress at once, and swaps it
    for the mean when that arrives; here it counts by its share from the start, and the
    outer parameters differ between workers by what is fresh.

    Args:
      axis_or_exchange: the name of the workers' axis, or an
        :class:`cocod_jax.Exchange`.
      outer: any optax optimizer; it gets no ``value``. None is SGD with the rate 0.7
        and Nesterov's momentum 0.9.
      weights: one positive number for each worker, when a name is given.

    Returns:
      A :class:`cocod_jax.MergeRule` with state :class:`EagerDiLoCoState`: three copies
      of the parameters with the default outer optimizer.

    Raises:
      TypeError: as :func:`cocod_jax.mean`, and when ``outer`` is not an optax
        transform.
      ValueError: as :func:`cocod_jax.mean`, and when both an exchange and ``weights``
        are given, or the exchange does not bring all workers the same, or heals them.

    Examples:
      Two workers start from 0 and go to 2 and to 4. Each counts a half of its own way
      at once:

      >>> rule = cj.rules.eager_diloco("workers", optax.sgd(1.0))
      >>> snapshot = jnp.zeros(2)
      >>> state = jax.vmap(rule.init)(snapshot)
      >>> merge = jax.vmap(rule.merge_now, axis_name="workers")
      >>> params, state = merge(jnp.array([2.0, 4.0]), state, snapshot)
      >>> print(params)
      [1. 2.]

      When they stay there for a round, each hears of the other's half:

      >>> print(merge(params, state, params)[0])
      [3. 3.]

    References:
      Kale, Douillard, Donchev, `Eager Updates For Overlapped Communication and
      Computation in DiLoCo <https://arxiv.org/abs/2502.12996>`_, 2025.

    .. note::
       The paper has equal shares and a delay of one round. A share p_i is that of the
       exchange's own weights: a merge does not see what :func:`cocod_jax.reweight`
       gives a worker. Whatever it is, all progress counts by the weights that travel
       with it in the end.
    """
    outer = outer_optimizer(outer)
    exchange = as_exchange(axis_or_exchange, weights)
    check_brings_differences(exchange, "eager_diloco")

    def init(params: Params) -> EagerDiLoCoState:
        fresh = jax.tree.map(jnp.zeros_like, params)
        return EagerDiLoCoState(anchored(outer, params), fresh)

    def outgoing(state: Any, snapshot: Params) -> Params:
        since = lambda a, z, s: a + (s - z)
        return jax.tree.map(since, state.fresh, state.outer.anchor, snapshot)

    def merge(
        arriving: Params, params: Params, state: Any, snapshot: Params
    ) -> tuple[Params, EagerDiLoCoState]:
        share = 1.0
        if exchange.axis_name is not None:
            share = own_share(exchange.axis_name, exchange.weights)
        fresh = optax.tree.sub(params, snapshot)
        renew = lambda m, new, old: -(m + jnp.asarray(share, m.dtype) * (new - old))
        gradient = jax.tree.map(renew, arriving, fresh, state.fresh)
        moved = outer_step(outer, state.outer, gradient)
        return moved.anchor, EagerDiLoCoState(moved, fresh)

    return MergeRule(exchange, merge, init=init, outgoing=outgoing)
