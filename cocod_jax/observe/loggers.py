"""A round's metrics as numbers, and files to write them to.

A logger is any function that takes a count of local steps and named numbers:

>>> metrics = cj.RoundMetrics(*np.ones([5, 2, 1]))  # what a round returned
>>> print(0, cj.loggers.scalars(metrics)["loss"])
0 1.0

``print`` is one; ``lambda count, scalars: wandb.log(scalars, step=count)`` is one; and
each of the context managers here opens a file and yields one.
"""

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO, TypeAlias

from cocod_jax.exchanges._base import worker_shares
from cocod_jax.rounds._types import RoundMetrics, on_host

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
      ``grad_norm_max`` and ``distance_max``.

    Raises:
      TypeError: when ``weights`` is not a sequence.
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
    values = on_host(metrics)
    shares = worker_shares(weights, len(values.distance))
    means = {
        name: float(shares @ value.reshape(len(shares), -1).mean(axis=1))
        for name, value in values._asdict().items()
    }
    return means | {
        "grad_norm_max": float(values.grad_norm.max()),
        "distance_max": float(values.distance.max()),
    }


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
        self.write("round", step=int(count), **_named(scalars))

    def write(self, kind: str, **record: Any) -> None:
        """Writes a record.

        Args:
          kind: such as "run"; :func:`read_jsonl` groups records by it.
          **record: the fields, with values that JSON can hold.
        """
        self._file.write(json.dumps({"kind": kind, **record}) + "\n")
        self._file.flush()


@contextmanager
def to_jsonl(path: str | Path) -> Iterator[Logbook]:
    """A log of records, each of its kind; :func:`read_jsonl` reads it back.

    Numbers that are not finite are written as NaN and Infinity, as Python's json does.

    Args:
      path: the file; an old one is replaced, folders are made.

    Returns:
      A context manager that yields a :class:`Logbook` and closes it in the end.

    Examples:
      >>> path = getfixture("tmp_path") / "log.jsonl"
      >>> with cj.loggers.to_jsonl(path) as log:
      ...     log.write("run", config={"period": 8})
      ...     log(8, {"loss": 0.5})
      >>> print(path.read_text())
      {"kind": "run", "config": {"period": 8}}
      {"kind": "round", "step": 8, "loss": 0.5}
    """
    with _open(path) as file:
        yield Logbook(file)


def read_jsonl(path: str | Path) -> Records:
    """The records of a log, grouped by kind, in order.

    Args:
      path: the file.

    Returns:
      A list of records for each kind.

    Examples:
      >>> path = getfixture("tmp_path") / "log.jsonl"
      >>> with cj.loggers.to_jsonl(path) as log:
      ...     log(8, {"loss": 0.5})
      >>> cj.loggers.read_jsonl(path)
      {'round': [{'step': 8, 'loss': 0.5}]}
    """
    records: Records = {}
    for line in Path(path).read_text().splitlines():
        record = json.loads(line)
        records.setdefault(record.pop("kind"), []).append(record)
    return records


@contextmanager
def to_csv(path: str | Path) -> Iterator[Logger]:
    """A table with a row for each call; each is on disk when the call returns.

    Args:
      path: the file; an old one is replaced, folders are made.

    Returns:
      A context manager that yields a logger and closes the file in the end. The first
      call names the columns.

    Raises:
      ValueError: in use, when a call has other names than the first.

    Examples:
      >>> path = getfixture("tmp_path") / "log.csv"
      >>> with cj.loggers.to_csv(path) as log:
      ...     log(8, {"loss": 0.5, "distance": 0.25})
      >>> print(path.read_text())
      step,loss,distance
      8,0.5,0.25
    """
    names: list[str] = []

    def log(count: int, scalars: Mapping[str, float]) -> None:
        if not names:
            names.extend(_named(scalars))
            rows.writerow(["step", *names])
        if scalars.keys() != set(names):
            raise ValueError(
                f"scalars has the names {list(scalars)}, but the columns are {names}; "
                "give the same in every call, or take to_jsonl."
            )
        rows.writerow([count, *(scalars[name] for name in names)])
        file.flush()

    with _open(path) as file:
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

    Examples:
      >>> folder = getfixture("tmp_path") / "run"
      >>> with cj.loggers.to_tensorboard(folder) as log:
      ...     log(8, {"loss": 0.5})
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise ImportError(
            "to_tensorboard needs tensorboardX: pip install 'cocod-jax[tensorboard]'"
        ) from error

    def log(count: int, scalars: Mapping[str, float]) -> None:
        for name, value in _named(scalars).items():
            writer.add_scalar(name, value, count)

    with SummaryWriter(str(folder)) as writer:
        yield log


def _named(scalars: Mapping[str, float]) -> Mapping[str, float]:
    """The scalars, if they have names.

    Raises:
      TypeError: when they have no names, as a round's metrics have none.
    """
    if not isinstance(scalars, Mapping):
        raise TypeError(
            f"scalars is a {type(scalars).__name__}, but must map names to numbers, as "
            "cj.loggers.scalars(metrics) does."
        )
    return scalars


@contextmanager
def _open(path: str | Path) -> Iterator[TextIO]:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        yield file
