"""Trains a network with several workers: ``python -m experiments.train``.

With ``--task text`` it is a language model; ``--task text --help`` has its options.

The log is one JSON record a line: the circumstances of the run, then every round and
every epoch as it ends, so that a run that is stopped leaves a log that can be used.
"""

import dataclasses
import itertools
import math
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

import cocod_jax as cj
from cocod_jax.observe.loggers import Logbook, read_jsonl
from experiments import command, figures, logbook, progress, signals
from experiments.algorithms import make_rounds, total_steps
from experiments.command import UsageError
from experiments.config import WITHOUT_INFLUENCE, RunConfig, config_type, parse
from experiments.job import closing, saving, writers
from experiments.job.devices import devices_beside, start_devices
from experiments.job.forecast import forecast, sent_bytes
from experiments.job.layout import Layout, Met, shared_shapes
from experiments.job.recorder import Recorder
from experiments.models import parameter_count
from experiments.processes.pace import Pace
from experiments.processes.rendezvous import join_processes
from experiments.signals import exit_status
from experiments.tasks import Data, Task, task_of


class Job(NamedTuple):
    """What a configuration means, before anything has run."""

    config: RunConfig
    layout: Layout
    task: Task
    data: Data
    warm: cj.Round
    main: cj.Round


def prepare(config: RunConfig, layout: Layout) -> Job:
    """Loads the data, builds the model and the rounds, alike in all processes.

    Raises:
      UsageError: when the data, or the options together, cannot be trained on.
    """
    with command.refused():
        task = task_of(config)
        data = task.load(layout.workers)
        check_agreement(config, data)
        optimizer = task.optimizer(layout.workers, data.steps_per_epoch)
        warm, main = make_rounds(config, task.loss_fn, optimizer)
    return Job(config, layout, task, data, warm, main)


def layout_of(config: RunConfig) -> Layout:
    """The devices of a run, of all its processes."""
    processes = join_processes()
    each = math.prod(config.sharing)
    if processes > 1 and each == 1 and config.via != "pmap":
        raise UsageError(
            f"via={config.via!r} is for one process, or for workers of several "
            "devices; leave it out."
        )
    split = config.execution == "split"
    devices = start_devices(config.workers, each, processes, 2 if split else 1)
    beside = devices_beside(devices) if split else None
    return Layout(devices, *config.sharing, exchange_devices=beside)


def check_agreement(config: RunConfig, data: Data) -> None:
    """Makes sure that no process trains something else.

    Raises:
      UsageError: a ValueError, when one has another configuration or other data.
    """
    own = logbook.plain(config)
    settings = {name: own[name] for name in own if name not in WITHOUT_INFLUENCE}
    with command.refused():
        cj.workers.check_agreement({**settings, "data": data.digest})


def certifiable(argv: list[str], devices: int) -> tuple[cj.Round, Any, Any]:
    """The round of this job, and the shapes that it takes, for the certificate.

    ``python -m cocod_jax.certify experiments.train --target h100 --algorithm cocod``

    Args:
      argv: the command line of a run.
      devices: of all workers.

    Raises:
      ValueError: when the command line asks for other workers, or for an execution
        that is no one program.
    """
    config = parse(argv)
    each = math.prod(config.sharing)
    workers, rest = divmod(devices, each)
    if rest or config.workers not in (None, workers):
        raise ValueError(
            f"workers={config.workers}, on {each} devices each, but the certificate "
            f"is for devices={devices}; give the same number, or leave workers out."
        )
    if config.execution == "split":
        raise ValueError(
            "execution='split' runs a program for each step: there is no one schedule "
            "to read. Leave it out to certify the fused round, the default."
        )
    task = task_of(config)
    batches = task.batch_shapes(workers, config.period)
    # How many steps an epoch has decides the learning rates alone.
    optimizer = task.optimizer(workers, 100)
    _, round_ = make_rounds(config, task.loss_fn, optimizer)
    key = jax.random.key(config.seed)
    first = lambda: cj.replicate(round_.init(*task.init(key), key=key), workers)
    state = jax.eval_shape(first)
    if each > 1:
        sizes = workers, *config.sharing
        state, batches = shared_shapes(state, batches, sizes)
    return round_, state, batches


def phases(job: Job) -> list[tuple[cj.Round, int]]:
    """The rounds of a run in their order, and how often each comes in turn.

    The last round is whole: a run may be longer than its epochs by a part of one.
    """
    plan = cj.plans.stages({0: job.warm, job.config.warmup_rounds: job.main})
    total = total_steps(job.config, job.data.steps_per_epoch)
    step, rounds = 0, []
    while step < total:
        rounds.append(plan(step))
        step += rounds[-1].period
    return [(round_, len([*same])) for round_, same in itertools.groupby(rounds)]


