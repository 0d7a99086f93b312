"""CO2: an outer momentum of stale means, held back by a penalty and a clip."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from cocod_jax._checks import check_positive, check_shares
from cocod_jax._typing import AxisName, Params
from cocod_jax.exchanges._base import Exchange
from cocod_jax.exchanges.mean import as_exchange
from cocod_jax.rules._base import MergeRule, check_brings_differences


class CO2State(NamedTuple):
    """State of :func:`co2`.

    Attributes:
      anchor: z, where all workers go on from (shared).
      momentum: u (shared).
      fresh: a_i, the way from the snapshot at the last merge, which no other worker
        has heard of yet (per worker).
    """

    anchor: Params
    momentum: Params
    fresh: Params


def co2(
    axis_or_exchange: AxisName | Exchange,
    *,
    beta: float = 0.5,
    alpha: float = 1.0,
    penalty: float = 1.0,
    clip: float | None = None,
    weights: Sequence[float] | None = None,
) -> MergeRule:
    r"""The merge rule of CO2.

    The mean way of the workers arrives a round late, and goes into a momentum that
    moves an anchor z. All workers go on from the anchor, which they hold alike:

    .. math::

       \Delta_i = a_i + (s_i - z), \qquad
       u \leftarrow \mathrm{clip}_{\phi}\Bigl(\beta u
       + \frac{1}{\Lambda} \sum_i p_i \Delta_i\Bigr), \qquad
       z \leftarrow z + \alpha u, \qquad a_i \leftarrow x_i - s_i, \qquad
       x_i \leftarrow z

    What travels, :math:`\Delta_i`, is how far the worker went from snapshot to
    snapshot: nothing that it does is lost, but all of it is a round late. The workers
    are equal after every merge, at every delay. With delay k it is the paper's
    algorithm, and with delay 0, without penalty and clip,
    :func:`cocod_jax.rules.slowmo`.

    Args:
      axis_or_exchange: the name of the workers' axis, or an
        :class:`cocod_jax.Exchange`.
      beta: in 0..1, the outer momentum; the default of the authors' code.
      alpha: the outer learning rate, above 0.
      penalty: Lambda, above 0, by which what is stale is divided; above 1 it is held
        back.
      clip: phi, above 0, the largest value in the momentum, of either sign; None does
        not clip.
      weights: one positive number for each worker, when a name is given.

    Returns:
      A :class:`cocod_jax.MergeRule` with state :class:`CO2State`: three copies of the
      parameters.

    Raises:
      TypeError: as :func:`cocod_jax.mean`.
      ValueError: as :func:`cocod_jax.mean`; when both an exchange and ``weights`` are
        given, the exchange does not bring all workers the same, or heals them,
        ``beta`` is not in 0..1, or another number not positive and finite.

    Examples:
      Two workers start from 0 and go to 2 and to 4. In this round they hear of nothing
      new, and in the next one of a mean way of 3, clipped to 2:

      >>> rule = cj.rules.co2("workers", clip=2.0)
      >>> snapshot = jnp.zeros(2)
      >>> state = jax.vmap(rule.init)(snapshot)
      >>> merge = jax.vmap(rule.merge_now, axis_name="workers")
      >>> params, state = merge(jnp.array([2.0, 4.0]), state, snapshot)
      >>> print(params, merge(params, state, params)[0])
      [0. 0.] [2. 2.]

    References:
      Sun et al., `CO2: Efficient Distributed Training with Full
      Communication-Computation Overlap <https://arxiv.org/abs/2401.16265>`_, ICLR 2024.

    .. note::
       The paper measures :math:`\Lambda_t` anew in every round, from the gap between
       the anchors of two rounds. Its formula could not be checked against a second
       source: the authors' code divides by a constant, and so does this. That code
       computes the clip and drops the result; here it clips.
    """
    check_shares(beta=beta)
    check_positive(alpha=alpha, penalty=penalty)
    if clip is not None:
        check_positive(clip=clip)
    exchange = as_exchange(axis_or_exchange, weights)
    check_brings_differences(exchange, "co2")

    def init(params: Params) -> CO2State:
        zeros = lambda: jax.tree.map(jnp.zeros_like, params)
        return CO2State(jax.tree.map(jnp.array, params), zeros(), zeros())

    def outgoing(state: Any, snapshot: Params) -> Params:
        since = lambda a, z, s: a + (s - z)
        return jax.tree.map(since, state.fresh, state.anchor, snapshot)

    def merge(
        arriving: Params, params: Params, state: Any, snapshot: Params
    ) -> tuple[Params, CO2State]:
        add = lambda u, m: beta * u + m / penalty
        momentum = jax.tree.map(add, state.momentum, arriving)
        if clip is not None:
            momentum = jax.tree.map(lambda u: jnp.clip(u, -clip, clip), momentum)
        move = lambda z, u: z + alpha * u
        anchor = jax.tree.map(move, state.anchor, momentum)
        return anchor, CO2State(anchor, momentum, optax.tree.sub(params, snapshot))

    return MergeRule(exchange, merge, init=init, outgoing=outgoing)
