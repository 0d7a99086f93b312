"""What a worker carries from round to round, and what it reports."""

from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from cocod_jax._checks import check_kind
from cocod_jax._typing import ExchangeState, ModelState, Params


class RoundState(NamedTuple):
    """All that a worker carries from round to round.

    Nothing is in flight between, but for the last piece of a streamed exchange of two
    collectives, such as :func:`cocod_jax.exchanges.narrow`: it merges in the first step
    of the next round.

    Every field is per worker. Outside of the mapping transform (``pmap``,
    ``shard_map`` or ``vmap``) each array has a leading axis of length N, made by
    :func:`cocod_jax.replicate`.

    Attributes:
      params: x_i, the worker's parameters.
      opt_state: state of the inner optimizer; it never leaves the worker.
      rule_state: state of the merge rule; local steps may read it, merges write it.
      exchange_state: state of the rule's exchange, such as the error of a narrow wire.
        Where the exchange has devices of its own, it stays there between rounds.
      model_state: batch statistics and the like, None for a stateless loss; it
        never leaves the worker before :func:`cocod_jax.consensus_model_state`.
      key: typed PRNG key, a different one on each worker. Step t draws from
        ``fold_in(key, t)``; the key itself does not change.
      count: int32 scalar, local steps since ``init``, over all rounds.
      weight: floating-point scalar p_i, the worker's share in the next exchange; the
        workers' shares have sum 1 (:func:`cocod_jax.reweight` changes them). Before
        ``replicate``, the rule's weights [N], or [1] when all workers count the same.
    """

    params: Params
    opt_state: optax.OptState
    rule_state: optax.OptState
    exchange_state: ExchangeState
    model_state: ModelState
    key: jax.Array
    count: jax.Array
    weight: jax.Array


class StepMetrics(NamedTuple):
    """What one local step reports, per worker.

    Attributes:
      loss: scalar of the loss's own dtype, of the worker's batch before the step.
      grad_norm: scalar, float32 or wider, the Euclidean norm of the worker's gradient.
        NaN also when the step leaves a model state that is no longer finite.
      aux: what ``loss_fn`` returned beside the loss, None without ``has_aux``.
    """

    loss: jax.Array
    grad_norm: jax.Array
    aux: Any = None


class MergeMetrics(NamedTuple):
    """What one merge reports, per worker: scalars, float32 or wider.

    All are 0 in a round whose rule sends nothing. In a streamed round they are those of
    the step's piece.

    Attributes:
      distance: the norm of m - o_i: how far what arrived was from what this worker
        sent, which is its snapshot s_i for most rules.
      progress_norm: the norm of x_i - s_i at the merge: how far the worker went in
        the ``delay`` steps that the exchange had.
      alignment: in [-1, 1], the cosine between x_i - s_i and m - o_i, 0 where either
        is 0: above 0 the worker's own steps went the way of the merge, below 0
        against it. A rule that sends a difference sends the way that it went, or the
        sign is the opposite. Also 0 for a rule that sends a tree of another form than
        the parameters'.
    """

    distance: jax.Array
    progress_norm: jax.Array
    alignment: jax.Array


class RoundMetrics(NamedTuple):
    """What one round reports, per worker: never reduced over workers.

    A reduction inside the round would be merged with the exchange of the
    parameters by the compiler, and the overlap would be lost without a word.
    Reduce outside: ``metrics.loss.mean()``.

    Attributes:
      loss: [period], see :class:`StepMetrics`.
      grad_norm: [period], see :class:`StepMetrics`.
      distance: scalar, see :class:`MergeMetrics`; [period] in a streamed round, as are
        the next two.
      progress_norm: scalar, see :class:`MergeMetrics`.
      alignment: scalar, see :class:`MergeMetrics`.
      aux: leaves of shape [period, ...], see :class:`StepMetrics`.
    """

    loss: jax.Array
    grad_norm: jax.Array
    distance: jax.Array
    progress_norm: jax.Array
    alignment: jax.Array
    aux: Any = None


def on_host(metrics: RoundMetrics) -> RoundMetrics:
    """The metrics of all workers as NumPy arrays of float64: bfloat16 would round.

    ``aux`` stays away: it may be anything.

    Raises:
      TypeError: when these are no metrics of a round.
      ValueError: when they are not those of all workers.
    """
    check_kind(RoundMetrics, metrics=metrics)
    steps, merge = np.shape(metrics.loss), np.shape(metrics.distance)
    if len(steps) != 2 or merge[:1] != steps[:1]:
        raise ValueError(
            f"metrics.loss has shape {steps} and metrics.distance {merge}; give the "
            "metrics of all workers, which begin with [N, period] and with [N]."
        )
    wide = lambda values: np.asarray(values, np.float64)
    return jax.tree.map(wide, jax.device_get(metrics._replace(aux=None)))


def of_whole_rounds(metrics: RoundMetrics) -> RoundMetrics:
    """What ``on_host`` returned, with one merge in a round: the pieces of it together.

    Pieces hold different coordinates: squares of norms add up, and so do products.
    """
    if metrics.distance.ndim == 1:
        return metrics
    norm = lambda values: np.sqrt((values**2).sum(axis=1))
    distance, progress_norm = norm(metrics.distance), norm(metrics.progress_norm)
    product = metrics.alignment * metrics.progress_norm * metrics.distance
    both = distance * progress_norm
    alignment = product.sum(axis=1) / np.where(both == 0, 1, both)
    return metrics._replace(
        distance=distance, progress_norm=progress_norm, alignment=alignment
    )


def by_name(metrics: RoundMetrics) -> dict[str, np.ndarray]:
    """The fields that every round reports, ``aux`` aside."""
    return {name: field for name, field in metrics._asdict().items() if name != "aux"}
