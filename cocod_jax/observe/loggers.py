"""A round's metrics as numbers, and files to write them to.

A logger is any function that takes a count of local steps and named numbers:

>>> metrics = cj.RoundMetrics(*np.ones([5, 2, 1]))  # what a round returned
>>> print(0, cj.loggers.scalars(metrics)["loss"])
0 1.0

``print`` is one; so is any function of yours; and each of the context managers here
opens a file, or a run on a server, and yields one.
"""

import csv
import importlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from cocod_jax._checks import check_paths
from cocod_jax.exchanges._base import worker_shares
from cocod_jax.observe._files import (
    columns_of,
    errors_of,
    in_order,
    named,
    open_lines,
    parsed,
    plain,
    whole,
)
from cocod_jax.rounds._types import RoundMetrics, by_name, of_whole_rounds, on_host

Logger: TypeAlias = Callable[[int, Mapping[str, float]], None]
Records: TypeAlias = dict[str, list[dict[str, Any]]]


def scalars(
    metrics: RoundMetrics, weights: Sequence[float] | None = None
) -> dict[str, float]:
    """The metrics of all workers as a few numbers on the host.

    Numbers that are not finite stay what they are. The call waits for the round: to
    keep an accelerator busy, start the next round first.

    Args:
      metrics: one round's, with a leading axis of workers: [N, period] and [N]. In
        each of several processes these are its own workers.
      weights: the rule's, one positive number for each of these workers; they are
        normalised. None counts all workers the same.

    Returns:
      The mean of each field over steps and, weighted, over workers, by the field's
      name; and the largest values, since a mean hides one worker or one step, as
      ``grad_norm_max`` and ``distance_max``. Of ``aux`` the leaves with one number for
      each step are there, as ``aux/accuracy``.

    Raises:
      TypeError: when ``metrics`` is no RoundMetrics, or ``weights`` not a sequence.
      ValueError: when a weight is not positive and finite, or there is not one for
        each worker.

    Examples:
      >>> loss = lambda w, batch: 0.5 * (w - batch) ** 2
      >>> round_ = cj.make_round(loss, optax.sgd(0.5), cj.cocod("workers"), period=2)
      >>> run = cj.distribute(round_, via="vmap")
      >>> state = cj.replicate(round_.init(jnp.array(8.0)), 2)
      >>> state, metrics = run(state, np.zeros([2, 2], np.float32))
      >>> for name, value in cj.loggers.scalars(metrics).items():
      ...     print(name, value)
      loss 20.0
      grad_norm 6.0
      distance 0.0
      progress_norm 6.0
      alignment 0.0
      grad_norm_max 8.0
      distance_max 0.0

      Unequal workers count by the weights of their rule:

      >>> metrics = metrics._replace(loss=np.array([[2.0], [5.0]]))
      >>> cj.loggers.scalars(metrics, weights=(2, 1))["loss"]
      3.0
    """
    values = of_whole_rounds(on_host(metrics))
    shares = worker_shares(weights, len(values.distance))
    means = {
        name: float(shares @ value.reshape(len(shares), -1).mean(axis=1))
        for name, value in (by_name(values) | _numbers_of_steps(metrics)).items()
    }
    return means | {
        "grad_norm_max": float(values.grad_norm.max()),
        "distance_max": float(values.distance.max()),
    }


def per_worker(metrics: RoundMetrics) -> dict[str, list[float]]:
    """The metrics of each worker as a few numbers on the host, for a log's record.

    The call waits for the round, as :func:`scalars` does.

    Args:
      metrics: one round's, with a leading axis of workers: [N, period] and [N].

    Returns:
      For each field but ``aux`` its mean over steps, a number for each worker, of six
      digits.

    Examples:
      >>> metrics = cj.RoundMetrics(*np.ones([5, 2, 1]))
      >>> path = getfixture("tmp_path") / "log.jsonl"
      >>> with cj.loggers.to_jsonl(path) as log:
      ...     log.write("workers", step=8, **cj.loggers.per_worker(metrics))
      >>> cj.loggers.read_jsonl(path)["workers"][0]["distance"]
      [1.0, 1.0]
    """
    values = by_name(of_whole_rounds(on_host(metrics)))
    return {
        name: [float(f"{mean:.6g}") for mean in value.reshape(len(value), -1).mean(1)]
        for name, value in values.items()
    }


def _numbers_of_steps(metrics: RoundMetrics) -> dict[str, np.ndarray]:
    """The leaves of ``aux`` of shape [N, period], by their path."""
    numbers = {}
    for path, leaf in jax.tree.leaves_with_path({"aux": metrics.aux}):
        if jnp.shape(leaf) == jnp.shape(metrics.loss):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            numbers[name] = np.asarray(jax.device_get(leaf), np.float64)
    return numbers


class Logbook:
    """Records in a JSONL file, one a line; each is on disk when its call returns.

    Every record has a kind. As a logger it writes records of the kind "round", with
    the count as "step". :meth:`write` writes all other kinds, such as "run" for a
    first record with the configuration.
    """

    def __init__(self, file: TextIO):
        self._file = file

    def __call__(self, count: int, scalars: Mapping[str, float]) -> None:
        """Writes a record of the kind "round"."""
        self.write("round", step=whole(count), **named(scalars))

    def write(self, kind: str, **record: Any) -> None:
        """Writes a record.

        Args:
          kind: such as "run"; :func:`read_jsonl` groups records by it.
          **record: the fields, with values that JSON can hold, and numbers and arrays
            of any kind among them.

        Raises:
          OSError: when it cannot be written, such as to a full disk; it has the file's
            name.
        """
        line = json.dumps({"kind": kind, **record}, default=plain) + "\n"
        with errors_of(self._file):
            self._file.write(line)
            self._file.flush()


