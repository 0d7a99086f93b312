"""SlowMo: a slow momentum over many local steps, and BMUF."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

from cocod_jax._checks import check_positive, check_shares, check_takes
from cocod_jax._typing import AxisName
from cocod_jax.exchanges._base import Exchange
from cocod_jax.rules._base import MergeRule
from cocod_jax.rules.diloco import diloco


def slowmo(
    axis_or_exchange: AxisName | Exchange,
    *,
    beta: float = 0.5,
    alpha: float = 1.0,
    learning_rate: optax.Schedule | None = None,
    weights: Sequence[float] | None = None,
) -> MergeRule:
    r"""The merge rule of SlowMo, with its exchange hidden behind the local steps.

    A momentum u that moves once in a round takes an anchor z, which all workers hold
    alike, in the direction of their mean and beyond. A worker goes on from the anchor,
    and keeps its progress since its snapshot:

    .. math::

       u \leftarrow \beta u + \frac{1}{\gamma_r} \Bigl(z - \sum_i p_i s_i\Bigr), \qquad
       z \leftarrow z - \alpha \gamma_r u, \qquad
       x_i \leftarrow z + (x_i - s_i)

    With delay 0 it is SlowMo over Local SGD as published. With :math:`\beta = 0` and
    :math:`\alpha = 1` it is :func:`cocod_jax.cocod` at every delay. With a constant
    rate it is :func:`cocod_jax.rules.diloco` with ``optax.sgd(alpha, momentum=beta)``;
    and block-wise model update filtering (BMUF) with the block momentum
    :math:`\eta = \beta` and the block learning rate :math:`\zeta = \alpha`.

    Args:
      axis_or_exchange: the name of the workers' axis, or an
        :class:`cocod_jax.Exchange`.
      beta: in 0..1, the slow momentum; the paper has 0.4 to 0.8.
      alpha: the slow learning rate, above 0.
      learning_rate: ``round -> rate``, gamma, that of the local steps in a round, from
        round 0 on, where it is not constant: ``lambda r: schedule(period * r)`` of the
        inner optimizer's schedule. None is any constant rate; it cancels. After a
        round of rate 0 the momentum begins anew.
      weights: one positive number for each worker, when a name is given.

    Returns:
      A :class:`cocod_jax.MergeRule` with state :class:`cocod_jax.rules.DiLoCoState`:
      two copies of the parameters, the anchor and the momentum.

    Raises:
      TypeError: as :func:`cocod_jax.mean`, and when ``learning_rate`` is not a function
        of the round.
      ValueError: as :func:`cocod_jax.mean`; when both an exchange and ``weights`` are
        given, ``beta`` is not in 0..1, or ``alpha`` not positive and finite.

    Examples:
      Two workers at 1 and 3 take an anchor from 0 to 2. When they stay there, the
      momentum goes on by half as much:

      >>> rule = cj.rules.slowmo("workers", beta=0.5)
      >>> state = jax.vmap(rule.init)(jnp.zeros(2))
      >>> merge = jax.vmap(rule.merge_now, axis_name="workers")
      >>> params, state = merge(jnp.array([1.0, 3.0]), state, jnp.array([1.0, 3.0]))
      >>> print(params, merge(params, state, params)[0])
      [2. 2.] [3. 3.]

    References:
      Wang, Tantia, Ballas, Rabbat, `SlowMo: Improving Communication-Efficient
      Distributed SGD with Slow Momentum <https://arxiv.org/abs/1910.00643>`_, ICLR
      2020, Algorithm 1.

      Chen, Huo, `Scalable Training of Deep Learning Machines by Incremental Block
      Training with Intra-Block Parallel Optimization and Blockwise Model-Update
      Filtering <https://doi.org/10.1109/ICASSP.2016.7472805>`_, ICASSP 2016.

    .. note::
       Of the paper's strategies for the inner optimizer's buffers, a round *keeps*
       them, as the paper does with Adam. :func:`cocod_jax.per_step.reset_every`
       *resets* them, as the paper does with Nesterov's momentum. *Averaging* would send
       them as well, two or three times the bytes.
    """
    check_shares(beta=beta)
    check_positive(alpha=alpha)
    if learning_rate is None:
        return diloco(
            axis_or_exchange, optax.sgd(alpha, momentum=beta), weights=weights
        )
    check_takes(("round",), learning_rate=learning_rate)

    # What merges with the snapshots of a round is the progress of the round before.
    def rate(merges: jax.Array) -> jax.Array:
        return jnp.asarray(learning_rate(jnp.maximum(merges - 1, 0)))

    # The trace is that of gamma u. Where a schedule begins or ends with 0, u has none.
    def decay(merges: jax.Array) -> jax.Array:
        now, before = rate(merges), rate(merges - 1)
        return jnp.where(before > 0, beta * now / jnp.where(before > 0, before, 1), 0)

    trace = optax.inject_hyperparams(optax.trace)(decay)
    outer = optax.chain(trace, optax.scale(-alpha))
    return diloco(axis_or_exchange, outer, weights=weights)
