"""ACCO: gradients of two half-batches, each exchanged beside the other's backward."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from cocod_jax._checks import check_kind
from cocod_jax._trees import barrier, cast_like, choose, own_copy, wide
from cocod_jax._typing import AxisName, ExchangeState, Params
from cocod_jax.exchanges._base import Exchange, receive_by, send_by
from cocod_jax.exchanges.mean import as_exchange
from cocod_jax.per_step._gradients import check_own_gradients
from cocod_jax.per_step._state import given
from cocod_jax.rounds._checks import check_transforms
from cocod_jax.rounds._inner import with_what_it_takes
from cocod_jax.rules import independent


class ACCOState(NamedTuple):
    """State of :func:`acco`; every field is per worker, equal on all but ``pending``.

    Attributes:
      count: int32 scalar, half-batches since ``init`` (saturating).
      pending: this worker's gradient of the last half-batch, not averaged yet.
      early: the mean gradient of the half-batch that the estimate was made of.
      anchor: the parameters from which estimate and commit are steps.
      inner_state: state of the optimizer after the last commit.
      exchange_state: the exchange's; none for a mean.
    """

    count: jax.Array
    pending: optax.Updates
    early: optax.Updates
    anchor: Params
    inner_state: optax.OptState
    exchange_state: ExchangeState


def acco(
    inner: optax.GradientTransformation,
    axis_or_exchange: AxisName | Exchange,
    weights: Sequence[float] | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Accumulate while communicating: a hidden exchange without a stale gradient.

    A batch is given in two halves, with an update for each. While the gradient of one
    half is computed, that of the other one is exchanged. The first is enough for an
    estimate of the next parameters, at which the next half is computed; with the second
    the step is committed, from where the estimate had begun:

    .. math::

       \tilde x_{t+1} = \mathrm{inner}(x_t, \tilde g_t) \;\Vert\; g_t \text{ at } x_t,
       \qquad
       x_{t+1} = \mathrm{inner}\bigl(x_t, \tfrac12 (\tilde g_t + g_t)\bigr) \;\Vert\;
       \tilde g_{t+1} \text{ at } \tilde x_{t+1}

    All workers have the same parameters. The first update is zero, since nothing has
    been exchanged yet. After an odd number of updates, from three on, the parameters
    are those of a commit: evaluate them there. After an even one they are an estimate.

    Every update exchanges once, and a barrier keeps what needs the mean behind the
    backward pass, as in :func:`cocod_jax.stale_mean_gradients`: compile with
    :func:`cocod_jax.compiler_options`.

    Args:
      inner: the optimizer of the whole batch. Its schedules count commits.
      axis_or_exchange: the name of the workers' axis, or an
        :class:`cocod_jax.Exchange`.
      weights: one positive number for each worker, when a name is given.

    Returns:
      An optax optimizer with state :class:`ACCOState`: three trees like the parameters
      beside the inner optimizer's.

    Raises:
      TypeError, ValueError: as :func:`cocod_jax.mean_gradients`; TypeError when
        ``inner`` is not an optax transform; ValueError, in use, when ``params`` is
        None.

    .. warning::
       What lets a worker skip a step because of its own gradients, such as
       ``optax.apply_if_finite``, goes into ``inner``, never around this.

    Examples:
      Gradients of 1, 3, 5 and 7: the second update is an estimate by the first of them,
      the third a commit by the mean of the first two, and again from there:

      >>> optimizer = cj.per_step.acco(optax.sgd(1.0), "workers")
      >>> params = jnp.zeros(2)  # two workers
      >>> state = jax.vmap(optimizer.init)(params)
      >>> update = jax.vmap(optimizer.update, axis_name="workers")
      >>> for gradient in [1.0, 3.0, 5.0, 7.0, 9.0]:
      ...     updates, state = update(jnp.full(2, gradient), state, params)
      ...     params = optax.apply_updates(params, updates)
      ...     print(params)
      [0. 0.]
      [-1. -1.]
      [-2. -2.]
      [-7. -7.]
      [-8. -8.]

    References:
      Nabli et al., `ACCO: Accumulate while you Communicate
      <https://arxiv.org/abs/2406.02613>`_, 2024.

    .. note::
       The paper's workers take as many micro-batches as an exchange lasts, and are
       weighted by their number. Here they take one half-batch each, and the weights are
       given. The paper divides the optimizer's state between the workers.
    """
    check_transforms(inner, independent())
    inner = with_what_it_takes(inner)
    exchange = as_exchange(axis_or_exchange, weights)

    def init(params: Params) -> ACCOState:
        return ACCOState(
            count=jnp.zeros([], jnp.int32),
            pending=optax.tree.zeros_like(params),
            early=optax.tree.zeros_like(params),
            anchor=own_copy(params),
            inner_state=own_copy(inner.init(params)),
            exchange_state=exchange.init(optax.tree.zeros_like(params)),
        )

    def update(
        updates: optax.Updates,
        state: Any,
        params: Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ACCOState]:
        params = given(params, updates)
        check_kind(ACCOState, state=state)
        check_own_gradients(updates, exchange.axis_name)
        sent, exchange_state = send_by(
            exchange.send, state.exchange_state, state.pending, None
        )
        updates, sent = barrier((updates, sent))
        arriving = cast_like(receive_by(exchange, sent, state.pending), state.pending)
        commits = (state.count > 0) & (state.count % 2 == 0)
        both = jax.tree.map(lambda e, m: (e + m) / 2, state.early, arriving)
        anchor = choose(commits, state.anchor, params)
        step, inner_state = inner.update(
            choose(commits, both, arriving), state.inner_state, anchor, **extra_args
        )
        reached = wide(optax.apply_updates(anchor, step))
        moved = choose(
            state.count > 0,
            optax.tree.sub(reached, wide(params)),
            optax.tree.zeros_like(reached),
        )
        return moved, ACCOState(
            count=jnp.asarray(optax.safe_increment(state.count)),
            pending=cast_like(updates, state.pending),
            early=arriving,
            anchor=anchor,
            inner_state=choose(commits, inner_state, state.inner_state),
            exchange_state=exchange_state,
        )

    return optax.GradientTransformationExtraArgs(init, update)
