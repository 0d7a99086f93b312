"""Delay compensation: a worker's progress as it would have been from the anchor."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from cocod_jax._checks import check_non_negative
from cocod_jax._trees import norm, wide
from cocod_jax._typing import AxisName, Params
from cocod_jax.exchanges._base import Exchange
from cocod_jax.exchanges.mean import as_exchange
from cocod_jax.rules._base import MergeRule
from cocod_jax.rules.diloco import (
    DiLoCoState,
    anchored,
    outer_optimizer,
    outer_step,
)


def delay_compensated(
    axis_or_exchange: AxisName | Exchange,
    outer: optax.GradientTransformation | None = None,
    *,
    strength: float = 0.2,
    weights: Sequence[float] | None = None,
) -> MergeRule:
    r"""The merge rule of CoCoDC, DiLoCo with delay compensation.

    A worker keeps its progress since its snapshot, as in
    :func:`cocod_jax.rules.diloco`. But it made that progress from s_i, and goes on from
    the anchor z. A Taylor expansion, with the squared progress for the curvature, says
    what it would have been from there:

    .. math::

       z \leftarrow \mathrm{outer}\Bigl(z,\; z - \sum_i p_i s_i\Bigr), \qquad
       g = s_i - x_i, \qquad D = z - s_i, \qquad
       x_i \leftarrow z - (g + \lambda\, g \odot g \odot D), \qquad
       \lambda = \lambda_0 \frac{\lVert g \rVert}{\lVert g \odot g \odot D \rVert}

    The correction is a share :math:`\lambda_0` of the progress, whatever the scale of
    the parameters. Without it, with outer SGD of rate 1, the rule is
    :func:`cocod_jax.cocod` at every delay. With delay 0 there is no progress to
    correct, and it is :func:`cocod_jax.rules.diloco`.

    Args:
      axis_or_exchange: the name of the workers' axis, or an
        :class:`cocod_jax.Exchange`.
      outer: any optax optimizer; it gets no ``value``. None is SGD with the rate 0.7
        and Nesterov's momentum 0.9.
      strength: lambda_0, 0 or more.
      weights: one positive number for each worker, when a name is given.

    Returns:
      A :class:`cocod_jax.MergeRule` with state :class:`cocod_jax.rules.DiLoCoState`:
      two copies of the parameters with the default outer optimizer.

    Raises:
      TypeError: as :func:`cocod_jax.mean`, and when ``outer`` is not an optax
        transform.
      ValueError: as :func:`cocod_jax.mean`; when both an exchange and ``weights`` are
        given, or ``strength`` is not a finite number, 0 or more.

    Examples:
      Two workers start from 1 and 3, whose mean is 2, and go up by 1. From 2 the first
      one would have gone less far, and the other one further:

      >>> rule = cj.rules.delay_compensated("workers", optax.sgd(1.0), strength=0.5)
      >>> snapshot = jnp.array([1.0, 3.0])
      >>> state = jax.vmap(rule.init)(snapshot)
      >>> merge = jax.vmap(rule.merge_now, axis_name="workers")
      >>> print(merge(snapshot + 1, state, snapshot)[0])
      [2.5 3.5]

    References:
      Zhu et al., `Cross-region Model Training with Communication-Computation
      Overlapping and Delay Compensation <https://arxiv.org/abs/2504.17672>`_, 2025.

      Zheng et al., `Asynchronous Stochastic Gradient Descent with Delay Compensation
      <https://arxiv.org/abs/1609.08326>`_, ICML 2017.

    .. note::
       The paper sends fragments of layers, and chooses the next one by how much they
       changed; that schedule is not here. The formula of :math:`\lambda` is that of
       public code; the paper's own could not be checked. Streamed, the norms are those
       of the piece; leaves that the devices of a worker have in common then count for
       each of them.
    """
    outer = outer_optimizer(outer)
    check_non_negative(strength=strength)

    def init(params: Params) -> DiLoCoState:
        return anchored(outer, params)

    def merge(
        arriving: Params, params: Params, state: Any, snapshot: Params
    ) -> tuple[Params, DiLoCoState]:
        state = outer_step(outer, state, optax.tree.sub(state.anchor, arriving))
        # In float32 at least: the cube of a small number is zero in float16.
        anchor, reached, start = map(wide, (state.anchor, params, snapshot))
        gradient = optax.tree.sub(start, reached)
        bend = lambda g, z, s: g * g * (z - s)
        taylor = jax.tree.map(bend, gradient, anchor, start)
        size = norm(taylor)
        scale = jnp.where(size == 0, 0, strength * norm(gradient) / size)
        move = lambda z, g, t: z - (g + jnp.asarray(scale, t.dtype) * t)
        return jax.tree.map(move, anchor, gradient, taylor), state

    return MergeRule(as_exchange(axis_or_exchange, weights), merge, init=init)
