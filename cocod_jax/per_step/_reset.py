"""An inner optimizer that forgets at every merge."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from cocod_jax._checks import check_kind, check_period
from cocod_jax._trees import cast_like, choose
from cocod_jax._typing import Params
from cocod_jax.per_step._state import given
from cocod_jax.rounds._checks import check_transforms
from cocod_jax.rounds._inner import with_what_it_takes
from cocod_jax.rules import independent


class ResetEveryState(NamedTuple):
    """State of :func:`reset_every`; per worker.

    Attributes:
      count: int32 scalar, local steps since ``init`` (saturating).
      inner_state: state of the optimizer inside.
    """

    count: jax.Array
    inner_state: optax.OptState


def reset_every(
    period: int, inner: optax.GradientTransformation, delay: int | None = None
) -> optax.GradientTransformationExtraArgs:
    """An optimizer of local steps whose state begins anew after every merge.

    A momentum from before a merge points where the worker went by itself. SlowMo drops
    it in every round when the inner optimizer is SGD with Nesterov's momentum.

    All of the state is reset, the counts of learning-rate schedules as well. Put those
    behind it: ``optax.chain(reset_every(8, optax.trace(0.9)),
    optax.scale_by_learning_rate(schedule))``.

    Args:
      period: k, the round's (shared).
      inner: the optimizer whose state is reset.
      delay: d, the round's: the first step after the merge is the first of the new
        state. None is the whole period.

    Returns:
      An optax optimizer with state :class:`ResetEveryState`.

    Raises:
      TypeError: when ``inner`` is not an optax transform.
      ValueError: when ``period`` or ``delay`` is not an integer in its range; in use,
        when ``params`` is None.

    Examples:
      >>> momentum = cj.per_step.reset_every(2, optax.trace(0.5))
      >>> gradient = params = jnp.ones([])
      >>> state = momentum.init(params)
      >>> for _ in range(4):
      ...     updates, state = momentum.update(gradient, state, params)
      ...     print(updates)
      1.0
      1.5
      1.0
      1.5

    References:
      Wang et al., `SlowMo <https://arxiv.org/abs/1910.00643>`_, ICLR 2020, Section 2:
      the strategies for the base optimizer's buffers.
    """
    check_transforms(inner, independent())
    period, delay = check_period(period, delay)
    inner = with_what_it_takes(inner)

    def init(params: Params) -> ResetEveryState:
        return ResetEveryState(jnp.zeros([], jnp.int32), inner.init(params))

    def update(
        updates: optax.Updates,
        state: Any,
        params: Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ResetEveryState]:
        check_kind(ResetEveryState, state=state)
        fresh = cast_like(inner.init(given(params, updates)), state.inner_state)
        is_first = state.count % period == delay % period
        updates, inner_state = inner.update(
            updates,
            choose(is_first, fresh, state.inner_state),
            params,
            **extra_args,
        )
        count = jnp.asarray(optax.safe_increment(state.count))
        return updates, ResetEveryState(count, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)
