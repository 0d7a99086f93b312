"""What a token is: a byte, or a character of one text."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Tokenizer(NamedTuple):
    """Text to numbers, and back.

    Attributes:
      size: tokens are below it.
      encode: ``(text) -> tokens``, integers [n].
      decode: ``(tokens) -> text``; bytes that are no UTF-8 become U+FFFD.
    """

    size: int
    encode: Callable[[str], np.ndarray]
    decode: Callable[[np.ndarray], str]


def bytes_of_utf8() -> Tokenizer:
    """A token is a byte of UTF-8: 256 of them, for any text."""
    return Tokenizer(
        256,
        lambda text: np.frombuffer(text.encode(), np.uint8),
        lambda tokens: np.asarray(tokens, np.uint8).tobytes().decode(errors="replace"),
    )


def characters_of(text: str) -> Tokenizer:
    """A token is one of the characters of a text, in the order of Unicode."""
    alphabet = np.unique(_code_points(text))

    def encode(text: str) -> np.ndarray:
        points = _code_points(text)
        unknown = np.setdiff1d(points, alphabet)
        if len(unknown):
            raise ValueError(
                f"text has {chr(unknown[0])!r}, which is not one of the "
                f"{len(alphabet)} characters of this tokenizer; make it of all texts."
            )
        return np.searchsorted(alphabet, points)

    return Tokenizer(
        len(alphabet), encode, lambda tokens: "".join(map(chr, alphabet[tokens]))
    )


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le"), "<u4")
