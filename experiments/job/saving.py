"""What a run leaves of its model: checkpoints to go on from, and the model itself."""

import dataclasses
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

import cocod_jax as cj
from cocod_jax.observe.loggers import read_jsonl
from experiments import logbook
from experiments.command import UsageError, refused
from experiments.config import WITHOUT_INFLUENCE, RunConfig, from_plain
from experiments.processes import rendezvous

MODEL = "model.safetensors"
CHECKPOINTS = "checkpoints"
"""The folder of the states, each in one with the name of its step."""
LAUNCH = "launch"
"""The file that says which launch a run is of."""


class Position(NamedTuple):
    """Where a run is, beside its state.

    Attributes:
      step: local steps so far.
      lines: of its log.
      recorder: what the recorder remembers.
      equal: whether all workers have the same model, as after a change of their number.
    """

    step: int
    lines: int
    recorder: dict[str, Any]
    equal: bool = False


class Saver:
    """The checkpoints of one run; a context manager, alike in all processes.

    A run that does not resume replaces an earlier one of its name when :meth:`begin`
    is called, and not before.

    Args:
      config: of the run. It goes on where it is to resume, or where the same launch
        has begun it: that has restarted.
      digest: of its data.
      first: whether this is the process that writes the log.

    Raises:
      UsageError: when the processes share no folder, or it goes on in some alone.
    """

    def __init__(self, config: RunConfig, digest: str, *, first: bool):
        logging.getLogger("absl").addFilter(_has_no_traceback)
        self._config, self._first = config, first
        self._digest = digest
        if jax.process_count() > 1:
            _check_shared(config.out)
        self._goes_on = config.resume or _is_of_this_launch(config.folder)
        with refused():
            cj.workers.check_agreement({"resume": self._goes_on})
        self._checkpoints = self._opened() if self._goes_on else None

    def _opened(self) -> cj.execution.Checkpoints:
        folder = self._config.folder / CHECKPOINTS
        return cj.execution.Checkpoints(folder, keep=self._config.keep)

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if self._checkpoints is not None:
            self._checkpoints.__exit__(error)

    @property
    def has_begun(self) -> bool:
        """Whether what is there is this run's, and not that of an earlier one."""
        return self._checkpoints is not None

    @property
    def steps(self) -> list[int]:
        """Those from which this run can go on, in order."""
        return [] if self._checkpoints is None else self._checkpoints.steps

    def begin(self) -> None:
        """Makes room for a run that begins: what an earlier one has left is removed.

        All processes call it before the first :meth:`save`, when nothing can be refused
        any more.
        """
        if self._checkpoints is not None:
            return
        if self._first:
            shutil.rmtree(self._config.folder, ignore_errors=True)
            _say_launch(self._config.folder)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("an old run is gone")
        self._checkpoints = self._opened()

    def is_due(self, rounds: int) -> bool:
        """Whether to save after so many rounds, at an epoch's end or not."""
        every = self._config.save_rounds
        return every is not None and rounds % every == 0

    def save(
        self,
        step: int,
        state: cj.RoundState,
        recorder: dict[str, Any],
        score: float | None = None,
        *,
        equal: bool = False,
    ) -> None:
        """Saves all that the run needs to go on from here."""
        assert self._checkpoints is not None  # it has begun
        log = self._config.log
        lines = log.read_bytes().count(b"\n") if self._first else 0
        position = Position(step, lines, recorder, equal)
        own = _influential(self._config, self._digest)
        notes = {"config": own, **position._asdict()}
        self._checkpoints.save(step, state, notes=notes, score=score)

    def restored(self, like: cj.RoundState) -> tuple[cj.RoundState, Position] | None:
        """The last state and where it was; None for a run that begins.

        Raises:
          UsageError: when it is of another run, damaged, or its log is not there; or
            when all workers should be equal and one is not, such as that of a process
            that has joined them with a folder of its own.
        """
        with refused():
            # Without this, one with a folder of its own would leave the others waiting.
            cj.workers.check_agreement({"checkpoints": self.steps})
        try:
            found = self._checkpoints.restore(like) if self._checkpoints else None
        except ValueError as error:
            # One that is whole, and of something else, has no cause.
            way = "" if error.__cause__ is None else self._way_out()
            raise UsageError(f"{error}{way}") from None
        if found is None:
            return None
        known = {*Position._fields} & found.notes.keys()
        position = Position(**{name: found.notes[name] for name in known})
        own = _influential(self._config, self._digest)
        check_config(found.notes["config"], own, self._config.folder)
        if position.equal:
            _check_equal(found.state)
        if self._first:
            _cut(self._config.log, position.lines)
        return found.state, position

    def _way_out(self) -> str:
        """What to do about a last checkpoint that is damaged."""
        *others, last = self.steps
        if not others:
            return " Leave --resume out to begin anew."
        folder = self._config.folder / CHECKPOINTS / str(last)
        return f" When {folder} is deleted, --resume goes on from step {others[-1]}."


