"""One page of a run, drawn from its log: ``python -m cocod_jax.observe RUN``.

The page needs nothing but itself: it holds its figures, has no script, and asks no
network for anything. It has loss and accuracy, throughput, what was sent and what of it
was exposed, the forecast and how far off it was, the workers one by one, participation,
alarms, faults and restarts, and the configuration. A part whose records a log lacks
says so in a sentence.

The records are those of :mod:`cocod_jax.observe.plots`, and

* "round" with "seconds" since the epoch began, and "sent_bytes" of a worker;
* "workers" with the "step" and a list for each name, a number for each worker, as
  :func:`cocod_jax.observe.loggers.per_worker` makes them;
* "forecast" with "seconds_per_step", "advice" (sentences), and "measured", which has
  the "tc" of :func:`cocod_jax.measure`;
* "alarm" with "step" and "sentence", "resumed" with "step", and "end" with "status";
* "resized", from where on there are other "workers": with "step", from which the log
  counts on, and "step_before", where it was in the count of before.

Records of other kinds are listed as they are.
"""

import contextlib
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

from cocod_jax._checks import check_paths
from cocod_jax._text import human_bytes
from cocod_jax.observe import _events, _sections
from cocod_jax.observe import _html as html
from cocod_jax.observe._run import Run, read_run

_PARTS: dict[str, Callable[[Run], str]] = {
    "Loss and accuracy": _sections.learning,
    "Throughput": _sections.throughput,
    "Communication": _sections.communication,
    "Forecast": _sections.forecast,
    "Workers": _sections.workers,
    "Participation": _events.participation,
    "Faults and restarts": _events.faults,
    "Notes": _events.notes,
    "Circumstances": _events.circumstances,
}
# What numbers, names and lists may raise that are others than those of a run.
_ODD = (
    *(ArithmeticError, AttributeError, LookupError),
    *(RecursionError, TypeError, ValueError),
)


def render(log: str | Path) -> str:
    """The page of a run.

    Args:
      log: the JSONL file of the run.

    Returns:
      HTML, the same for the same log.

    Raises:
      ImportError: when matplotlib is not installed; it says how to install it.
      OSError: when the log cannot be read.
      TypeError: when ``log`` is no path.
      ValueError: when it holds no record, or one of its lines is none.

    Examples:
      >>> path = getfixture("tmp_path") / "log.jsonl"
      >>> with cj.loggers.to_jsonl(path) as log:
      ...     for step in 8, 16:
      ...         log(step, {"loss": 1 / step})
      >>> page = cj.observe.page.render(path)
      >>> page.count("<svg")
      1
    """
    check_paths(log=log)
    run = read_run(Path(log))
    with warnings.catch_warnings(action="ignore"):  # of numbers that are not finite
        parts = [f"<h1>{html.escaped(run.name)}</h1>\n", _subtitle(run), _tiles(run)]
        for title, part in _PARTS.items():
            try:
                body = part(run)
            except _ODD as error:
                # A record of another program may hold anything; the other parts stay.
                words = f"The log's records cannot be shown here: {error}"
                body = html.paragraph(words, "alarm")
            if body:
                parts.append(html.section(title, body))
    return html.document(f"{run.name}: a run of cocod_jax", "".join(parts))


def write(log: str | Path) -> Path:
    """Writes the page of a run beside its log.

    Args:
      log: the JSONL file of the run.

    Returns:
      The page's path, that of the log with the ending ``.html``.

    Raises:
      ImportError: when matplotlib is not installed; it says how to install it.
      OSError: when the log cannot be read, or the page not be written, such as to a
        full disk. An earlier page stays.
      TypeError: when ``log`` is no path.
      ValueError: when the log holds no record, or one of its lines is none.

    Examples:
      >>> path = getfixture("tmp_path") / "log.jsonl"
      >>> with cj.loggers.to_jsonl(path) as log:
      ...     log(8, {"loss": 0.5})
      >>> cj.observe.page.write(path).name
      'log.html'
    """
    check_paths(log=log)
    out = Path(log).with_suffix(".html")
    text, new = render(log), out.with_suffix(".html.new")
    try:
        new.write_text(text, "utf-8")
        os.replace(new, out)
    except BaseException:
        with contextlib.suppress(OSError):
            new.unlink()
        raise
    return out


def log_of(run: str | Path) -> Path:
    """The log of a run, by its log or its folder.

    Args:
      run: a JSONL file; or a folder that has one, or that one lies beside, of the same
        name.

    Returns:
      The path of its log.

    Raises:
      TypeError: when ``run`` is no path.
      ValueError: when there is none, or a folder has several.

    Examples:
      >>> folder = getfixture("tmp_path")
      >>> with cj.loggers.to_jsonl(folder / "log.jsonl") as log:
      ...     log(8, {"loss": 0.5})
      >>> cj.observe.page.log_of(folder).name
      'log.jsonl'
    """
    check_paths(run=run)
    path = Path(run)
    if path.is_file():
        return path
    path = Path(os.path.abspath(path))  # "." has no name
    beside = path.parent / f"{path.name}.jsonl"
    if beside.is_file():
        return beside
    if not path.is_dir():
        raise ValueError(f"{path} is neither a log nor the folder of a run.")
    logs = sorted(path.glob("*.jsonl"))
    if len(logs) != 1:
        names = ", ".join(log.name for log in logs[:5]) or "none"
        raise ValueError(f"{path} must have one .jsonl file, but has {names}; name it.")
    return logs[0]


def _subtitle(run: Run) -> str:
    first = run.circumstances
    said = [str(first[name]) for name in ("time", "commit") if first.get(name)]
    return html.paragraph(", ".join(["a run of cocod_jax", *said]), "soft")


def _tiles(run: Run) -> str:
    """The numbers that one looks for first."""
    last = run.epochs[-1] if run.epochs else {}
    values: dict[str, object] = {}
    if run.rounds:
        values["local steps"] = f"{run.rounds[-1]['step']:,.0f}"
        values["rounds"] = f"{len(run.rounds):,}"
    if run.sizes:
        values["workers"] = ", then ".join(str(size) for _, size in run.sizes)
    loss = last.get("train_loss", run.rounds[-1].get("loss") if run.rounds else None)
    if loss is not None:
        values["training loss"] = f"{loss:.4g}"
    if "test_accuracy" in last:
        values["test accuracy"] = f"{last['test_accuracy']:.2%}"
    elif "test_loss" in last:
        values["test loss"] = f"{last['test_loss']:.4g}"
    if run.step_seconds:
        step = np.median([row["step_seconds"] for row in run.step_seconds])
        values["seconds of a step"] = f"{step:.3g}"
    if sent := sum(row.get("sent_bytes", 0) for row in run.rounds):
        values["sent by a worker"] = human_bytes(sent)
    alarms = len(run.records.get("alarm", []))
    values["alarms"], values["restarts"] = alarms, len(run.records.get("resumed", []))
    if ends := run.records.get("end"):
        values["ended"] = ends[-1].get("status", "")
    return html.tiles(values)