@contextmanager
def to_jsonl(path: str | Path, *, append: bool = False) -> Iterator[Logbook]:
    """A log of records, each of its kind; :func:`read_jsonl` reads it back.

    Numbers that are not finite are written as NaN and Infinity, as Python's json does.

    Args:
      path: the file; folders are made.
      append: whether to go on in an old file, after its last whole record: a line that
        a kill has torn is removed. By default an old file is replaced.

    Returns:
      A context manager that yields a :class:`Logbook` and closes it in the end.

    Raises:
      TypeError: when ``path`` is no path, or ``append`` not a bool.

    Examples:
      >>> path = getfixture("tmp_path") / "log.jsonl"
      >>> with cj.loggers.to_jsonl(path) as log:
      ...     log.write("run", config={"period": 8})
      ...     log(8, {"loss": 0.5})
      >>> print(path.read_text())
      {"kind": "run", "config": {"period": 8}}
      {"kind": "round", "step": 8, "loss": 0.5}
    """
    with open_lines(path, append, lambda line: parsed(line) is None) as file:
        yield Logbook(file)


def read_jsonl(path: str | Path) -> Records:
    """The records of a log, grouped by kind, in order.

    A last line that a kill has torn is left out.

    Args:
      path: the file.

    Returns:
      A list of records for each kind.

    Raises:
      TypeError: when ``path`` is no path.
      ValueError: when a line is no record; it names the line.

    Examples:
      >>> path = getfixture("tmp_path") / "log.jsonl"
      >>> with cj.loggers.to_jsonl(path) as log:
      ...     log(8, {"loss": 0.5})
      >>> cj.loggers.read_jsonl(path)
      {'round': [{'step': 8, 'loss': 0.5}]}
    """
    records: Records = {}
    for kind, record in in_order(path):
        records.setdefault(kind, []).append(record)
    return records


@contextmanager
def to_csv(path: str | Path, *, append: bool = False) -> Iterator[Logger]:
    """A table with a row for each call; each is on disk when the call returns.

    Args:
      path: the file; folders are made.
      append: whether to go on in an old file, whose columns stay; a row that a kill has
        torn is removed. By default an old file is replaced.

    Returns:
      A context manager that yields a logger and closes the file in the end. The first
      call names the columns of a new file.

    Raises:
      TypeError: when ``path`` is no path, or ``append`` not a bool.
      ValueError: in use, when a call has other names than the columns; with ``append``,
        when the file has a first line that names no columns.

    Examples:
      >>> path = getfixture("tmp_path") / "log.csv"
      >>> with cj.loggers.to_csv(path) as log:
      ...     log(8, {"loss": 0.5, "distance": 0.25})
      >>> print(path.read_text())
      step,loss,distance
      8,0.5,0.25
    """

    def log(count: int, scalars: Mapping[str, float]) -> None:
        numbers = named(scalars)
        if not names:
            names.extend(numbers)
            rows.writerow(["step", *names])
        if numbers.keys() != set(names):
            raise ValueError(
                f"scalars has the names {list(numbers)}, but the columns are {names}; "
                "give the same in every call, or take to_jsonl."
            )
        rows.writerow([whole(count), *(numbers[name] for name in names)])
        with errors_of(file):
            file.flush()

    with open_lines(path, append, lambda line: not line.endswith(b"\n")) as file:
        names = columns_of(path)
        rows = csv.writer(file, lineterminator="\n")
        yield log


@contextmanager
def to_tensorboard(folder: str | Path) -> Iterator[Logger]:
    """Curves for TensorBoard, one for each name.

    Args:
      folder: the folder of this run. Give TensorBoard this folder or its parent.

    Returns:
      A context manager that yields a logger and closes its file in the end.

    Raises:
      ImportError: when tensorboardX is not installed; it says how to install it.
      TypeError: when ``folder`` is no path.

    Examples:
      >>> folder = getfixture("tmp_path") / "run"
      >>> with cj.loggers.to_tensorboard(folder) as log:
      ...     log(8, {"loss": 0.5})
    """
    check_paths(folder=folder)
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise ImportError(
            "to_tensorboard needs tensorboardX: pip install 'cocod-jax[tensorboard]'"
        ) from error

    def log(count: int, scalars: Mapping[str, float]) -> None:
        for name, value in named(scalars).items():
            if isinstance(value, str):
                raise TypeError(f"scalars[{name!r}]={value!r} must be a number.")
            writer.add_scalar(name, value, whole(count))

    with SummaryWriter(str(folder)) as writer:
        yield log


@contextmanager
def to_wandb(**options: Any) -> Iterator[Logger]:
    """Curves on Weights & Biases, one for each name.

    Args:
      **options: of ``wandb.init``, such as ``project="mine"``, ``config={"k": 8}``, or
        ``mode="offline"`` to upload later.

    Returns:
      A context manager that yields a logger and finishes its run in the end.

    Raises:
      ImportError: when wandb is not installed; it says how to install it.

    Examples:
      >>> log_to = cj.loggers.to_wandb(project="mine", mode="offline")
    """
    try:
        wandb = importlib.import_module("wandb")
    except ImportError as error:
        raise ImportError(
            "to_wandb needs wandb: pip install 'cocod-jax[wandb]'"
        ) from error
    with wandb.init(**options) as run:
        yield lambda count, scalars: run.log(named(scalars), step=whole(count))
