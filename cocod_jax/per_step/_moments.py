"""Optimizers whose moments are averaged too, each with a period of its own."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from cocod_jax._checks import check_counts, check_kind, is_transform
from cocod_jax._text import shown
from cocod_jax._typing import AxisName, Params, Tree
from cocod_jax.exchanges._base import Exchange
from cocod_jax.exchanges.mean import as_exchange
from cocod_jax.per_step._every import every
from cocod_jax.per_step._state import given
from cocod_jax.rounds._inner import with_what_it_takes
from cocod_jax.rules._base import MergeRule


class AveragedMomentsState(NamedTuple):
    """State of :func:`averaged_moments`; per worker.

    Attributes:
      inner_state: the optimizer's own, moments included.
      exchanges: by moment, the :class:`EveryState` of its exchange.
    """

    inner_state: optax.OptState
    exchanges: dict[str, Any]


def averaged_moments(
    inner: optax.GradientTransformation,
    axis_or_exchange: AxisName | Exchange,
    **periods: int,
) -> optax.GradientTransformationExtraArgs:
    r"""An optimizer whose moments the workers average: Adam for DES-LOC.

    Workers that average their parameters alone keep moments of their own. Averaging
    those as often would send two or three times the bytes. They change slowly, and may
    be averaged seldom, each with its own period:

    >>> adam = cj.per_step.averaged_moments(optax.adam(1e-3), "workers", mu=24, nu=48)
    >>> optimizer = cj.every(8, adam, cj.cocod("workers"), streamed=True)

    Each moment is streamed: a piece of it travels in every step, all of it once in its
    period, and merges one step later, so that its exchange can run beside the step:

    .. math::

       v_i \leftarrow \sum_j p_j s_j + (v_i - s_i)

    Where all three terms are positive, as those of second moments are, so is the
    result: it is never below 0 there.

    Args:
      inner: the optimizer; its state has each moment once, as a field of that name,
        such as ``mu`` and ``nu`` of ``optax.adam`` or ``trace`` of ``optax.sgd``.
      axis_or_exchange: the name of the workers' axis, or an
        :class:`cocod_jax.Exchange`.
      **periods: for each moment, the local steps in which all of it travels once,
        at least 1 (shared).

    Returns:
      An optax optimizer with state :class:`AveragedMomentsState`, for
      :func:`cocod_jax.every` or :func:`cocod_jax.make_round`, or alone in a loop of
      workers.

    Raises:
      TypeError: when ``inner`` is not an optax transform, or as :func:`cocod_jax.mean`.
      ValueError: when no moment is named, or a period is not an integer of at least 1;
        in ``init``, when the state has no such field, or several; in use, when
        ``params`` is None.

    Examples:
      Two workers whose first moments are 1 and 3 after some steps without a gradient:

      >>> momentum = cj.per_step.averaged_moments(
      ...     optax.sgd(0.1, momentum=1.0), "workers", trace=1
      ... )
      >>> params = jnp.zeros([2, 1])
      >>> state = jax.vmap(momentum.init)(params)
      >>> update = jax.vmap(momentum.update, axis_name="workers")
      >>> for gradient in ([[1.0], [3.0]], [[0.0], [0.0]]):
      ...     _, state = update(jnp.array(gradient), state, params)
      >>> print(optax.tree.get(state.inner_state, "trace").ravel())
      [2. 2.]

    References:
      Iacob et al., `DES-LOC: Desynced Low Communication Adaptive Optimizers for
      Training Foundation Models <https://arxiv.org/abs/2505.22549>`_, 2025, with
      periods of 3 and 6 times that of the parameters for the first and the second
      moment.

    .. note::
       In the paper a moment is averaged at once, and workers wait for it. That it is
       streamed, and that progress on the way is kept, is ours. Workers of several
       devices are not for this: a moment's pieces would be gathered.
    """
    if not is_transform(inner):
        raise TypeError(
            f"inner={shown(inner)} must be an optax transform, such as "
            "optax.adam(1e-3)."
        )
    check_counts(**periods)
    if not periods:
        raise ValueError("no moment was named; give its period: mu=24, nu=48.")
    rule = _bounded(as_exchange(axis_or_exchange))
    inner = with_what_it_takes(inner)
    streams = {
        name: every(period, optax.identity(), rule, streamed=True)
        for name, period in periods.items()
    }

    def init(params: Params) -> AveragedMomentsState:
        inner_state = inner.init(params)
        return AveragedMomentsState(
            inner_state,
            {
                name: stream.init(_moment(inner_state, name))
                for name, stream in streams.items()
            },
        )

    def update(
        updates: optax.Updates,
        state: Any,
        params: Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, AveragedMomentsState]:
        check_kind(AveragedMomentsState, state=state)
        updates, inner_state = inner.update(
            updates, state.inner_state, given(params, updates), **extra_args
        )
        exchanges = {}
        for name, stream in streams.items():
            before = _moment(state.inner_state, name)
            moved = optax.tree.sub(_moment(inner_state, name), before)
            moved, exchanges[name] = stream.update(moved, state.exchanges[name], before)
            after = optax.apply_updates(before, moved)
            inner_state = optax.tree.set(inner_state, **{name: after})
        return updates, AveragedMomentsState(inner_state, exchanges)

    return optax.GradientTransformationExtraArgs(init, update)


def _bounded(exchange: Exchange) -> MergeRule:
    """CoCoD-SGD's merge, which turns nothing negative that is positive everywhere."""

    def move(m: jax.Array, x: jax.Array, s: jax.Array) -> jax.Array:
        moved = m + (x - s)
        positive = (m >= 0) & (x >= 0) & (s >= 0)
        return jnp.where(positive, jnp.maximum(moved, 0), moved)

    def merge(
        arriving: Params, params: Params, state: Any, snapshot: Params
    ) -> tuple[Params, Any]:
        return jax.tree.map(move, arriving, params, snapshot), state

    return MergeRule(exchange, merge)


def _moment(state: optax.OptState, name: str) -> Tree:
    """The field of that name; ValueError unless there is one."""
    found = optax.tree.get_all_with_path(state, name)
    if len(found) != 1:
        raise ValueError(
            f"the optimizer's state has {len(found)} fields {name!r}; name a moment "
            "that it has once, such as mu and nu of optax.adam, or trace of optax.sgd."
        )
    return found[0][1]
