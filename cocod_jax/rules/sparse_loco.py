"""SparseLoCo: DiLoCo whose workers send the largest differences alone."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from cocod_jax._typing import AxisName, Params
from cocod_jax.exchanges._base import Exchange
from cocod_jax.exchanges.mean import as_exchange
from cocod_jax.exchanges.top_k import top_k
from cocod_jax.rules._base import MergeRule, check_brings_differences
from cocod_jax.rules.diloco import (
    DiLoCoState,
    anchored,
    outer_optimizer,
    outer_step,
)


def sparse_loco(
    axis_or_exchange: AxisName | Exchange,
    outer: optax.GradientTransformation | None = None,
    *,
    weights: Sequence[float] | None = None,
) -> MergeRule:
    r"""The merge rule of SparseLoCo, with its exchange hidden behind the local steps.

    A worker sends how far its snapshot is from an anchor z, which all workers hold
    alike. What arrives, turned around, is the outer optimizer's gradient:

    .. math::

       z \leftarrow \mathrm{outer}\Bigl(z,\; -\mathrm{exchange}_i(s_i - z)\Bigr), \qquad
       x_i \leftarrow z + (x_i - s_i)

    By default the exchange is :func:`cocod_jax.exchanges.top_k`, which sends the
    largest numbers of every chunk, and keeps the others for the next rounds. With
    :func:`cocod_jax.mean` the rule is :func:`cocod_jax.rules.diloco`.

    Args:
      axis_or_exchange: the name of the workers' axis, for the top 64 out of every 4,096
        numbers; or an :class:`cocod_jax.Exchange`, which gets differences.
      outer: any optax optimizer; it gets no ``value``. None is SGD with the rate 1.
      weights: one positive number for each worker, when a name is given.

    Returns:
      A :class:`cocod_jax.MergeRule` with state :class:`cocod_jax.rules.DiLoCoState`:
      one copy of the parameters with the default outer optimizer. The exchange keeps
      another one.

    Raises:
      TypeError: as :func:`cocod_jax.mean`, and when ``outer`` is not an optax
        transform.
      ValueError: as :func:`cocod_jax.mean`, and when both an exchange and ``weights``
        are given, or the exchange does not bring all workers the same, or heals them;
        in use, for complex parameters.

    Examples:
      >>> loss = lambda w, batch: jnp.mean((batch @ w) ** 2)
      >>> rule = cj.rules.sparse_loco("workers")
      >>> round_ = cj.make_round(loss, optax.sgd(0.1), rule, period=8)
      >>> state = cj.replicate(round_.init(jnp.ones([64, 64])), 2)
      >>> cj.summary(round_, state).sent_bytes  # 64 values of 32 bits, 64 places of 16
      {'uint16': 384}

    References:
      Sarfi et al., `Communication Efficient LLM Pre-training with SparseLoCo
      <https://arxiv.org/abs/2508.15706>`_, 2025.

    .. note::
       The paper's exchange is not hidden, which is delay 0 here. Its values travel in 2
       bits, and here in their own dtype. It has chunks of two-dimensional blocks of a
       matrix; here they are neighbours in the raveled tree.
    """
    outer = optax.sgd(1.0) if outer is None else outer_optimizer(outer)
    exchange = as_exchange(axis_or_exchange, weights)
    if not isinstance(axis_or_exchange, Exchange):
        exchange = top_k(axis_or_exchange, weights=weights)
    check_brings_differences(exchange, "sparse_loco")

    def init(params: Params) -> DiLoCoState:
        return anchored(outer, params)

    def outgoing(state: Any, snapshot: Params) -> Params:
        return optax.tree.sub(snapshot, state.anchor)

    def merge(
        arriving: Params, params: Params, state: Any, snapshot: Params
    ) -> tuple[Params, DiLoCoState]:
        gradient = jax.tree.map(jnp.negative, arriving)
        state = outer_step(outer, state, gradient)
        move = lambda z, x, s: z + (x - s)
        return jax.tree.map(move, state.anchor, params, snapshot), state

    return MergeRule(exchange, merge, init=init, outgoing=outgoing)
