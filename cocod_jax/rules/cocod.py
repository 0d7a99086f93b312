"""CoCoD-SGD: the stale mean plus the worker's own progress."""

from collections.abc import Sequence

import jax
import optax

from cocod_jax._typing import AxisName, Params
from cocod_jax.exchanges._base import Exchange
from cocod_jax.exchanges.mean import as_exchange
from cocod_jax.rules._base import MergeRule


def cocod(
    axis_or_exchange: AxisName | Exchange, weights: Sequence[float] | None = None
) -> MergeRule:
    r"""The merge rule of CoCoD-SGD, and of Local SGD, its case of delay 0.

    The mean of the snapshots is computed beside the local steps that start from
    them. When it arrives, a worker takes it and keeps all its own progress:

    .. math::

       m = \sum_i p_i s_i, \qquad x_i \leftarrow m + (x_i - s_i)

    The merge leaves the weighted mean of the workers unchanged, so that with
    plain SGD the mean follows SGD exactly: it moves by the weighted mean of the
    workers' gradients at every local step, without staleness. Only the points at
    which gradients are taken differ between workers. With delay 0 no progress has
    been made, and all workers have the mean, equal in every bit.

    Args:
      axis_or_exchange: the name of the workers' axis, or an
        :class:`cocod_jax.Exchange`.
      weights: one positive number for each worker, when a name is given; the
        paper's p_i = M_i / M, in proportion to the workers' batch sizes.

    Returns:
      A :class:`cocod_jax.MergeRule` without state of its own.

    Raises:
      TypeError, ValueError: as :func:`cocod_jax.mean`; ValueError when both an
        exchange and ``weights`` are given.

    Examples:
      Two workers start from 1 and 3 and have moved by -0.5 and +0.5 since:

      >>> rule = cj.cocod("workers")
      >>> snapshot, progress = jnp.array([1.0, 3.0]), jnp.array([-0.5, 0.5])
      >>> merge = jax.vmap(rule.update, in_axes=(0, None, 0), axis_name="workers")
      >>> updates, _ = merge(progress, rule.init(snapshot), snapshot)
      >>> print(snapshot + updates)
      [1.5 2.5]

    References:
      Shen et al., `Faster Distributed Deep Net Training: Computation and
      Communication Decoupled SGD <https://arxiv.org/abs/1906.12043>`_, IJCAI
      2019, Algorithm 1.

      Stich, `Local SGD Converges Fast and Communicates Little
      <https://arxiv.org/abs/1805.09767>`_, ICLR 2019 (delay 0).

    .. note::
       The paper merges at the end of the round (delay k) and analyses plain SGD.
       Here the delay is the round's choice and the local steps take any optax
       optimizer that keeps no parameters in its state; its state stays with the worker.
    """

    def merge(
        arriving: Params, params: Params, state: optax.OptState, snapshot: Params
    ) -> tuple[Params, optax.OptState]:
        move = lambda m, x, s: m + (x - s)
        return jax.tree.map(move, arriving, params, snapshot), state

    return MergeRule(as_exchange(axis_or_exchange, weights), merge)