def _has_no_traceback(record: logging.LogRecord) -> bool:
    """Orbax logs what it raises as well, once for each of its threads."""
    return not record.exc_info


def _check_shared(folder: Path) -> None:
    """Raises UsageError, in all processes, unless they all see what the first writes.

    Otherwise they would train to the end and then wait for each other's files for ever.
    """
    own = np.frombuffer(os.urandom(8), np.uint8)
    word = np.asarray(multihost_utils.broadcast_one_to_all(own))
    file = folder / f".shared-{word.tobytes().hex()}"  # a new name: no cache knows it
    is_first = jax.process_index() == 0
    if is_first:
        folder.mkdir(parents=True, exist_ok=True)
        file.touch()
    multihost_utils.sync_global_devices("the first process has written")
    seen = np.ravel(multihost_utils.process_allgather(np.array(file.exists())))
    if is_first:
        file.unlink()
    if not seen.all():
        raise UsageError(
            f"{folder.absolute()} is not one folder for all processes: "
            f"{[*map(int, np.flatnonzero(~seen))]} do not see what process 0 writes in "
            "it. Give all of them a folder that they share, by --out."
        )


def check_config(saved: dict[str, Any], own: dict[str, Any], folder: Path) -> None:
    """Raises UsageError unless a run with the same configuration has saved it."""
    differ = [
        f"{name} was {saved.get(name)!r} and is {own.get(name)!r}"
        for name in sorted(saved | own)
        if saved.get(name) != own.get(name)
    ]
    if differ:
        raise UsageError(
            f"the checkpoints in {folder} are of another run: "
            f"{'; '.join(differ)}. Leave --resume out to begin anew."
        )


def _check_equal(state: cj.RoundState) -> None:
    """Raises UsageError unless the workers of all processes have the same model."""
    try:
        cj.workers.check_equal_start(state)
    except ValueError as error:
        raise UsageError(
            f"{error} Here they go on from a checkpoint of equal workers: give all "
            "processes the same folder."
        ) from None


def _influential(config: RunConfig, digest: str) -> dict[str, Any]:
    """What decides how the run goes: the data, and not where they are."""
    own = logbook.plain(config) | {"data_digest": digest}
    without = {*WITHOUT_INFLUENCE, "data_file"}
    return {name: own[name] for name in own if name not in without}


def _is_of_this_launch(folder: Path) -> bool:
    """Whether the launcher that started this process has started this run before."""
    launch, file = os.environ.get(rendezvous.LAUNCH), folder / LAUNCH
    return file.exists() and file.read_text() == launch


def _say_launch(folder: Path) -> None:
    if launch := os.environ.get(rendezvous.LAUNCH):
        folder.mkdir(parents=True)
        (folder / LAUNCH).write_text(launch)


def _cut(log: Path, lines: int) -> None:
    """Takes from a log what came after so many lines; a torn one as well."""
    text = log.read_bytes() if log.exists() else b""
    kept = text.splitlines(keepends=True)[:lines]
    if len(kept) < lines:
        raise UsageError(
            f"{log} has {len(kept)} lines, and the checkpoint was saved after {lines}: "
            "it is not the log of this run. Leave --resume out to begin anew."
        )
    part = log.with_suffix(".part")  # whoever kills this leaves one of the two whole
    part.write_bytes(b"".join(kept))
    part.replace(log)


