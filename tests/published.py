"""Whether a number in a text is the one in a log."""

import re
from collections.abc import Iterable


def shown(text: str, value: float) -> bool:
    """Whether a number in a text is this value, rounded to as many decimals."""
    number = text.strip("* ").replace(",", "")
    decimals = len(number.partition(".")[2])
    return number == f"{value:.{decimals}f}"


def check_sentence(page: str, words: str, values: Iterable[float]) -> None:
    """That the page has these words, each ``#`` of which is the next of the values."""
    number = r"([\d.,]*\d)"
    pattern = re.escape(words).replace(r"\#", number).replace(r"\ ", r"\s+")
    said = re.search(pattern, page)
    assert said, f"{words!r} is not there any more: check what is, in its place"
    for number, value in zip(said.groups(), values, strict=True):
        assert shown(number, value), f"{said[0]!r}: {number} is {value}"
