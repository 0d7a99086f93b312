"""Numbers in fewer bits: blocks of floats as bytes, and back.

The bytes are uint8 and hold the scale of their block. Compilers know that a conversion
commutes with a collective, and may send the wide numbers instead; bytes they leave
alone, and scales apart would need a collective of their own.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

Numbers: TypeAlias = Literal["bf16", "fp8", "int8", "int4"]


class Codec(NamedTuple):
    """How a block of numbers travels.

    Attributes:
      encode: ``[..., block] -> [..., bytes]``, of uint8.
      decode: the way back, to float32. What is not finite does not become finite.
    """

    encode: Callable[[jax.Array], jax.Array]
    decode: Callable[[jax.Array], jax.Array]


def _as_bytes(x: jax.Array) -> jax.Array:
    """The last axis in bytes, in the machine's order."""
    raw = lax.bitcast_convert_type(x, jnp.uint8)
    return raw if x.dtype.itemsize == 1 else raw.reshape(*x.shape[:-1], -1)


def _from_bytes(raw: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    size = jnp.dtype(dtype).itemsize
    if size > 1:
        raw = raw.reshape(*raw.shape[:-1], -1, size)
    return lax.bitcast_convert_type(raw, dtype)


def _scaled(
    largest: float,
    narrow: Callable[[jax.Array], jax.Array],
    wide: Callable[[jax.Array], jax.Array],
) -> Codec:
    """Codes of up to ``largest`` in absolute value, times a float32 of the block's."""

    def encode(x: jax.Array) -> jax.Array:
        scale = jnp.max(jnp.abs(x), axis=-1, keepdims=True).astype(jnp.float32)
        scale = scale / largest
        codes = narrow(x.astype(jnp.float32) / jnp.where(scale == 0, 1, scale))
        return jnp.concatenate([codes, _as_bytes(scale)], axis=-1)

    def decode(raw: jax.Array) -> jax.Array:
        scale = _from_bytes(raw[..., -4:], jnp.float32)
        return wide(raw[..., :-4]) * scale

    return Codec(encode, decode)


def _pairs(x: jax.Array) -> jax.Array:
    """Integers in -8..7, two in a byte: the halves of the block."""
    low, high = jnp.split(jnp.round(x).astype(jnp.int8), 2, axis=-1)
    return _as_bytes((low & 15) | (high << 4))


def _from_pairs(raw: jax.Array) -> jax.Array:
    both = _from_bytes(raw, jnp.int8)
    # Shifts to the right keep the sign.
    halves = [(both << 4) >> 4, both >> 4]
    return jnp.concatenate(halves, axis=-1).astype(jnp.float32)


CODECS: dict[Numbers, Codec] = {
    "bf16": Codec(
        lambda x: _as_bytes(x.astype(jnp.bfloat16)),
        lambda raw: _from_bytes(raw, jnp.bfloat16).astype(jnp.float32),
    ),
    "fp8": _scaled(
        448.0,
        lambda x: _as_bytes(x.astype(jnp.float8_e4m3fn)),
        lambda raw: _from_bytes(raw, jnp.float8_e4m3fn).astype(jnp.float32),
    ),
    "int8": _scaled(
        127.0,
        lambda x: _as_bytes(jnp.round(x).astype(jnp.int8)),
        lambda raw: _from_bytes(raw, jnp.int8).astype(jnp.float32),
    ),
    "int4": _scaled(7.0, _pairs, _from_pairs),
}
