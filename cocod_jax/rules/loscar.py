"""LOSCAR-SGD: a random part of the coordinates in every exchange."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from cocod_jax._checks import check_fractions, check_whole
from cocod_jax._typing import AxisName, Params
from cocod_jax.exchanges._base import Exchange
from cocod_jax.exchanges._wire import ravel, unravel
from cocod_jax.exchanges.mean import as_exchange
from cocod_jax.rules._base import MergeRule


def loscar(
    axis_or_exchange: AxisName | Exchange,
    fraction: float,
    *,
    seed: int = 0,
    weights: Sequence[float] | None = None,
) -> MergeRule:
    r"""The merge rule of LOSCAR-SGD, CoCoD-SGD on a part of the coordinates.

    In every round the workers draw the same set S of coordinates, and send those
    alone. A worker keeps its progress on them, and all that it has of the others:

    .. math::

       m_j = \sum_i p_i s_{i,j}, \qquad
       x_{i,j} \leftarrow m_j + (x_{i,j} - s_{i,j}) \quad \text{for } j \in S

    No merge moves the weighted mean of the workers. As many coordinates travel in every
    round, one out of each 1 / ``fraction`` neighbours, so that every coordinate has the
    same chance. With fraction 1 it is :func:`cocod_jax.cocod`.

    Args:
      axis_or_exchange: the name of the workers' axis, or an
        :class:`cocod_jax.Exchange` without state.
      fraction: of the coordinates that travel in a round, above 0, up to 1. Its inverse
        is rounded to a whole number.
      seed: of the draws, the same on all workers.
      weights: one positive number for each worker, when a name is given.

    Returns:
      A :class:`cocod_jax.MergeRule` whose state is the number of merges, an int32
      scalar, equal on all workers. A streamed exchange sends a part already: the rule
      does not stream.

    Raises:
      TypeError: as :func:`cocod_jax.mean`.
      ValueError: as :func:`cocod_jax.mean`; when both an exchange and ``weights`` are
        given, the exchange heals workers, ``fraction`` is not above 0 and up to 1, or
        ``seed`` is not an integer, 0 or more; in ``init``, when the exchange has a
        state, which would be that of other coordinates; in use, between workers of
        several devices, which send whole trees.

    Examples:
      >>> loss = lambda w, batch: jnp.mean((batch @ w) ** 2)
      >>> rule = cj.rules.loscar("workers", fraction=0.01)
      >>> round_ = cj.make_round(loss, optax.sgd(0.1), rule, period=8)
      >>> state = cj.replicate(round_.init(jnp.ones([100, 100])), 2)
      >>> cj.summary(round_, state).sent_bytes
      {'float32': 400}

    References:
      Maziane, Mahran, Maranjyan, Richtárik, `LOSCAR-SGD: Local SGD with
      Communication-Computation Overlap and Delay-Corrected Sparse Model Averaging
      <https://arxiv.org/abs/2605.20866>`_, 2026, Algorithm 1.

    .. note::
       The paper draws S uniformly among all sets of its size; one coordinate out of
       each run of neighbours is ours, and needs no sort. The paper's workers may take
       numbers of local steps of their own; a round's take the same.
    """
    check_fractions(fraction=fraction)
    check_whole(seed=seed)
    run = round(1 / fraction)
    exchange = as_exchange(axis_or_exchange, weights)
    if exchange.heals:
        raise ValueError(
            "loscar brings a part of the coordinates, and this exchange heals a worker "
            "by the whole model; take another one, such as cj.mean."
        )

    def init(params: Params) -> jax.Array:
        merges = jnp.zeros([], jnp.int32)
        if jax.tree.leaves(exchange.init(outgoing(merges, params))):
            raise ValueError(
                "loscar sends other coordinates in every round, and this exchange "
                "remembers those of the last one; take one without a state, such as "
                "cj.mean."
            )
        return merges

    def chosen(size: int, merges: jax.Array) -> jax.Array:
        """One position in each run of neighbours; the last run may be shorter."""
        key = jax.random.fold_in(jax.random.key(seed), merges)
        starts = jnp.arange(0, size, run)
        lengths = jnp.minimum(run, size - starts)
        return starts + jax.random.randint(key, starts.shape, 0, lengths)

    def outgoing(state: Any, snapshot: Params) -> dict[str, jax.Array]:
        return {
            dtype: buffer[chosen(buffer.size, state)]
            for dtype, buffer in ravel(snapshot).items()
        }

    def merge(
        arriving: dict[str, jax.Array], params: Params, state: Any, snapshot: Params
    ) -> tuple[Params, jax.Array]:
        buffers, stale = ravel(params), ravel(snapshot)
        for dtype, x in buffers.items():
            here = chosen(x.size, state)
            moved = arriving[dtype] + (x[here] - stale[dtype][here])
            buffers[dtype] = x.at[here].set(
                moved, indices_are_sorted=True, unique_indices=True
            )
        return unravel(buffers, params), jnp.asarray(optax.safe_increment(state))

    return MergeRule(exchange, merge, init=init, outgoing=outgoing, streams=False)
