"""The mean of the workers whose numbers are finite, who heal the others."""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax

from cocod_jax._trees import all_finite
from cocod_jax._typing import AxisName, ExchangeState, Sent, Tree, Weight
from cocod_jax.exchanges._base import (
    Exchange,
    check_axis_name,
    normalised,
    own_share,
    stateless,
)
from cocod_jax.exchanges._wire import ravel, unravel


def finite(axis_name: AxisName, weights: Sequence[float] | None = None) -> Exchange:
    r"""The weighted mean of the workers whose numbers are all finite.

    One worker with a NaN would make it everyone's, since a mean has no other answer.
    Here that worker is left out, and the shares of the rest are renormalised:

    .. math::

       m = \sum_{i \in A} p_i x_i \Big/ \sum_{i \in A} p_i, \qquad
       A = \{ i : x_i \text{ is finite} \}

    The second sum travels at the end of the first, in the same all-reduce, so that all
    workers divide by one number. Where no worker is finite, m is NaN.

    A round heals the workers that were left out:

    * A worker whose gradient is not finite, or whose model state no longer is, gives
      up: its parameters become NaN, the floating-point state of its optimizer is that
      of ``init`` again, and its model state stays as it was. It takes no step until a
      merge has healed all of it.
    * A merge that would give a worker numbers that are not finite gives it m, and its
      rule's state stays as it was.

    Where all workers give up in one round, its merge brings them back to its start;
    streamed, a merge comes while all have given up, and nobody is left.

    A worker that took part in an exchange reports a finite ``distance``; one that was
    left out does not. :class:`cocod_jax.DriftAlarm` names it.

    Args:
      axis_name: as in :func:`cocod_jax.mean`.
      weights: one positive, finite number for each worker (shared); they are
        normalised. None gives every worker the same weight.

    Returns:
      A :class:`cocod_jax.Exchange` without state.

    Raises:
      TypeError, ValueError: as :func:`cocod_jax.mean`.

    Examples:
      >>> exchange = cj.exchanges.finite("workers")
      >>> average = jax.vmap(exchange.average, axis_name="workers")
      >>> print(average(jnp.array([1.0, jnp.nan, 3.0])))
      [2. 2. 2.]

      In a round, the worker goes on from the others' mean:

      >>> loss = lambda w, batch: 0.5 * (w - batch) ** 2
      >>> round_ = cj.make_round(loss, optax.sgd(0.5), cj.cocod(exchange), period=1)
      >>> state = cj.replicate(round_.init(jnp.array(8.0)), 3)
      >>> state = state._replace(params=jnp.array([8.0, jnp.nan, 4.0]))
      >>> run = cj.distribute(round_, via="vmap")
      >>> state, metrics = run(state, np.zeros([3, 1], np.float32))
      >>> print(state.params, metrics.distance)
      [2. 6. 4.] [ 2. nan  2.]

    .. note::
       :func:`cocod_jax.every` leaves workers out and cannot heal them: it returns what
       is added to the parameters, and no number makes a finite one of NaN. Give it
       ``optax.apply_if_finite(inner, ...)``, which skips the steps that would break
       them. Of a worker with several devices each decides for what it has.
    """
    check_axis_name(axis_name)
    shares = None if weights is None else normalised(weights)

    def send(
        state: ExchangeState, tree: Tree, weight: Weight | None = None
    ) -> tuple[Sent, ExchangeState]:
        share, buffers = own_share(axis_name, shares, weight), ravel(tree)
        takes_part = all_finite(buffers)
        sums = {}
        for dtype, buffer in buffers.items():
            own = jnp.where(takes_part, jnp.asarray(share, dtype), 0)
            # No product: 0 * NaN is NaN.
            counted = jnp.where(takes_part, buffer * own, 0)
            sums[dtype] = lax.psum(jnp.append(counted, own), axis_name)
        return sums, state

    def receive(sent: Sent, like: Tree) -> Tree:
        means = {dtype: total[:-1] / total[-1] for dtype, total in sent.items()}
        return unravel(means, like)

    return Exchange(stateless, send, receive, axis_name, shares, heals=True)
