"""EASGD: workers and a centre pull at each other."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from cocod_jax._checks import check_shares
from cocod_jax._typing import AxisName, Params
from cocod_jax.exchanges._base import Exchange, axis_size
from cocod_jax.exchanges.mean import as_exchange
from cocod_jax.rules._base import MergeRule


def easgd(
    axis_or_exchange: AxisName | Exchange,
    *,
    beta: float = 0.9,
    alpha: float | None = None,
    weights: Sequence[float] | None = None,
) -> MergeRule:
    r"""The merge rule of elastic averaging SGD, with its exchange hidden.

    A worker is pulled to a centre z, and the centre to the workers' mean. Both forces
    are those of the moment when the snapshots were taken; the progress since then is
    kept:

    .. math::

       x_i \leftarrow x_i - \alpha (s_i - z), \qquad
       z \leftarrow z + \beta \Bigl(\sum_i p_i s_i - z\Bigr)

    With delay 0 this is the synchronous algorithm of the paper. Workers stay apart
    from each other; the model to keep is their mean.

    Args:
      axis_or_exchange: the name of the workers' axis, or an
        :class:`cocod_jax.Exchange`.
      beta: in 0..1, the way of the centre to the mean, in one merge.
      alpha: in 0..1, the way of a worker to the centre; None is ``beta`` over the
        number of workers, as in the paper: what the workers lose, the centre gains.
      weights: one positive number for each worker, when a name is given.

    Returns:
      A :class:`cocod_jax.MergeRule` whose state is the centre, one copy of the
      parameters, equal on all workers. It moves the mean of the workers.

    Raises:
      TypeError: as :func:`cocod_jax.mean`.
      ValueError: as :func:`cocod_jax.mean`; when both an exchange and ``weights`` are
        given, or ``beta`` or ``alpha`` is not in 0..1.

    Examples:
      Two workers at 1 and 3, and their centre at 0:

      >>> rule = cj.rules.easgd("workers", beta=0.5)
      >>> state = jax.vmap(rule.init)(jnp.zeros(2))
      >>> merge = jax.vmap(rule.merge_now, axis_name="workers")
      >>> params = jnp.array([1.0, 3.0])
      >>> params, state = merge(params, state, params)
      >>> print(params, state.rule_state)
      [0.75 2.25] [1. 1.]

    References:
      Zhang, Choromanska, LeCun, `Deep learning with Elastic Averaging SGD
      <https://arxiv.org/abs/1412.6651>`_, NeurIPS 2015.

    .. note::
       The paper's server is the exchange here: every worker holds the centre. Its
       momentum variant, EAMSGD, is this rule with a momentum in the inner optimizer.
    """
    check_shares(beta=beta)
    if alpha is not None:
        check_shares(alpha=alpha)
    exchange = as_exchange(axis_or_exchange, weights)

    def init(params: Params) -> Params:
        return jax.tree.map(jnp.array, params)

    def merge(
        arriving: Params, params: Params, state: Params, snapshot: Params
    ) -> tuple[Params, Params]:
        workers = 1 if exchange.axis_name is None else axis_size(exchange.axis_name)
        share = beta / workers if alpha is None else alpha
        pull = lambda x, s, z: x - share * (s - z)
        follow = lambda z, m: z + beta * (m - z)
        return (
            jax.tree.map(pull, params, snapshot, state),
            jax.tree.map(follow, state, arriving),
        )

    return MergeRule(exchange, merge, init=init)
