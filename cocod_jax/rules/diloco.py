"""DiLoCo: an outer optimizer moves an anchor by the workers' mean."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from cocod_jax._checks import check_pair, check_shares, is_transform
from cocod_jax._text import shown
from cocod_jax._trees import check_like
from cocod_jax._typing import AxisName, Params
from cocod_jax.exchanges._base import Exchange
from cocod_jax.exchanges.mean import as_exchange
from cocod_jax.rules._base import MergeRule


class DiLoCoState(NamedTuple):
    """State of :func:`diloco`: equal on all workers.

    Attributes:
      anchor: z, the outer parameters.
      outer_state: state of the outer optimizer.
    """

    anchor: Params
    outer_state: optax.OptState


def diloco(
    axis_or_exchange: AxisName | Exchange,
    outer: optax.GradientTransformation | None = None,
    *,
    alpha: float | None = None,
    weights: Sequence[float] | None = None,
) -> MergeRule:
    r"""The merge rule of DiLoCo, with its exchange hidden behind the local steps.

    The workers' mean gives the outer optimizer its gradient, the way from the mean to
    an anchor z, which all workers hold alike. A worker then goes on from the anchor,
    and keeps all its progress since its snapshot:

    .. math::

       z \leftarrow \mathrm{outer}\Bigl(z,\; z - \sum_i p_i s_i\Bigr), \qquad
       x_i \leftarrow z + (x_i - s_i)

    With delay 0 it is DiLoCo as published. With ``optax.sgd(1.0)`` for outer optimizer
    the anchor is the mean, and the rule is :func:`cocod_jax.cocod` at every delay.
    Streamed it takes pieces of coordinates where Streaming DiLoCo takes layers.

    Args:
      axis_or_exchange: the name of the workers' axis, or an
        :class:`cocod_jax.Exchange`.
      outer: any optax optimizer; it gets no ``value``. None is SGD with the rate 0.7
        and Nesterov's momentum 0.9.
      alpha: in 0..1, the share of its own parameters that a worker keeps, as Streaming
        DiLoCo and torchft mix: :math:`x_i \leftarrow \alpha x_i + (1 - \alpha) z`. They
        lose the rest of the progress since the snapshot. None keeps all of it.
      weights: one positive number for each worker, when a name is given.

    Returns:
      A :class:`cocod_jax.MergeRule` with state :class:`DiLoCoState`: two copies of the
      parameters with the default outer optimizer.

    Raises:
      TypeError: as :func:`cocod_jax.mean`, and when ``outer`` is not an optax
        transform.
      ValueError: as :func:`cocod_jax.mean`; when both an exchange and ``weights`` are
        given, or ``alpha`` is not in 0..1.

    Examples:
      Two workers at 1 and 3 pull an anchor from 0 to 2, and a half beyond:

      >>> rule = cj.rules.diloco("workers", optax.sgd(1.5))
      >>> state = jax.vmap(rule.init)(jnp.zeros(2))
      >>> merge = jax.vmap(rule.merge_now, axis_name="workers")
      >>> params = jnp.array([1.0, 3.0])
      >>> print(merge(params, state, params)[0])
      [3. 3.]

    References:
      Douillard et al., `DiLoCo: Distributed Low-Communication Training of Language
      Models <https://arxiv.org/abs/2311.08105>`_, 2023, Algorithm 1.

      Douillard et al., `Streaming DiLoCo with overlapping communication
      <https://arxiv.org/abs/2501.18512>`_, 2025 (``alpha``).

    .. note::
       Both papers overwrite what a worker did while the mean was on its way, whole or
       in part. That it is kept is CoCoD-SGD's idea, and the default here.
    """
    outer = outer_optimizer(outer)
    if alpha is not None:
        check_shares(alpha=alpha)

    def init(params: Params) -> DiLoCoState:
        return anchored(outer, params)

    def merge(
        arriving: Params, params: Params, state: Any, snapshot: Params
    ) -> tuple[Params, DiLoCoState]:
        state = outer_step(outer, state, optax.tree.sub(state.anchor, arriving))
        if alpha is None:
            move = lambda z, x, s: z + (x - s)
        else:
            move = lambda z, x, s: alpha * x + (1 - alpha) * z
        return jax.tree.map(move, state.anchor, params, snapshot), state

    return MergeRule(as_exchange(axis_or_exchange, weights), merge, init=init)


def outer_optimizer(
    outer: optax.GradientTransformation | None,
) -> optax.GradientTransformation:
    """The outer optimizer; None is that of the DiLoCo paper.

    Raises:
      TypeError: when it is not an optax transform.
    """
    if outer is None:
        return optax.sgd(0.7, momentum=0.9, nesterov=True)
    if isinstance(outer, MergeRule) or not is_transform(outer):
        raise TypeError(
            f"outer={shown(outer)} must be an optax transform, such as optax.sgd(0.7)."
        )
    return outer


def anchored(outer: optax.GradientTransformation, params: Params) -> DiLoCoState:
    """The state of an outer optimizer whose anchor begins here."""
    anchor = jax.tree.map(jnp.array, params)
    return DiLoCoState(anchor, outer.init(anchor))


def outer_step(
    outer: optax.GradientTransformation, state: DiLoCoState, gradient: Params
) -> DiLoCoState:
    """The state with an anchor that the outer optimizer moved along a gradient."""
    updates, outer_state = check_pair(
        outer.update(gradient, state.outer_state, state.anchor),
        "outer.update",
        "updates, state",
    )
    check_like(updates, gradient, "what outer.update returned", "the outer gradient")
    return DiLoCoState(optax.apply_updates(state.anchor, updates), outer_state)
