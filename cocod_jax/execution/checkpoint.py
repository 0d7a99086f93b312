"""States of a run on disk, with Orbax: ``pip install 'cocod-jax[checkpoint]'``.

Between two rounds nothing is in flight: the state of all workers is all of a run but
its data, and that is a function of the step in most pipelines.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from cocod_jax._checks import check_counts, check_kind, check_paths, check_whole
from cocod_jax._text import shown
from cocod_jax._trees import check_arrays
from cocod_jax.execution._arrays import (
    Unlike,
    abstract,
    check_same_arrays,
    of_all_processes,
    restored_like,
    to_save,
)
from cocod_jax.execution._checksums import check_sums, summing
from cocod_jax.rounds._checks import check_workers
from cocod_jax.rounds._types import RoundState


class Restored(NamedTuple):
    """What :meth:`Checkpoints.restore` brings back.

    Attributes:
      step: local steps that had been taken.
      state: of all workers, like the one that it was asked for by.
      notes: what was saved beside it.
    """

    step: int
    state: RoundState
    notes: dict[str, Any]


class Checkpoints:
    """The states of one run in a folder: the last ones, and the best.

    A context manager. :meth:`save` copies a state and returns; it is written in the
    background, and a checkpoint is there when all of it is: one that a kill tears is
    none. Another program may read them meanwhile. With several processes all of them
    must call every method, with their own part of the state, on one folder that they
    share.

    Args:
      folder: where they are; it is made.
      keep: how many of the last ones stay, at least 1. The one with the highest score
        stays as well.

    Raises:
      ImportError: when Orbax is not installed; it says how to install it.
      NotADirectoryError: when ``folder`` is a file.
      TypeError: when ``folder`` is no path.
      ValueError: when ``keep`` is not an integer of at least 1, or the folder has
        something else with a number for a name, such as Orbax's own checkpoints.

    Examples:
      >>> loss = lambda w, batch: 0.5 * (w - batch) ** 2
      >>> round_ = cj.make_round(loss, optax.sgd(0.5), cj.cocod("workers"), period=2)
      >>> run = cj.distribute(round_, via="vmap")
      >>> state = cj.replicate(round_.init(jnp.array(8.0)), 2)
      >>> folder, batches = getfixture("tmp_path"), np.zeros([2, 2], np.float32)
      >>> with cj.execution.Checkpoints(folder) as checkpoints:
      ...     state, _ = run(state, batches)
      ...     checkpoints.save(2, state, notes={"seed": 0})

      In the next program:

      >>> fresh = cj.replicate(round_.init(jnp.array(0.0)), 2)
      >>> with cj.execution.Checkpoints(folder) as checkpoints:
      ...     step, state, notes = checkpoints.restore(fresh)
      >>> print(step, state.params, notes)
      2 [2. 2.] {'seed': 0}
    """

    def __init__(self, folder: str | Path, *, keep: int = 2):
        check_paths(folder=folder)
        check_counts(keep=keep)
        self._folder = Path(folder).absolute()
        if self._folder.exists() and not self._folder.is_dir():
            raise NotADirectoryError(
                f"folder={str(folder)!r} is a file; give a folder."
            )
        self._ocp, self._keep, self._is_open = _orbax(), keep, True
        self._saved: int | None = None
        self._manager = self._opened(to_write=False)
        for step in self.steps:
            if _is_foreign(self._folder / str(step)):
                self._manager.close()
                raise ValueError(
                    f"folder={str(folder)!r} has something else than states of a run: "
                    f"{step} is no checkpoint of theirs. Give a folder of its own."
                )

    def _opened(self, *, to_write: bool) -> Any:
        """Orbax's manager. One that writes removes what killed runs have left.

        One that only reads must not: that may be what another program is writing.
        """
        ocp = self._ocp
        policies = ocp.checkpoint_managers
        score = lambda metrics: metrics["score"]
        best = policies.BestN(
            get_metric_fn=score, n=1, keep_checkpoints_without_metrics=False
        )
        to_keep = policies.AnyPreservationPolicy([policies.LatestN(self._keep), best])
        return ocp.CheckpointManager(
            self._folder,
            item_handlers={
                "state": summing(ocp.StandardCheckpointHandler()),
                "notes": summing(ocp.JsonCheckpointHandler()),
            },
            options=ocp.CheckpointManagerOptions(
                preservation_policy=to_keep, cleanup_tmp_directories=to_write
            ),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self._is_open = False
        with self._writes() if error is None else suppress(OSError, ValueError):
            self._manager.close()

    @property
    def steps(self) -> list[int]:
        """Those of all checkpoints, in order."""
        return sorted(self._manager.all_steps())

    @property
    def best(self) -> int | None:
        """The step of the one with the highest score; None without any score.

        Raises:
          ValueError: when one is damaged, naming the steps of the others.
        """
        self.wait()
        scores = {}
        for step in self.steps:
            with self._reads(step):
                scores[step] = self._notes(step)["score"]
        known = [step for step, score in scores.items() if score is not None]
        return max(known, key=lambda step: scores[step], default=None)

    def save(
        self,
        step: int,
        state: RoundState,
        *,
        notes: Mapping[str, Any] | None = None,
        score: float | None = None,
    ) -> None:
        """Saves the state of all workers, unless this has just saved this step.

        It waits for the round that makes the state, and for the checkpoint before.
        Steps only go up: one that is not above all that are in the folder is refused,
        since the last is what :meth:`restore` brings back.

        Args:
          step: local steps so far.
          state: as a run returned it; it may be given to a run when this returns.
          notes: what else there is to know, as JSON: a configuration, a position.
          score: how good it is; more is better. NaN is as good as none.

        Raises:
          TypeError: when ``state`` is not a RoundState, or a leaf of it no array; when
            ``notes`` is no mapping that JSON can hold, or ``score`` no number.
          ValueError: when ``step`` is not an integer of 0 or more, or not above those
            in the folder; when ``state`` has no axis of workers, two leaves have one
            name, or the context manager has ended.
          OSError: when it cannot be written, such as to a full disk; earlier
            checkpoints stay. An error in the background comes with the next call.
        """
        if not self._is_open:
            raise ValueError(
                f"step={step} cannot be saved: these checkpoints are closed. Save "
                "within their with statement."
            )
        check_whole(step=step)
        check_workers(state)
        check_arrays(state, "state")
        own = {"score": _as_score(score), "notes": _as_json(notes)}
        steps = self.steps
        if steps and step <= steps[-1]:
            if step == steps[-1] == self._saved:
                return
            raise ValueError(
                f"step={step} cannot be saved in {self._folder}, which has {steps}: "
                f"step {steps[-1]} would stay the last one. To go on from an earlier "
                "one, remove the folders of those after it before this one is opened. "
                "A new run needs a folder of its own."
            )
        args, named = self._ocp.args, to_save(state)
        with self._writes():
            if self._saved is None:
                reading, self._manager = self._manager, self._opened(to_write=True)
                reading.close()
            self._manager.save(
                step,
                args=args.Composite(
                    state=args.StandardSave(of_all_processes(named)),
                    notes=args.JsonSave(own),
                ),
                metrics=None if own["score"] is None else {"score": own["score"]},
            )
        self._saved = step

    def wait(self) -> None:
        """Waits until all that was saved is on disk; raises OSError as :meth:`save`."""
        with self._writes():
            self._manager.wait_until_finished()

    @contextmanager
    def _writes(self) -> Iterator[None]:
        """Raises OSError for what Orbax raises of it, a ValueError when a disk is full.

        The error may be that of an earlier state, which was written in the background.
        """
        try:
            yield
        except (OSError, ValueError) as error:
            self._manager.reload()  # forgets the one that is not there
            raise OSError(
                f"a state cannot be saved in {self._folder}, where those of steps "
                f"{self.steps} stay: {_first_line(error)}"
            ) from error

    def restore(self, like: RoundState, step: int | None = None) -> Restored | None:
        """Reads a state back, to the bit.

        Files whose checksums are not those of what was written are refused. With
        several processes each compares some of them.

        Args:
          like: a state of the same shapes, as ``replicate`` makes it; each array comes
            back to where that one's is.
          step: which; None is the last.

        Returns:
          The step, the state and the notes; None where there is no checkpoint.

        Raises:
          TypeError: when ``like`` is not a RoundState.
          ValueError: when there is no such step; when arrays are missing, unknown or of
            another shape or type, naming them: it is of another model, optimizer,
            rule or number of workers; or when its files are damaged, naming the steps
            of the others.
        """
        check_workers(like)
        self.wait()
        step = self._manager.latest_step() if step is None else step
        if step is None:
            return None
        if step not in self.steps:
            raise ValueError(
                f"step={step} is not in {self._folder}, which has {self.steps}."
            )
        wanted = of_all_processes(to_save(like))
        args = self._ocp.args
        with self._reads(step):
            check_sums(self._folder / str(step))
            saved = self._manager.item_metadata(step)["state"]
            check_same_arrays(saved, wanted, f"the checkpoint of step {step}")
            found = self._manager.restore(
                step,
                args=args.Composite(
                    state=args.StandardRestore(jax.tree.map(abstract, wanted))
                ),
            )
            notes = self._notes(step)["notes"]
        return Restored(step, restored_like(found["state"], like), notes)

    @contextmanager
    def _reads(self, step: int) -> Iterator[None]:
        """Raises ValueError for what is raised of whichever file of a checkpoint."""
        try:
            yield
        except Unlike:
            raise
        except Exception as error:
            others = [each for each in self.steps if each != step]
            raise ValueError(
                f"the checkpoint of step {step} in {self._folder} is damaged: "
                f"{_first_line(error)} Others are of steps {others}: restore one of "
                "them by its step."
            ) from error

    def _notes(self, step: int) -> dict[str, Any]:
        """The score and the notes that were saved."""
        of_notes = self._ocp.args.Composite(notes=self._ocp.args.JsonRestore())
        return self._manager.restore(step, args=of_notes)["notes"]


def _as_score(score: float | None) -> float | None:
    if score is None:
        return None
    if np.ndim(score) or np.asarray(score).dtype.kind not in "iuf":
        raise TypeError(f"score={shown(score)} must be a number, or None.")
    return None if np.isnan(score) else float(score)


def _as_json(notes: Mapping[str, Any] | None) -> dict[str, Any]:
    """The notes, before they are written: Orbax would wait minutes for what failed."""
    check_kind(Mapping, notes={} if notes is None else notes)
    try:
        return json.loads(json.dumps(dict(notes or {})))
    except (TypeError, ValueError) as error:
        raise TypeError(f"notes={shown(notes)} must be JSON: {error}.") from None


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _orbax() -> Any:
    try:
        import orbax.checkpoint
    except ImportError as error:
        raise ImportError(
            "Checkpoints need Orbax: pip install 'cocod-jax[checkpoint]'"
        ) from error
    return orbax.checkpoint


def _is_foreign(step: Path) -> bool:
    """Whether another program made a folder; one that is being removed may be ours."""
    of_orbax = {"metrics", "_CHECKPOINT_METADATA", "commit_success.txt"}
    names = {path.name for path in step.glob("*")}
    return bool(names - of_orbax) and not names & {"state", "notes"}
