"""Local batches in micro-batches, more of them on faster workers."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from cocod_jax._text import shown
from cocod_jax._trees import at, wide, zeros_of
from cocod_jax._typing import Batch, ModelState, Params
from cocod_jax.rounds._convolutions import fast_in_loops

GradientFn: TypeAlias = Callable[
    [Params, ModelState, Batch, jax.Array],
    tuple[tuple[jax.Array, ModelState, Any], Params],
]
"""``(params, model_state, batch, key) -> ((loss, model_state, aux), gradient)``."""


class MicroBatches(NamedTuple):
    r"""Batches for workers of unequal speed, in micro-batches of equal size.

    All workers run one program, on arrays of equal shape; what differs is how many
    micro-batches a worker takes into each local step. The others are skipped, not
    masked: a worker with half the count is done in half the time, and what its
    arrays hold beyond the count is never used. The step's gradient is the mean over
    all samples that the worker took:

    .. math:: g_i = \frac{1}{m_i} \sum_{j=1}^{m_i} \nabla f(x_i; \text{data}_{ij})

    With counts in proportion to the workers' speeds
    (:func:`cocod_jax.workers.batch_shares`) all of them finish a step together. The
    counts are then the workers' weights too:
    ``cj.cocod(axis, weights=counts)``, p_i = M_i / M. With equal weights a sample of
    a slow worker would count more than one of a fast worker, and training would end
    at the optimum of another problem.

    A round takes these in place of its batches. Its ``loss_fn`` sees one micro-batch
    at a time, and must return the mean over that; micro-batch j of step t draws from
    ``fold_in(fold_in(key, t), j)``. The model state goes from one micro-batch to the
    next: batch norm normalises within micro-batches, and counters count them. There
    must be no collective in ``loss_fn``: workers with unequal counts would wait for
    each other forever. A loop that calls :func:`cocod_jax.every` or
    :func:`cocod_jax.mean_gradients` brings gradients of its own, and needs only the
    weights.

    Under ``vmap`` every worker takes as long as the one with the largest count; the
    numbers are the same. On a GPU the host waits for a micro-batch before it launches
    the next: better a few large ones than many small ones.

    Attributes:
      data: leaves of shape [N, period, max_count, micro_batch, ...] (per worker).
      count: m_i, integers [N, period], each in 1..max_count (per worker). They may
        change from call to call without another compilation. A count out of its range
        is refused in a NumPy array. A device cannot raise an error: there it makes the
        worker's loss and parameters NaN, and those of all in the next exchange.

    Examples:
      A fast worker with three samples, and a slow one with one:

      >>> loss = lambda w, batch: 0.5 * jnp.mean((w - batch) ** 2)
      >>> rule = cj.cocod("workers", weights=(3, 1))
      >>> round_ = cj.make_round(loss, optax.sgd(0.5), rule, period=1)
      >>> state = cj.replicate(round_.init(jnp.array(0.0)), 2)
      >>> data = jnp.array([[1.0, 2.0, 3.0], [6.0, jnp.nan, jnp.nan]])
      >>> count = jnp.array([3, 1])
      >>> batches = cj.MicroBatches(data[:, None, :, None], count[:, None])
      >>> run = cj.distribute(round_)
      >>> for _ in range(30):
      ...     state, metrics = run(state, batches)
      >>> print(f"{cj.consensus(state):.2f}")  # the mean of 1, 2, 3 and 6
      3.00

    References:
      Shen et al., `Faster Distributed Deep Net Training: Computation and
      Communication Decoupled SGD <https://arxiv.org/abs/1906.12043>`_, IJCAI 2019:
      proportional sampling in heterogeneous environments.
    """

    data: Batch
    count: jax.Array | np.ndarray


def over_micro_batches(gradient_of: GradientFn) -> GradientFn:
    """The same for a worker's micro-batches: the means of loss, aux and gradient.

    The sums are taken in float32 at least; the means have the dtypes that
    ``gradient_of`` gives, those of integers in aux are float32.
    """
    gradient_of_one = fast_in_loops(gradient_of)

    def mean_gradient_of(
        params: Params, model_state: ModelState, batches: MicroBatches, key: jax.Array
    ) -> tuple[tuple[jax.Array, ModelState, Any], Params]:
        data, asked = batches.data, jnp.asarray(batches.count, jnp.int32)
        count = jnp.clip(asked, 1, jax.tree.leaves(data)[0].shape[0])

        def take(j: jax.Array | int) -> tuple[Batch, jax.Array]:
            return at(data, j), jax.random.fold_in(key, j)

        def add(j: jax.Array, carry: tuple[Any, ModelState]) -> tuple[Any, ModelState]:
            sums, model_state = carry
            (loss, model_state, aux), gradient = gradient_of_one(
                params, model_state, *take(j)
            )
            return optax.tree.add(sums, wide((loss, aux, gradient))), model_state

        # The loop must know the types of the sums before its first micro-batch.
        (loss, _, aux), gradient = jax.eval_shape(
            lambda: gradient_of(params, model_state, *take(0))
        )
        of_one = (loss, aux, gradient)
        zeros = wide(jax.tree.map(zeros_of, of_one))
        sums, model_state = lax.fori_loop(0, count, add, (zeros, model_state))

        def mean(total: jax.Array, leaf: jax.ShapeDtypeStruct) -> jax.Array:
            divisor = jnp.where(count == asked, count.astype(total.dtype), jnp.nan)
            is_float = jnp.issubdtype(leaf.dtype, jnp.inexact)
            return (total / divisor).astype(leaf.dtype if is_float else total.dtype)

        loss, aux, gradient = jax.tree.map(mean, sums, of_one)
        return (loss, model_state, aux), gradient

    return mean_gradient_of


def check_micro_batches(batches: MicroBatches, *, axis: int) -> None:
    """Makes sure that every leaf has as many micro-batches, and counts that fit.

    Args:
      batches: for all local steps of a round.
      axis: of the micro-batches in the leaves of ``data``; ``count`` has all axes
        before.

    Raises:
      TypeError: when ``count`` is no array.
      ValueError: when the leaves differ, or a count is no integer or out of its
        range (where its value is at hand: in a NumPy array).
    """
    data, count = batches
    if not hasattr(count, "dtype"):
        raise TypeError(f"batches.count={shown(count)} must be an array of integers.")
    lengths = {jnp.shape(leaf)[axis : axis + 1] for leaf in jax.tree.leaves(data)}
    if len(lengths) != 1 or () in lengths:
        shapes = jax.tree.map(jnp.shape, data)
        raise ValueError(
            f"batches.data has shapes {shapes}; axis {axis} counts the micro-batches, "
            "and must have the same length in all of them."
        )
    if jnp.ndim(count) != axis or not jnp.issubdtype(count.dtype, jnp.integer):
        raise ValueError(
            f"batches.count has shape {jnp.shape(count)} and dtype {count.dtype}; it "
            f"must be integers with {axis} axes: one count for each local step."
        )
    ((max_count,),) = lengths
    at_hand = isinstance(count, np.ndarray)
    if at_hand and not (count.min() >= 1 and count.max() <= max_count):
        raise ValueError(
            f"batches.count reaches from {count.min()} to {count.max()}; a worker "
            f"takes at least 1 of the {max_count} micro-batches in batches.data."
        )
