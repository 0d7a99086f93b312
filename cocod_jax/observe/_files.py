"""Files of lines, of which a kill may have torn the last, and numbers to write."""

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from decimal import Decimal
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from cocod_jax._checks import check_flags, check_paths
from cocod_jax._text import shown


def plain(value: Any) -> Any:
    """A number, or an array of them, as what Python's json knows.

    Raises:
      TypeError: when it is something else.
    """
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real | Decimal):
        return float(value)
    if hasattr(value, "tolist"):  # of NumPy or JAX
        return value.tolist()
    raise TypeError(f"{shown(value)} is a {type(value).__name__}, and no real number.")


def parsed(line: bytes) -> Any:
    """What a line of JSON holds; None when it is torn, as half a record is no JSON."""
    try:
        return json.loads(line)
    except ValueError:
        return None


def in_order(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Of each record of a log its kind, and its fields.

    A last line that a kill has torn is left out.

    Raises:
      TypeError: when ``path`` is no path.
      ValueError: when a line is no record; it names the line.
    """
    check_paths(path=path)
    with Path(path).open("rb") as file:
        lines = file.readlines()
    for number, line in enumerate(lines, start=1):
        record = parsed(line)
        if record is None and number == len(lines):
            break
        if not isinstance(record, dict) or not isinstance(record.get("kind"), str):
            raise ValueError(
                f"line {number} of {path} is no record, a JSON object with a kind: "
                f"{shown(line)}."
            )
        yield record.pop("kind"), record


@contextmanager
def open_lines(
    path: str | Path, append: bool, is_torn: Callable[[bytes], bool]
) -> Iterator[TextIO]:
    """A file to write lines to, a new one or one that ends in a whole line."""
    check_paths(path=path)
    check_flags(append=append)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if append and path.exists():
        _end_whole(path, is_torn)
    file = path.open("a" if append else "w")
    try:
        yield file
    except BaseException:
        with suppress(OSError):  # of what a full disk has left to write
            file.close()
        raise
    with errors_of(file):
        file.close()


@contextmanager
def errors_of(file: TextIO) -> Iterator[None]:
    """Gives an OSError of writing the name of the file, which Python leaves out."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, file.name) from None


def _end_whole(path: Path, is_torn: Callable[[bytes], bool]) -> None:
    """Removes a torn last line, and ends any other."""
    start, last = 0, b""
    with path.open("r+b") as file:
        for line in file:
            start, last = start + len(last), line
        if is_torn(last):
            file.truncate(start)
        elif not last.endswith(b"\n"):
            file.write(b"\n")


def columns_of(path: str | Path) -> list[str]:
    """The names in the first line of a table, but for the step's; none when it is new.

    Raises:
      ValueError: when that line is another one.
    """
    with Path(path).open(newline="") as file:
        step, *names = next(csv.reader(file), ["step"]) or [""]
    if step != "step":
        raise ValueError(
            f"{path} cannot be appended to: its first line names no columns, the first "
            f"of which is 'step'. It begins with {step!r}."
        )
    return names


def whole(count: Any) -> int:
    """A count of local steps as a number of Python.

    Raises:
      TypeError: when it is no number.
    """
    try:
        return int(count)
    except (TypeError, ValueError, OverflowError):
        raise TypeError(
            f"count={shown(count)} must be a number of local steps."
        ) from None


def named(scalars: Mapping[str, float]) -> dict[str, float]:
    """The scalars as numbers of Python.

    Raises:
      TypeError: when they have no names, as a round's metrics have none, or one of them
        is not one number.
    """
    if not isinstance(scalars, Mapping):
        raise TypeError(
            f"scalars is a {type(scalars).__name__}, but must map names to numbers, as "
            "cj.loggers.scalars(metrics) does."
        )
    for name, value in scalars.items():
        if np.ndim(value):
            raise TypeError(
                f"scalars[{name!r}] has shape {np.shape(value)}; it must be one number."
            )
    known = (bool, int, float, str, type(None))
    return {n: v if type(v) in known else plain(v) for n, v in scalars.items()}
