"""Workers average with their neighbours in a graph alone."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cocod_jax._text import shown
from cocod_jax._typing import ExchangeState, Sent, Tree, Weight
from cocod_jax.exchanges._base import (
    EqualShares,
    Exchange,
    axis_size,
    check_one_axis,
)
from cocod_jax.exchanges._wire import ravel, unravel

Graph: TypeAlias = Literal["ring", "exponential"] | Sequence[Sequence[float]]


def gossip(axis_name: str, graph: Graph) -> Exchange:
    r"""A step of averaging over a graph: each worker hears of its neighbours alone.

    .. math:: m_i = \sum_j w_{ij} x_j, \qquad
       \sum_j w_{ij} = \sum_i w_{ij} = 1, \quad w_{ij} \ge 0

    What arrives differs between workers, and has the mean of what they sent: a merge
    that keeps the mean with :func:`cocod_jax.mean` keeps it with this. Workers agree
    in the long run, the sooner the better the graph is connected; a graph in which all
    have equal weights is the mean.

    * ``ring``: worker i and the two beside it, a third each.
    * ``exponential``: worker i and those at the distances 1, 2, 4 ... ahead of it, all
      of them equally. The number of messages grows with the logarithm of N, and so,
      about, does the number of rounds that a worker's news takes to reach all.
    * A matrix w, one row for each worker: row i is what i makes of what it hears.

    For each cyclic diagonal of w that is not zero, a collective permutation moves a
    buffer per dtype from every worker i + d to worker i. Compiled with
    :func:`cocod_jax.compiler_options`, up to four are in flight together.

    Args:
      axis_name: the axis that ``pmap``, ``shard_map`` or ``vmap`` binds.
      graph: as above (shared).

    Returns:
      A :class:`cocod_jax.Exchange` without arrays in its state, or weights: a doubly
      stochastic graph keeps the mean in which all workers count the same, and
      :func:`cocod_jax.reweight` refuses others.

    Raises:
      TypeError: at construction, when ``axis_name`` is not a string.
      ValueError: at construction, when ``graph`` is neither of these names nor a square
        matrix whose rows and columns have sum 1; in ``send``, when ``axis_name`` is
        not bound, when the matrix has not one row for each worker, or as
        :func:`cocod_jax.mean`.

    Examples:
      >>> exchange = cj.exchanges.gossip("workers", "ring")
      >>> x = jnp.array([0.0, 3.0, 6.0, 12.0])
      >>> print(jax.vmap(exchange.average, axis_name="workers")(x))
      [5. 3. 7. 6.]

    References:
      Lian et al., `Can Decentralized Algorithms Outperform Centralized Algorithms?
      <https://arxiv.org/abs/1705.09056>`_, NeurIPS 2017 (D-PSGD, the ring).

      Ying et al., `Exponential Graph is Provably Efficient for Decentralized Deep
      Training <https://arxiv.org/abs/2110.13363>`_, NeurIPS 2021.

      `OLDSGD <https://arxiv.org/abs/2601.01493>`_, 2026: :func:`cocod_jax.cocod` over
      this exchange, with the merge at the end of the round.
    """
    check_one_axis(axis_name)
    if not isinstance(graph, str):
        matrix = _doubly_stochastic(graph)
    elif graph in _OFFSETS:
        matrix = None
    else:
        raise ValueError(
            f"graph={graph!r} must be one of {', '.join(_OFFSETS)}, or a matrix."
        )

    def diagonals() -> dict[int, np.ndarray]:
        """``{d: [N]}``, what each worker i makes of worker i + d, d above 0."""
        workers = axis_size(axis_name)
        if matrix is None:
            offsets = {d % workers for d in _OFFSETS[graph](workers)} | {0}
            equal = np.full(workers, 1 / len(offsets))
            return dict.fromkeys(sorted(offsets - {0}), equal)
        if len(matrix) != workers:
            raise ValueError(
                f"graph has {len(matrix)} rows, but axis {axis_name!r} has {workers} "
                "workers; give one row for each worker."
            )
        row = np.arange(workers)
        found = {d: matrix[row, (row + d) % workers] for d in range(1, workers)}
        return {d: weights for d, weights in found.items() if weights.any()}

    def send(
        state: ExchangeState, tree: Tree, weight: Weight | None = None
    ) -> tuple[Sent, ExchangeState]:
        del weight
        buffers, workers = ravel(tree), axis_size(axis_name)
        sent = {}
        for d in diagonals():
            pairs = [((i + d) % workers, i) for i in range(workers)]
            sent[d] = {
                dtype: lax.ppermute(buffer, axis_name, pairs)
                for dtype, buffer in buffers.items()
            }
        return sent, state

    def receive(sent: Sent, like: Tree) -> Tree:
        worker, weights = lax.axis_index(axis_name), diagonals()

        def with_neighbours(dtype: str, own: jax.Array) -> jax.Array:
            # As differences: equal workers stay equal to the last bit.
            differences = (
                jnp.asarray(weights[d], dtype)[worker] * (arrived[dtype] - own)
                for d, arrived in sent.items()
            )
            return sum(differences, own)

        own = ravel(like)
        means = {dtype: with_neighbours(dtype, buffer) for dtype, buffer in own.items()}
        return unravel(means, like)

    return Exchange(lambda tree: EqualShares(), send, receive, axis_name, alike=False)


_OFFSETS: dict[Any, Callable[[int], Sequence[int]]] = {
    "ring": lambda workers: (1, -1),
    "exponential": lambda workers: [2**k for k in range((workers - 1).bit_length())],
}


def _doubly_stochastic(graph: Sequence[Sequence[float]]) -> np.ndarray:
    """The matrix, in float64.

    Raises:
      ValueError: naming the first row or column that is not one of shares.
    """
    try:
        matrix = np.array(graph, np.float64)
    except (TypeError, ValueError, OverflowError):  # no rows, or no numbers
        matrix = np.zeros(0)
    if matrix.ndim != 2 or matrix.size != len(matrix) ** 2 or not matrix.size:
        raise ValueError(
            f"graph={shown(graph)} must be a square matrix, a row for each worker."
        )
    for name, rows in (("row", matrix), ("column", matrix.T)):
        for i, row in enumerate(rows):
            # Written by hand, thirds have a few digits only.
            if not (np.all(row >= 0) and abs(row.sum() - 1) < 1e-6):
                raise ValueError(
                    f"{name} {i} of graph has the sum {row.sum():.7g}: {row.tolist()}. "
                    "Rows and columns must be numbers of 0 or more with sum 1, or the "
                    "workers' mean would move."
                )
    return matrix
