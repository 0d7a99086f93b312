"""Gradient averaging at every step, as transforms for ``optax.chain``."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from cocod_jax._checks import check_kind, check_whole
from cocod_jax._trees import barrier, cast_like, check_same_tree, varying_axes
from cocod_jax._typing import AxisName, ExchangeState, Params
from cocod_jax.exchanges._base import Exchange, axis_size, receive_by, send_by
from cocod_jax.exchanges.mean import as_exchange


def mean_gradients(
    axis_or_exchange: AxisName | Exchange, weights: Sequence[float] | None = None
) -> optax.GradientTransformationExtraArgs:
    r"""Synchronous SGD: every gradient is replaced by the workers' mean.

    .. math:: g_i \leftarrow \sum_j p_j g_j

    Nothing overlaps: the step waits for the exchange.

    Args:
      axis_or_exchange: the name of the workers' axis, or an
        :class:`cocod_jax.Exchange`.
      weights: one positive number for each worker, when a name is given.

    Returns:
      A transform whose state is the exchange's: none for a mean. The updates that it
      returns are what arrives, equal on all workers for a mean.

    Raises:
      TypeError, ValueError: as :func:`cocod_jax.mean`; ValueError when both an
        exchange and ``weights`` are given, and in a ``shard_map`` that has summed the
        gradients already, as JAX does where ``check_vma`` is on and the parameters
        are the same on all workers.

    .. warning::
       What lets a worker skip a step because of its own gradients, such as
       ``optax.apply_if_finite``, goes behind this in the chain, never around it: the
       others would wait for the worker that takes no part.

    Examples:
      >>> optimizer = optax.chain(cj.mean_gradients("workers"), optax.sgd(0.1))
      >>> gradients, params = jnp.array([1.0, 3.0]), jnp.zeros(2)  # two workers
      >>> state = optimizer.init(params)
      >>> step = jax.vmap(optimizer.update, (0, None, 0), axis_name="workers")
      >>> print(step(gradients, state, params)[0])
      [-0.2 -0.2]
    """
    exchange = as_exchange(axis_or_exchange, weights)

    def init(params: Params) -> Any:
        return exchange.init(optax.tree.zeros_like(params))

    def update(
        updates: optax.Updates,
        state: Any,
        params: Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, Any]:
        del params, extra_args
        sent, state = send_by(exchange.send, state, updates, None)
        check_own_gradients(updates, exchange.axis_name)
        return receive_by(exchange, sent, updates), state

    return optax.GradientTransformationExtraArgs(init, update)


class StaleMeanGradientsState(NamedTuple):
    """State of :func:`stale_mean_gradients`.

    Attributes:
      count: int32 scalar, local steps since ``init`` (saturating).
      pending: per worker, this worker's gradient of the last step, not averaged
        yet; zero where there is nothing to apply.
      exchange_state: per worker, the exchange's; none for a mean.
    """

    count: jax.Array
    pending: optax.Updates
    exchange_state: ExchangeState


def stale_mean_gradients(
    axis_or_exchange: AxisName | Exchange,
    weights: Sequence[float] | None = None,
    *,
    warmup_steps: int = 0,
) -> optax.GradientTransformationExtraArgs:
    r"""Pipe-SGD: the workers' mean gradient, one step late.

    .. math:: \text{step } t \text{ applies } \sum_j p_j \, g_j(x_{t-1})

    The exchange needs last step's gradients only, and a barrier keeps what needs the
    mean behind the backward pass of this step: compiled with
    :func:`cocod_jax.compiler_options`, all of that pass is beside the exchange. The
    first step has nothing to apply and returns zero.
    ``warmup_steps`` steps of synchronous SGD may come before; their gradients have
    been applied, so that the first step after them returns zero too and no gradient
    counts twice.

    Args:
      axis_or_exchange: the name of the workers' axis, or an
        :class:`cocod_jax.Exchange`.
      weights: one positive number for each worker, when a name is given.
      warmup_steps: the number of synchronous steps at the start, 0 or more.

    Returns:
      A transform with state :class:`StaleMeanGradientsState`. The updates it
      returns are equal on all workers.

    Raises:
      TypeError, ValueError: as :func:`cocod_jax.mean_gradients`; ValueError when
        ``warmup_steps`` is not an integer of 0 or more.

    .. warning::
       What lets a worker skip a step because of its own gradients, such as
       ``optax.apply_if_finite``, goes behind this in the chain, never around it.

    Examples:
      >>> optimizer = cj.stale_mean_gradients("workers")
      >>> params = jnp.zeros(2)  # two workers
      >>> state = jax.vmap(optimizer.init)(params)
      >>> step = jax.vmap(optimizer.update, axis_name="workers")
      >>> for gradients in [jnp.array([1.0, 3.0]), jnp.array([5.0, 5.0])]:
      ...     updates, state = step(gradients, state)
      ...     print(updates)
      [0. 0.]
      [2. 2.]

    References:
      Li et al., `Pipe-SGD: A Decentralized Pipelined SGD Framework for
      Distributed Deep Net Training <https://arxiv.org/abs/1811.03619>`_, NeurIPS
      2018 (pipeline width 2).
    """
    exchange = as_exchange(axis_or_exchange, weights)
    check_whole(warmup_steps=warmup_steps)

    def init(params: Params) -> StaleMeanGradientsState:
        return StaleMeanGradientsState(
            count=jnp.zeros([], jnp.int32),
            pending=optax.tree.zeros_like(params),
            exchange_state=exchange.init(optax.tree.zeros_like(params)),
        )

    def update(
        updates: optax.Updates,
        state: Any,
        params: Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, StaleMeanGradientsState]:
        del params, extra_args
        check_kind(StaleMeanGradientsState, state=state)
        check_same_tree(updates, state.pending, "gradients", "those of the last step")
        check_own_gradients(updates, exchange.axis_name)
        send, of_exchange = exchange.send, state.exchange_state
        sent, exchange_state = send_by(send, of_exchange, state.pending, None)
        # As in a streamed round: what needs the mean runs behind the backward pass.
        updates, sent = barrier((updates, sent))
        arriving = receive_by(exchange, sent, state.pending)
        pending = optax.tree.cast_like(updates, state.pending)
        if warmup_steps:
            # The exchange above stays outside of the conditional: only there can
            # it overlap. During the warm-up it carries zeros.
            late = (arriving, pending, exchange_state)

            def synchronous() -> tuple[optax.Updates, optax.Updates, ExchangeState]:
                sent, after = send_by(send, of_exchange, pending, None)
                now = receive_by(exchange, sent, pending)
                return cast_like((now, optax.tree.zeros_like(pending), after), late)

            arriving, pending, exchange_state = jax.lax.cond(
                state.count < warmup_steps, synchronous, lambda: late
            )
        count = jnp.asarray(optax.safe_increment(state.count))
        return arriving, StaleMeanGradientsState(count, pending, exchange_state)

    return optax.GradientTransformationExtraArgs(init, update)


def check_own_gradients(gradients: optax.Updates, axis_name: AxisName | None) -> None:
    """Raises ValueError when JAX has summed the gradients over the workers already.

    It does so in a ``shard_map`` with ``check_vma``, and the types of arrays tell.
    Without an axis there are no workers to have been summed over, and without leaves
    nothing that was.
    """
    leaves = jax.tree.leaves(gradients)
    if axis_name is None or not leaves:
        return
    axis_size(axis_name)  # a sentence where it is not bound
    workers = axis_name if isinstance(axis_name, tuple) else (axis_name,)
    checked = {n for n in workers if n in varying_axes(jax.lax.axis_index(n))}
    if checked and not any(checked & varying_axes(leaf) for leaf in leaves):
        raise ValueError(
            f"the gradients are the same on all workers of {sorted(checked)}: this "
            "shard_map has summed them, as JAX does for parameters that are the same "
            "on all. Give each worker parameters of its own, sharded over the axis; "
            "or, where all share one model at every step, set check_vma=False."
        )
