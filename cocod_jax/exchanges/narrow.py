"""The mean on a narrow wire: few bits a number, and what they leave out comes later."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from cocod_jax._checks import check_choices, check_counts
from cocod_jax._trees import own_copy
from cocod_jax._typing import Sent, Tree, Weight
from cocod_jax.exchanges._base import (
    Exchange,
    axis_size,
    check_one_axis,
    normalised,
    own_share,
)
from cocod_jax.exchanges._codecs import CODECS, Numbers
from cocod_jax.exchanges._wire import ravel, unravel


class Known(NamedTuple):
    """What a worker remembers of one buffer, from one exchange to the next.

    Attributes:
      reference: [n], of the buffer's dtype: what arrived the time before last, equal
        on all workers.
      arrived: [blocks, bytes], uint8: how far what arrived last is from that. Between
        the two collectives only this worker's chunk is there, to be gathered.
      error: [n], per worker: what its bytes have left out so far.
    """

    reference: jax.Array
    arrived: jax.Array
    error: jax.Array


def narrow(
    axis_name: str,
    numbers: Numbers,
    *,
    block: int = 256,
    weights: Sequence[float] | None = None,
) -> Exchange:
    r"""The weighted mean, in 16, 8 or 4 bits a number, with error feedback.

    Workers send how far they are from what arrived last, r, which all of them know:

    .. math::

       c_i = Q\bigl(p_i (x_i - r) + e_i\bigr), \qquad
       e_i \leftarrow p_i (x_i - r) + e_i - c_i, \qquad
       r \leftarrow r + Q\Bigl(\sum_i c_i\Bigr) = m

    Q rounds to multiples of the largest number of each block of ``block`` numbers, so
    that its errors are in proportion to how far workers have moved, and vanish as
    training converges. What it leaves out, e_i, is sent with the next exchange, so
    that errors do not add up: the sum of all m is that of the true means, but for the
    last errors. A worker's own progress is never rounded.

    ========  ====================  =================================
    numbers   bytes of a block      rounds to
    ========  ====================  =================================
    ``bf16``  2 ``block``           8 significant bits
    ``fp8``   ``block`` + 4         4 significant bits (e4m3)
    ``int8``  ``block`` + 4         1/127 of the block's largest
    ``int4``  ``block`` / 2 + 4     1/7 of the block's largest
    ========  ====================  =================================

    Two collectives share the work. An all-to-all gives each worker its chunk of what
    all have sent; it sums the chunk in float32, rounds it once more, keeps what that
    leaves out in its own e_i, and an all-gather gives the chunk to all. A round hides
    each of the two behind half of its ``delay`` steps. A streamed round hides each
    behind a step of its own, the all-gather of a piece beside the all-to-all of the
    next: a piece is merged after two steps instead of one, and ``period`` is at least
    2.

    Of workers of several devices each device rounds and sends what it has of the
    parameters. A leaf begins a block of its own there, so that devices agree on the
    leaves that all of them have.

    Args:
      axis_name: the axis that ``pmap``, ``shard_map`` or ``vmap`` binds.
      numbers: what travels.
      block: how many numbers share a scale, an even number (shared). A buffer is sent
        in N times as many blocks as a chunk has, the last ones filled up with zeros.
      weights: one positive, finite number for each worker (shared); they are
        normalised. None gives every worker the same weight.

    Returns:
      A :class:`cocod_jax.Exchange`; its state has two copies of what is sent, and the
      bytes that arrived. ``init`` takes what all workers have at first: it is the
      first r, and must be equal on all.

    Raises:
      TypeError: at construction, when ``axis_name`` is not a string, or ``weights`` is
        no sequence.
      ValueError: at construction, when ``numbers`` is none of the above, when ``block``
        is not an even number above 0, or a weight is not positive and finite; in
        ``init``, when a leaf is complex; in ``send``, as :func:`cocod_jax.mean`.

    Examples:
      >>> exchange = cj.exchanges.narrow("workers", "int4")
      >>> state = jax.vmap(exchange.init)(jnp.zeros([2, 3]))
      >>> exchanged = jax.vmap(exchange.send, (0, 0, None), axis_name="workers")
      >>> x = jnp.array([[1.0, 2.0, 3.0], [3.0, 4.0, 4.0]])
      >>> sum_of_all = 0.0
      >>> for count in range(1, 101):
      ...     sent, state = exchanged(state, x, None)
      ...     sum_of_all += jax.vmap(exchange.receive)(sent, x)
      >>> print(sum_of_all[0] / 100)
      [2.   3.   3.5]

    References:
      Seide et al., `1-Bit Stochastic Gradient Descent and its Application to
      Data-Parallel Distributed Training of Speech DNNs
      <https://www.isca-archive.org/interspeech_2014/seide14_interspeech.html>`_,
      Interspeech 2014 (error feedback, and rounding twice).

      Tang et al., `DoubleSqueeze: Parallel Stochastic Gradient Descent with Double-pass
      Error-Compensated Compression <https://arxiv.org/abs/1905.05957>`_, ICML 2019.

    .. note::
       The papers send gradients to a server. Here parameters are sent, as differences
       to what all know, and the server is spread over the workers. NaN makes its block
       NaN on all workers, and stays in e_i.
    """
    check_one_axis(axis_name)
    check_choices(CODECS, numbers=numbers)
    check_counts(block=block)
    if block % 2:
        raise ValueError(f"block={block} must be an even number.")
    shares, codec = None if weights is None else normalised(weights), CODECS[numbers]
    decoded = lambda raw, like: _flat(codec.decode(raw), like)

    def init(tree: Tree) -> dict[str, Known]:
        state, buffers = {}, ravel(tree)
        for dtype, buffer in buffers.items():
            if jnp.iscomplexobj(buffer):
                raise ValueError(
                    f"a leaf of dtype {dtype} is to be sent in {numbers}, which is for "
                    "real numbers; send its real and imaginary parts as leaves."
                )
            blocks = _in_blocks(jnp.zeros_like(buffer), block)
            arrived = jnp.zeros_like(codec.encode(blocks))
            state[dtype] = Known(own_copy(buffer), arrived, jnp.zeros_like(buffer))
        return state

    def swap(
        state: dict[str, Known], tree: Tree, weight: Weight | None = None
    ) -> tuple[dict[str, jax.Array], dict[str, Known]]:
        share, parts, after = own_share(axis_name, shares, weight), {}, {}
        for dtype, buffer in ravel(tree).items():
            known = state[dtype]
            reference = known.reference + decoded(known.arrived, buffer)
            wanted = jnp.asarray(share, dtype) * (buffer - reference) + known.error
            codes = codec.encode(_in_chunks(wanted, block, axis_size(axis_name)))
            parts[dtype] = lax.all_to_all(codes, axis_name, 0, 0)
            after[dtype] = known._replace(
                reference=reference, error=wanted - decoded(codes, wanted)
            )
        return parts, after

    def turn(state: dict[str, Known], parts: dict[str, jax.Array]) -> dict[str, Known]:
        """Sums this worker's chunk, of which it has what each worker adds to it."""
        after = {}
        for dtype, known in state.items():
            total = codec.decode(parts[dtype]).sum(axis=0)
            codes = codec.encode(total)
            rest = among_all(total - codec.decode(codes))
            after[dtype] = known._replace(
                arrived=_rows(among_all(codes))[: len(known.arrived)],
                error=known.error + _flat(rest, known.error),
            )
        return after

    def gather(state: dict[str, Known]) -> tuple[Sent, dict[str, Known]]:
        sent, after = {}, {}
        for dtype, known in state.items():
            chunks = _in_chunks(known.arrived, 1, axis_size(axis_name))
            own = _rows(chunks[lax.axis_index(axis_name)])
            arrived = lax.all_gather(own, axis_name, tiled=True)[: len(known.arrived)]
            sent[dtype] = (known.reference, arrived)
            after[dtype] = known._replace(arrived=arrived)
        return sent, after

    def among_all(own: jax.Array) -> jax.Array:
        """[N, ...], this worker's chunk in its place, and zeros."""
        zeros = jnp.zeros((axis_size(axis_name), *own.shape), own.dtype)
        return zeros.at[lax.axis_index(axis_name)].set(own)

    def send(
        state: dict[str, Known], tree: Tree, weight: Weight | None = None
    ) -> tuple[Sent, dict[str, Known]]:
        parts, state = swap(state, tree, weight)
        return gather(turn(state, parts))

    def receive(sent: Sent, like: Tree) -> Tree:
        means = {
            dtype: reference + decoded(arrived, reference)
            for dtype, (reference, arrived) in sent.items()
        }
        return unravel(means, like)

    phases = (swap, turn, gather)
    return Exchange(init, send, receive, axis_name, shares, phases=phases, block=block)


def _in_blocks(buffer: jax.Array, block: int) -> jax.Array:
    """[blocks, block], the last one filled up with zeros."""
    return _in_chunks(buffer, block, 1)[0]


def _in_chunks(buffer: jax.Array, block: int, workers: int) -> jax.Array:
    """[N, blocks, block, ...], the last ones filled up with zeros."""
    missing = -len(buffer) % (block * workers)
    padded = jnp.pad(buffer, [(0, missing)] + [(0, 0)] * (buffer.ndim - 1))
    return padded.reshape(workers, -1, block, *buffer.shape[1:])


def _rows(chunks: jax.Array) -> jax.Array:
    """All but the last axis as one."""
    return chunks.reshape(-1, chunks.shape[-1])


def _flat(blocks: jax.Array, like: jax.Array) -> jax.Array:
    """The buffer that is in the blocks."""
    return blocks.ravel()[: len(like)].astype(like.dtype)
