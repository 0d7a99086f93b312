"""Gives a run another number of workers: ``python -m experiments.resize runs/NAME``.

It takes the last checkpoint of a run, in whatever number of processes that trained, and
makes one of a run with ``--workers`` workers, by the law of
:func:`cocod_jax.workers.resize`. That run has a name, a log and checkpoints of its own,
and goes on with ``python -m experiments.train --workers N --resume`` and the options of
the first one, which stays as it is.
"""

import dataclasses
import itertools
import math
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from rich.console import Console

import cocod_jax as cj
from cocod_jax.observe.loggers import to_jsonl
from experiments import command, logbook, train
from experiments.config import RunConfig
from experiments.job import saving
from experiments.job.layout import Layout
from experiments.options import Count, Options
from experiments.tasks import task_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResizeConfig(Options):
    """Which run, and how many workers go on with it."""

    run: tyro.conf.Positional[Path]
    """The folder of a run, with its checkpoints; its log is beside it."""
    workers: Count
    """How many workers there are from now on."""
    moments: Literal["mean", "nearest", "reset"] = "mean"
    """What becomes of the local optimizers' floats: their mean, those of the nearest
    worker, or those of the start."""


def main(config: ResizeConfig) -> None:
    """Makes the checkpoint, and says what has begun anew.

    Raises:
      UsageError: when there is no such run, it cannot be resized, or another run has
        the name that the new one would have.
    """
    before, workers = found(config.run)
    if config.workers == workers:
        raise command.UsageError(
            f"workers={workers}: {config.run} has {workers}; give another number."
        )
    if before.micro_batches is not None:
        raise command.UsageError(
            f"{config.run} has micro_batches={before.micro_batches}, one number for "
            "each worker: which of another number of workers has which is unknown. "
            "Train without --micro-batches."
        )
    after = dataclasses.replace(before, workers=config.workers)
    check_free(before, after)
    with tempfile.TemporaryDirectory(prefix=".resize-", dir=before.out) as folder:
        staged = dataclasses.replace(after, out=Path(folder))
        step, record = resized(before, workers, staged, config.moments)
        shutil.rmtree(after.folder, ignore_errors=True)
        os.replace(staged.folder, after.folder)
        os.replace(staged.log, after.log)
    say = Console(soft_wrap=True, highlight=False).print
    say(
        f"{after.folder} has {after.workers} workers and is at {record['epochs']:.4g} "
        f"epochs, step {step}; {before.folder} was at step {record['step_before']}."
    )
    if record["begun_anew"]:
        say(f"What each had for itself begins anew: {', '.join(record['begun_anew'])}.")
    say(f"Go on with the same options and --workers {after.workers} --resume.")


def found(run: Path) -> tuple[RunConfig, int]:
    """The configuration of a run as it was last, and how many workers it had.

    Raises:
      UsageError: when its log is not there, or is another run's.
    """
    config, workers = saving.logged(run)
    with command.refused():
        task_of(config)  # a text that is not there is said as that, not as another name
    if config.folder != run.absolute():
        raise command.UsageError(
            f"{run} has the log of a run with the name {config.folder.name}; give it "
            "that name again."
        )
    return dataclasses.replace(config, resume=True), workers


def check_free(before: RunConfig, after: RunConfig) -> None:
    """Raises UsageError when the name of the new run is another run's.

    A run that has grown or shrunk before may get an earlier number again: then what
    this run left of itself makes room.
    """
    if not (after.folder.exists() or after.log.exists()):
        return
    first_line = lambda config: config.log.read_bytes().partition(b"\n")[0]
    if not after.log.exists() or first_line(after) != first_line(before):
        raise command.UsageError(
            f"{after.folder} is another run, which began with {after.workers} workers; "
            "move it and its log away first."
        )


def resized(
    before: RunConfig, workers: int, after: RunConfig, moments: Any
) -> tuple[int, dict[str, Any]]:
    """Makes the log and the checkpoint of the new run.

    The new run is as many epochs along: its step is in its own steps, at the end of one
    of its rounds, and so are the counts of its optimizers, which decide the learning
    rate. The data are divided anew between its workers.

    Args:
      before: the run as it was.
      workers: how many it had.
      after: the run as it will be.
      moments: as :func:`cocod_jax.workers.resize` takes them.

    Returns:
      The step, and what the log says of the change.
    """
    assert after.workers is not None
    old, new = job_of(before, workers), job_of(after, after.workers)
    with saving.Saver(before, old.data.digest, first=False) as saver:
        last = saver.restored(beginning(old))
    if last is None:
        raise command.UsageError(f"{before.folder} has no checkpoint.")
    state, position = last
    state, begun_anew = cj.workers.resize(
        state, new.main, after.workers, moments=moments
    )
    step = same_place(old, position.step, new)
    counts = jnp.full([after.workers], step, jnp.int32)
    state = state._replace(
        count=counts, opt_state=optax.tree.set(state.opt_state, count=counts)
    )
    record = {
        "config": logbook.plain(dataclasses.replace(after, out=before.out)),
        "workers": after.workers,
        "workers_before": workers,
        "step": step,
        "step_before": position.step,
        "epochs": position.step / old.data.steps_per_epoch,
        "begun_anew": begun_anew,
    }
    lines = before.log.read_bytes().splitlines(keepends=True)[: position.lines]
    after.log.write_bytes(b"".join(lines))
    with to_jsonl(after.log, append=True) as log:
        log.write("resized", **record)
    with saving.Saver(after, new.data.digest, first=True) as saver:
        saver.begin()
        saver.save(step, state, position.recorder, equal=True)
    return step, record


def job_of(config: RunConfig, workers: int) -> train.Job:
    """The job with all workers on one device, where none of them trains.

    Raises:
      UsageError: when the data are not enough for so many.
    """
    devices = jax.devices()[:1] * workers * math.prod(config.sharing)
    try:
        return train.prepare(config, Layout(devices, *config.sharing))
    except ValueError as error:
        raise command.UsageError(f"workers={workers}: {error}") from None


def beginning(job: train.Job) -> cj.RoundState:
    """The state that all workers of such a job begin with."""
    key = jax.random.key(job.config.seed)
    start = job.main.init(*job.task.init(key), key=key)
    return cj.replicate(start, job.layout.workers)


def same_place(old: train.Job, step: int, new: train.Job) -> int:
    """The end of a round of the new run, as far along in epochs as a step of the old.

    It is the last one up to there; where an epoch had ended, the first one after it.
    """
    before, after = old.data.steps_per_epoch, new.data.steps_per_epoch
    periods = [[round_.period] * count for round_, count in train.phases(new)]
    ends = np.cumsum([0, *itertools.chain(*periods)])
    index = np.searchsorted(ends, step * after // before, side="right") - 1
    if ends[index] // after < step // before:
        index += 1
    return int(ends[index])


if __name__ == "__main__":
    command.run(main, ResizeConfig, __doc__)