def export(config: RunConfig, params: Any, model_state: Any) -> Path:
    """Writes the trained model: as a tree of Orbax, and as a file of safetensors.

    All processes must call it, with the same model.

    Returns:
      The file. It holds the configuration as well, which says what the model is.

    Raises:
      OSError: when it cannot be written, such as to a full disk.
    """
    tree, file = {"params": params, "model_state": model_state}, config.folder / MODEL
    tree = jax.device_get(tree)
    # Safetensors writes what is in memory, whatever the strides.
    arrays = {name: np.ascontiguousarray(x) for name, x in _named(tree).items()}
    metadata = {"config": json.dumps(logbook.plain(config))}
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save((config.folder / "model").absolute(), tree, force=True)
        if jax.process_index() == 0:
            save_file(arrays, file, metadata=metadata)
    except (OSError, ValueError, SafetensorError) as error:  # each by another writer
        why = str(error).partition("\n")[0]
        raise OSError(f"the model cannot be saved in {config.folder}: {why}") from error
    return file


def load(path: Path) -> tuple[RunConfig, dict[str, np.ndarray]]:
    """The configuration of a run, and the arrays of its model by their names.

    Args:
      path: the file that :func:`export` has written, or the folder that it is in.

    Raises:
      UsageError: when it is not there, or is none.
    """
    file = path / MODEL if path.is_dir() else path
    try:
        with safe_open(file, framework="numpy") as tensors:
            config = from_plain(json.loads((tensors.metadata() or {})["config"]))
            names = list(tensors.keys())
            arrays = {name: tensors.get_tensor(name) for name in names}
    except Exception as error:  # of the reader, which says what it is
        why = str(error).removesuffix(".")
        raise UsageError(f"{str(file)!r} is no trained model: {why}.") from None
    return config, arrays


def logged(run: Path) -> tuple[RunConfig, int]:
    """The configuration of a run as it was last, and how many workers it had.

    Args:
      run: its folder, beside which its log is.

    Raises:
      UsageError: when the log is not there, or is none.
    """
    run = run.absolute()  # or "." would have no name
    log = run.with_name(f"{run.name}.jsonl")
    try:
        records = read_jsonl(log)
        last = [*records["run"], *records.get("resized", [])][-1]
        config = dataclasses.replace(from_plain(last["config"]), out=run.parent)
        workers = last["workers"]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"{run} is no folder of a run: its log {log} cannot be read "
            f"({type(error).__name__}: {error})."
        ) from None
    return config, workers


def state_of(folder: Path, like: cj.RoundState) -> cj.RoundState:
    """The state of a checkpoint, whose run may be writing another one meanwhile.

    Args:
      folder: with the name of its step, beside those of other steps.
      like: a state of the same shapes.

    Raises:
      UsageError: when it is not there, damaged, or of another model.
    """
    with refused(), cj.execution.Checkpoints(folder.parent) as checkpoints:
        found = checkpoints.restore(like, int(folder.name))
    assert found is not None  # a step was asked for
    return found.state


def filled(like: Any, arrays: dict[str, np.ndarray]) -> tuple[Any, Any]:
    """The arrays as parameters and model state.

    Args:
      like: both, or their shapes.
      arrays: by their names.

    Raises:
      UsageError: when they are those of another model.
    """
    params, model_state = like
    tree = {"params": params, "model_state": model_state}
    wanted = {name: leaf.shape for name, leaf in _named(tree).items()}
    found = {name: array.shape for name, array in arrays.items()}
    if wanted != found:
        names = sorted(wanted | found)
        differ = [name for name in names if wanted.get(name) != found.get(name)]
        raise UsageError(
            f"the file is of another model: {', '.join(differ[:5])} "
            f"{'are' if len(differ) > 1 else 'is'} not what this one has."
        )
    leaves = [arrays[name] for name in _named(tree)]
    tree = jax.tree.unflatten(jax.tree.structure(tree), leaves)
    return tree["params"], tree["model_state"]


def _named(tree: Any) -> dict[str, Any]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree.leaves_with_path(tree)
    }
