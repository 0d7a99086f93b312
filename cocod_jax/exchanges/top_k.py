"""The largest numbers of every chunk; what they leave out goes with the next."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from cocod_jax._checks import check_counts, check_shares
from cocod_jax._typing import AxisName, ExchangeState, Sent, Tree, Weight
from cocod_jax.exchanges._base import (
    Exchange,
    check_axis_name,
    normalised,
    own_share,
)
from cocod_jax.exchanges._wire import ravel, unravel


def top_k(
    axis_name: AxisName,
    *,
    k: int = 64,
    chunk: int = 4096,
    decay: float = 0.95,
    weights: Sequence[float] | None = None,
) -> Exchange:
    r"""The mean of what is largest, with error feedback and one all-gather per dtype.

    A worker adds its tree to what it has not sent yet, and sends the k numbers of
    every chunk that have the largest magnitude, with their places:

    .. math::

       e_i \leftarrow \rho\, e_i + x_i, \qquad c_i = \mathrm{top}_k(e_i), \qquad
       e_i \leftarrow e_i - c_i, \qquad m = \sum_i p_i c_i

    It is for trees that are small and whose rest may wait, as a rule sends them that
    sends differences (:func:`cocod_jax.rules.sparse_loco`), and not for parameters.

    Args:
      axis_name: the axis that ``pmap``, ``shard_map`` or ``vmap`` binds, or a tuple of
        names.
      k: of each chunk, how many numbers are sent, at most ``chunk``.
      chunk: how many neighbours in the raveled tree are one, at most 65,536: a place
        travels in 16 bits. The last chunk is filled up with zeros.
      decay: rho, in 0..1, how much of what was left out remains.
      weights: one positive, finite number for each worker (shared); they are
        normalised. None gives every worker the same weight.

    Returns:
      A :class:`cocod_jax.Exchange` whose state is e_i, one buffer per dtype (per
      worker).

    Raises:
      TypeError: at construction, when ``axis_name`` is not a string or a tuple of
        strings, or ``weights`` is no sequence.
      ValueError: at construction, when ``k`` or ``chunk`` is not an integer in its
        range, ``decay`` is not in 0..1, or a weight is not positive and finite; in
        ``send``, as :func:`cocod_jax.mean`, and for complex leaves.

    Examples:
      >>> exchange = cj.exchanges.top_k("workers", k=1, chunk=2)
      >>> differences = jnp.array([[1.0, 4.0, 0.0, 2.0], [3.0, 0.0, 0.0, 4.0]])
      >>> average = jax.vmap(exchange.average, axis_name="workers")
      >>> print(average(differences)[0])
      [1.5 2.  0.  3. ]

    References:
      Sarfi et al., `Communication Efficient LLM Pre-training with SparseLoCo
      <https://arxiv.org/abs/2508.15706>`_, 2025; the defaults are its values.

      Stich, Cordonnier, Jaggi, `Sparsified SGD with Memory
      <https://arxiv.org/abs/1809.07599>`_, NeurIPS 2018 (error feedback).

    .. note::
       The paper's values travel in 2 bits. Here they keep their dtype.
    """
    check_axis_name(axis_name)
    check_counts(k=k, chunk=chunk)
    if not k <= chunk <= 2**16:
        raise ValueError(f"k={k} and chunk={chunk} must be k <= chunk <= {2**16}.")
    check_shares(decay=decay)
    shares = None if weights is None else normalised(weights)

    def init(tree: Tree) -> ExchangeState:
        return {dtype: jnp.zeros_like(buffer) for dtype, buffer in ravel(tree).items()}

    def send(
        state: ExchangeState, tree: Tree, weight: Weight | None = None
    ) -> tuple[Sent, ExchangeState]:
        share = own_share(axis_name, shares, weight)
        sent, left_out = {}, {}
        for dtype, buffer in ravel(tree).items():
            if jnp.iscomplexobj(buffer):
                raise ValueError(f"top_k sends real numbers; a leaf is {dtype}.")
            wanted = decay * state[dtype] + buffer
            rows = _chunks(wanted, chunk)
            places = lax.top_k(jnp.abs(rows), k)[1]
            values = jnp.take_along_axis(rows, places, axis=1)
            decoded = _filled(values, places, chunk).ravel()[: wanted.size]
            left_out[dtype] = wanted - decoded
            words = _packed(values * jnp.asarray(share, dtype), places)
            sent[dtype] = lax.all_gather(words, axis_name)
        return sent, left_out

    def receive(sent: Sent, like: Tree) -> Tree:
        sums = {}
        for dtype, buffer in ravel(like).items():
            values, places = _unpacked(sent[dtype], dtype)
            total = sum(map(lambda v, p: _filled(v, p, chunk), values, places))
            sums[dtype] = jnp.ravel(total)[: buffer.size]
        return unravel(sums, like)

    return Exchange(init, send, receive, axis_name, shares)


def _chunks(buffer: jax.Array, chunk: int) -> jax.Array:
    """[chunks, chunk], filled up with zeros."""
    return jnp.pad(buffer, (0, -buffer.size % chunk)).reshape(-1, chunk)


def _filled(values: jax.Array, places: jax.Array, chunk: int) -> jax.Array:
    """[chunks, chunk], zero where no value has its place; both are [chunks, k]."""
    zeros = jnp.zeros((len(values), chunk), values.dtype)
    return jnp.put_along_axis(zeros, places, values, axis=1, inplace=False)


def _packed(values: jax.Array, places: jax.Array) -> jax.Array:
    """Values and places in words of 16 bits: what travels is one array."""
    halves = lax.bitcast_convert_type(values, jnp.uint16)
    return jnp.concatenate([halves, places.astype(jnp.uint16)[..., None]], axis=-1)


def _unpacked(words: jax.Array, dtype: str) -> tuple[jax.Array, jax.Array]:
    """The values in their dtype, and the places."""
    values = lax.bitcast_convert_type(words[..., :-1], jnp.dtype(dtype))
    return values, words[..., -1].astype(jnp.int32)
