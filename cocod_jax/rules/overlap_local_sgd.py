"""Overlap Local SGD: a pull to an anchor that follows the stale mean."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cocod_jax._checks import check_shares
from cocod_jax._typing import AxisName, Params
from cocod_jax.exchanges._base import Exchange
from cocod_jax.exchanges.mean import as_exchange
from cocod_jax.rules._base import MergeRule


class OverlapLocalSGDState(NamedTuple):
    """State of :func:`overlap_local_sgd`: equal on all workers.

    Attributes:
      anchor: z.
      velocity: v, the anchor's momentum.
    """

    anchor: Params
    velocity: Params


def overlap_local_sgd(
    axis_or_exchange: AxisName | Exchange,
    *,
    alpha: float = 0.6,
    beta: float = 0.7,
    weights: Sequence[float] | None = None,
) -> MergeRule:
    r"""The merge rule of Overlap Local SGD.

    An anchor z follows the workers' stale mean with momentum, and at the end of a
    round every worker is pulled to it:

    .. math::

       v \leftarrow \beta v + \Bigl(\sum_i p_i s_i - z\Bigr), \qquad
       z \leftarrow z + v, \qquad
       x_i \leftarrow (1 - \alpha)\, x_i + \alpha z

    The pull takes the share :math:`\alpha` of a worker's progress since its snapshot
    with it: the workers are held together more tightly than by
    :func:`cocod_jax.cocod`, and their mean does not follow SGD.

    Args:
      axis_or_exchange: the name of the workers' axis, or an
        :class:`cocod_jax.Exchange`.
      alpha: in 0..1, the strength of the pull; the paper's default.
      beta: in 0..1, the anchor's momentum; the paper's default.
      weights: one positive number for each worker, when a name is given.

    Returns:
      A :class:`cocod_jax.MergeRule` with state :class:`OverlapLocalSGDState`: two
      copies of the parameters.

    Raises:
      TypeError: as :func:`cocod_jax.mean`.
      ValueError: as :func:`cocod_jax.mean`; when both an exchange and ``weights`` are
        given, or ``alpha`` or ``beta`` is not in 0..1.

    Examples:
      Two workers at 1 and 3, and their anchor at 0:

      >>> rule = cj.rules.overlap_local_sgd("workers", alpha=0.5, beta=0.0)
      >>> state = jax.vmap(rule.init)(jnp.zeros(2))
      >>> merge = jax.vmap(rule.merge_now, axis_name="workers")
      >>> params = jnp.array([1.0, 3.0])
      >>> print(merge(params, state, params)[0])
      [1.5 2.5]

    References:
      Wang, Liang, Joshi, `Overlap Local-SGD: An Algorithmic Approach to Hide
      Communication Delays in Distributed SGD <https://arxiv.org/abs/2002.09539>`_,
      ICASSP 2020.

    .. note::
       The paper sends what a worker has after the pull, and uses the mean at the end
       of the next round: the snapshot of a round whose delay is its period.
    """
    check_shares(alpha=alpha, beta=beta)

    def init(params: Params) -> OverlapLocalSGDState:
        return OverlapLocalSGDState(
            jax.tree.map(jnp.array, params), jax.tree.map(jnp.zeros_like, params)
        )

    def merge(
        arriving: Params, params: Params, state: Any, snapshot: Params
    ) -> tuple[Params, OverlapLocalSGDState]:
        del snapshot
        follow = lambda v, m, z: beta * v + (m - z)
        velocity = jax.tree.map(follow, state.velocity, arriving, state.anchor)
        anchor = jax.tree.map(jnp.add, state.anchor, velocity)
        pull = lambda x, z: (1 - alpha) * x + alpha * z
        pulled = jax.tree.map(pull, params, anchor)
        return pulled, OverlapLocalSGDState(anchor, velocity)

    return MergeRule(as_exchange(axis_or_exchange, weights), merge, init=init)
