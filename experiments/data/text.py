"""A text as sequences of tokens: where it is from, how it is cut, what is held out."""

import hashlib
import platform
import sys
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import numpy as np

from experiments.command import UsageError
from experiments.data import tokenizers
from experiments.data.pipeline import Example
from experiments.data.tokenizers import Tokenizer

PYDOC = {
    "3.11": (
        "3.11.7",
        "71f2ff5d99bdc1f9c48c5c2353ad138201c5ca1c377e0226857ef8fa89b8bcee",
    ),
    "3.12": (
        "3.12.1",
        "3ae592730a57a4148564a54edefaf307b12237819089b0517c79c68c4cb9b123",
    ),
    "3.13": (
        "3.13.0",
        "f62af24000df7356ed89d6ee45423cc5d32cbf582fc8aecd0451ca680d2835a3",
    ),
}
"""By Python's minor version, the SHA-256 of pydoc's topics in one of its releases."""
HELD_OUT = 10
"""One part in so many, the last, is evaluated and never trained on."""


class Corpus(NamedTuple):
    """A text as tokens.

    Attributes:
      tokens: integers [n], the whole text.
      tokenizer: what they are.
      digest: the text's SHA-256.
      notes: sentences on it for people.
    """

    tokens: np.ndarray
    tokenizer: Tokenizer
    digest: str
    notes: tuple[str, ...]


def load(file: Path | None, tokenizer: Literal["bytes", "characters"]) -> Corpus:
    """A text as tokens.

    Args:
      file: where it is, in UTF-8; None is the language reference that pydoc shows.
      tokenizer: what a token is.

    Raises:
      UsageError: a ValueError, when the file cannot be read or is not UTF-8.
    """
    text, notes = pydoc_topics() if file is None else (read(file), ())
    made = {
        "bytes": tokenizers.bytes_of_utf8,
        "characters": lambda: tokenizers.characters_of(text),
    }[tokenizer]()
    tokens = made.encode(text)
    digest = hashlib.sha256(text.encode()).hexdigest()
    name = "pydoc's topics" if file is None else file.name
    first = (
        f"{name}: {len(tokens):,} tokens ({tokenizer}), a vocabulary of {made.size}, "
        f"SHA-256 {digest[:12]}."
    )
    return Corpus(tokens, made, digest, (first, *notes))


def pydoc_topics() -> tuple[str, tuple[str, ...]]:
    """The language reference that comes with Python, licensed as Python is (PSF).

    Returns:
      All topics by name, a blank line between them; and a note where this is not the
      release of its minor version that we know.

    Raises:
      UsageError: when this Python comes without it.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise UsageError(
            "this Python comes without pydoc_data, the default text; give another one "
            "by --data-file."
        ) from None
    text = "\n\n".join(topics[name] for name in sorted(topics))
    minor = "{}.{}".format(*sys.version_info)
    release, known = PYDOC.get(minor, ("", ""))
    if hashlib.sha256(text.encode()).hexdigest() == known:
        return text, ()
    other = f"that of {release}" if release else "one that we know"
    note = (
        f"The text of Python {platform.python_version()} is not {other}: losses may "
        "differ a little from published ones."
    )
    return text, (note,)


def read(file: Path) -> str:
    """The text of a file.

    Raises:
      UsageError: when it cannot be read, or is not UTF-8.
    """
    try:
        return file.read_bytes().decode()
    except OSError as error:
        raise UsageError(
            f"data_file={str(file)!r} cannot be read: {error.strerror}."
        ) from None
    except UnicodeDecodeError as error:
        raise UsageError(
            f"data_file={str(file)!r} is not UTF-8 at byte {error.start}; convert it, "
            "for example by `iconv -t utf-8`."
        ) from None


class Sequences(NamedTuple):
    """Tokens cut into sequences, without gaps: a source of examples.

    Attributes:
      windows: [n, context + 1], a view of the tokens. The last token of a sequence is
        the first of the next: it is predicted once, and once a context.
    """

    windows: np.ndarray

    @property
    def example(self) -> Example:
        """The tokens of one sequence."""
        return example(self.windows.shape[1] - 1)

    def take(
        self, chosen: np.ndarray, rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """The sequences of a batch; nothing is drawn."""
        del rng
        return {"tokens": self.windows[chosen]}


def example(context: int) -> Example:
    """The tokens of one sequence, and the one that follows."""
    return {"tokens": jax.ShapeDtypeStruct((context + 1,), np.int32)}


def packed(tokens: np.ndarray, context: int) -> Sequences:
    """As many whole sequences as there are, from the first token on."""
    if len(tokens) <= context:
        return Sequences(np.zeros([0, context + 1], tokens.dtype))
    views = np.lib.stride_tricks.sliding_window_view(tokens, context + 1)
    return Sequences(views[::context])


def split(tokens: np.ndarray, context: int) -> tuple[Sequences, Sequences]:
    """The sequences to train on, and those of the last tenth, which are held out.

    Raises:
      UsageError: a ValueError, when the last tenth is shorter than a sequence.
    """
    held_out = len(tokens) // HELD_OUT
    if held_out <= context:
        raise UsageError(
            f"the text has {len(tokens):,} tokens, too few for context={context}: its "
            "last tenth must be longer than a sequence. Take a text of at least "
            f"{HELD_OUT * (context + 1):,} tokens, or a smaller context."
        )
    train, test = tokens[:-held_out], tokens[-held_out:]
    return packed(train, context), packed(test, context)


def unigram_entropy(tokens: np.ndarray) -> float:
    """The entropy of the tokens' frequencies, in nats.

    No model that ignores the tokens before has a lower loss on them.
    """
    shares = np.bincount(tokens) / len(tokens)
    shares = shares[shares > 0]
    return float(-(shares * np.log(shares)).sum())