def rounds_left(job: Job, step: int) -> list[tuple[cj.Round, int, int]]:
    """From the end of a round on: rounds, their first step and how many there are."""
    begin, left = 0, []
    for round_, count in phases(job):
        first, begin = max(step, begin), begin + round_.period * count
        if first < begin:
            left.append((round_, first, (begin - first) // round_.period))
    return left


def train(
    job: Job,
    log: Logbook,
    show: progress.Training,
    saver: saving.Saver,
    start: tuple[cj.RoundState, saving.Position | None],
    write: writers.Write,
) -> cj.RoundState:
    """Runs all rounds that are left; logs them, and each epoch as it ends.

    It saves the state after every epoch, and when a signal asks it to stop, at the end
    of a round.

    Args:
      job: what to do.
      log: where rounds and epochs are written.
      show: where they are shown.
      saver: keeps states.
      start: the state to begin with, and where it was, if not at the beginning.
      write: gets the numbers as well.

    Returns:
      The last state.

    Raises:
      Stopped: a KeyboardInterrupt, when it was asked to stop, and has saved.
    """
    config, data, (state, position) = job.config, job.data, start
    main = sent_bytes(config, job.main, state)
    warm = sent_bytes(config, job.warm, state) if config.warmup_rounds else 0
    recorder = Recorder(
        log,
        show,
        job.task,
        data.per_step,
        lambda step: warm if step <= config.warmup_rounds else main,
        write,
        config.micro_batches,
        job.layout.peak,
    )
    step = 0
    end = sum(round_.period * count for round_, count in phases(job))
    if position is not None:
        recorder.remember(position.recorder)
        step = position.step
    pace = Pace(
        config.folder,
        config.slow,
        show.alarm,
        process=jax.process_index(),
        number=jax.process_count(),
    )
    with recorder.flushed(), pace, signals.asked() as request:
        has_come = lambda: request.number is not None
        met: Callable[[], Met] = lambda: Met(job.layout.workers, asked=False)
        for run, period, batches in each_round(job, step, pace.dispatched):
            before, step = step, step + period
            met_before, met = met, job.layout.meet(step, has_come)
            state, metrics = run(state, batches)
            recorder.dispatched(step, metrics, met)
            score = None
            whole = step // data.steps_per_epoch
            ends_epoch = whole > before // data.steps_per_epoch
            if ends_epoch or step == end:
                recorder.flush()
                found = data.evaluate(*consensus(job, state))
                done = whole if ends_epoch else step / data.steps_per_epoch
                recorder.epoch_done(done, found)
                score = -found["test_loss"]
            if score is not None or saver.is_due(step // period):
                recorder.flush()
                saver.save(step, state, recorder.memory(), score)
            # Processes stop together, a round after one of them was asked to.
            if met_before().asked:
                break
        if step < end:
            recorder.flush()
            saver.save(step, state, recorder.memory())
            request.obey()
    return state


def each_round(
    job: Job, step: int, dispatched: Callable[[Any], None]
) -> Iterator[tuple[Any, int, Any]]:
    """From a step on: what runs the round, its period, and its batches."""
    for round_, first, count in rounds_left(job, step):
        run = job.layout.distribute(
            round_, dispatched, via=job.config.via, execution=job.config.execution
        )
        for batches in job.data.rounds(
            first_step=first,
            period=round_.period,
            count=count,
            workers=job.layout.own_workers,
        ):
            yield run, round_.period, batches


def consensus(job: Job, state: cj.RoundState) -> tuple[Any, Any]:
    """The parameters and the model state to evaluate, on one device of each process."""
    device = job.layout.own_device
    return cj.consensus(state, device), cj.consensus_model_state(state, device)


def main(config: RunConfig) -> int:
    """Trains, and leaves a log, a figure and a table; returns the exit status.

    All processes train and evaluate; the first one speaks and writes.
    """
    writers.check_installed(config)
    layout, status, sample, model = layout_of(config), 0, None, None
    first = jax.process_index() == 0
    console = Console(quiet=not first)
    path = config.log if first else Path(os.devnull)
    with progress.report(console) as reporter:
        reporter.now(f"loading {config.subject} and building {config.model}")
        job = prepare(config, layout)
        for note in job.data.notes:
            reporter.line(note)
        size = {
            "workers": job.layout.workers,
            "parameters": parameter_count(job.task.init),
        }
        rounds = sum(count for _, count in phases(job))
        saver = saving.Saver(config, job.data.digest, first=first)
        try:
            with saver:
                start = beginning(job, saver)
                position = start[1]
                resumed = None if position is None else position.step
                left = sum(count for *_, count in rounds_left(job, resumed or 0))
                reporter.line("Compiling; the first epoch takes longest.")
                reporter.now("compiling", rounds - left, rounds)
                show = progress.Training(
                    reporter, config.epochs, rounds, job.task.unit, rounds - left
                )
                said = None
                if config.forecast and resumed is None:
                    reporter.now("measuring for the forecast")
                    said = forecast(config, layout, job.task, job.data)
                saver.begin()
                goes_on = resumed if first else None  # others have no log to go on in
                beside = config if first else dataclasses.replace(config, writers=())
                with (
                    writers.opened(beside, resumed=resumed is not None) as write,
                    logbook.opened(path, config, resumed=goes_on, **size) as log,
                ):
                    if job.data.notes and resumed is None:
                        log.write("data", notes=job.data.notes)
                    if said is not None:
                        log.write("forecast", **said)
                    state = train(job, log, show, saver, start, write)
                    trained = consensus(job, state)
                    model = saving.export(config, *trained)
                    if job.data.sample is not None:
                        reporter.now("writing a sample")
                        sample = job.data.sample(*trained)
                        log.write("sample", text=sample)
        except KeyboardInterrupt as stop:
            reporter.line(closing.interrupted(saver))
            status = exit_status(stop)
            if not (saver.has_begun and path.exists()):
                return status
    if not first:
        return status
    epochs = read_jsonl(path).get("epoch", [])
    if epochs:
        figures.training_curves([path], path.with_suffix(".png"))
    page = closing.page_of(path, console)
    if sample is not None:
        console.print(Panel(Text(sample), title="what the consensus writes"))
    console.print(closing.table(config, layout, job.task, epochs, path, page, model))
    return status


def beginning(
    job: Job, saver: saving.Saver
) -> tuple[cj.RoundState, saving.Position | None]:
    """The state to begin with; and where it was, of a run that goes on."""
    key = jax.random.key(job.config.seed)
    state = job.layout.initial_state(job.main, job.task.init, key)
    cj.workers.check_equal_start(state)
    found = saver.restored(state)
    return (state, None) if found is None else found


if __name__ == "__main__":
    command.run(main, config_type(sys.argv[1:]), __doc__)
