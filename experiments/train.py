"""Trains a network with several workers: ``python -m experiments.train``.

With ``--task text`` it is a language model; ``--task text --help`` has its options.

The log is one JSON record a line: the circumstances of the run, then every round and
every epoch as it ends, so that a run that is stopped leaves a log that can be used.
"""

import itertools
import math
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

import cocod_jax as cj
from cocod_jax.observe.loggers import Logbook, read_jsonl
from experiments import command, figures, logbook, progress
from experiments.algorithms import make_rounds, total_steps
from experiments.command import UsageError
from experiments.config import WITHOUT_INFLUENCE, RunConfig, config_type, parse
from experiments.devices import start_devices
from experiments.layout import Layout, shared_shapes
from experiments.models import parameter_count
from experiments.recorder import Recorder
from experiments.rendezvous import join_processes
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
    """Loads the data, builds the model and the rounds, alike in all processes."""
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
    return Layout(start_devices(config.workers, each, processes), *config.sharing)


def check_agreement(config: RunConfig, data: Data) -> None:
    """Makes sure that no process trains something else.

    Raises:
      UsageError: a ValueError, when one has another configuration or other data.
    """
    own = logbook.plain(config)
    settings = {name: own[name] for name in own if name not in WITHOUT_INFLUENCE}
    try:
        cj.workers.check_agreement({**settings, "data": data.digest})
    except ValueError as error:
        raise UsageError(error) from None


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


def train(job: Job, log: Logbook, show: progress.Training) -> cj.RoundState:
    """Runs all rounds and logs them, and each epoch as it ends; returns the end."""
    config, data = job.config, job.data
    key = jax.random.key(config.seed)
    state = job.layout.initial_state(job.main, job.task.init, key)
    cj.workers.check_equal_start(state)
    recorder = Recorder(
        log, show, job.task, data.per_step, config.micro_batches, job.layout.peak
    )
    end = sum(round_.period * count for round_, count in phases(job))
    step, epoch = 0, 0
    try:
        for round_, count in phases(job):
            run = job.layout.distribute(
                round_, via=config.via, execution=config.execution
            )
            for batches in data.rounds(
                first_step=step,
                period=round_.period,
                count=count,
                workers=job.layout.own_workers,
            ):
                state, metrics = run(state, batches)
                step += round_.period
                recorder.dispatched(step, metrics)
                whole = step // data.steps_per_epoch
                if whole > epoch or step == end:
                    done = whole if whole > epoch else step / data.steps_per_epoch
                    epoch = whole
                    recorder.flush()
                    recorder.epoch_done(done, job.data.evaluate(*consensus(job, state)))
    finally:
        recorder.flush()
    return state


def consensus(job: Job, state: cj.RoundState) -> tuple[Any, Any]:
    """The parameters and the model state to evaluate, on one device of each process."""
    device = job.layout.own_device
    return cj.consensus(state, device), cj.consensus_model_state(state, device)


def main(config: RunConfig) -> int:
    """Trains, and leaves a log, a figure and a table; returns the exit status.

    All processes train and evaluate; the first one speaks and writes.
    """
    layout, status, sample = layout_of(config), 0, None
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
        reporter.line("Compiling; the first epoch takes longest.")
        rounds = sum(count for _, count in phases(job))
        reporter.now("compiling", 0, rounds)
        show = progress.Training(reporter, config.epochs, rounds, job.task.unit)
        try:
            with logbook.opened(path, config, **size) as log:
                if job.data.notes:
                    log.write("data", notes=job.data.notes)
                state = train(job, log, show)
                if job.data.sample is not None:
                    reporter.now("writing a sample")
                    sample = job.data.sample(*consensus(job, state))
                    log.write("sample", text=sample)
        except KeyboardInterrupt as stop:
            reporter.line("Interrupted; the log holds everything up to here.")
            status = exit_status(stop)
    if not first:
        return status
    epochs = read_jsonl(path).get("epoch", [])
    if epochs:
        figures.training_curves([path], path.with_suffix(".png"))
    if sample is not None:
        console.print(Panel(Text(sample), title="what the consensus writes"))
    console.print(closing_table(job, epochs, path))
    return status


def closing_table(job: Job, epochs: list[dict[str, float]], path: Path) -> Table:
    """What came out, and where it is."""
    table = Table(show_header=False, title=f"{job.config.algorithm}", min_width=60)
    layout = job.layout
    shape = f"{layout.workers} workers on {layout.devices[0].platform}"
    if layout.each > 1:
        shape += f", {layout.each} devices each"
    if jax.process_count() > 1:
        shape += f", {jax.process_count()} processes"
    table.add_row("run", f"{job.config.model} on {job.config.subject}, {shape}")
    table.add_row("parameters", f"{parameter_count(job.task.init):,}")
    if epochs:
        last, unit = epochs[-1], job.task.unit
        name, value = job.task.result(last)
        table.add_row("epochs", f"{last['epoch']:.4g}")
        table.add_row("training loss", f"{last['train_loss']:.4f}")
        table.add_row(name, f"{value} (consensus)")
        table.add_row("speed", f"{last[f'{unit}_per_second']:,.0f} {unit}/s")
        if (utilisation := last.get("model_flops_utilisation")) is not None:
            table.add_row("model FLOPs utilisation", f"{utilisation:.1%}")
        table.add_row("figure", str(path.with_suffix(".png")))
    table.add_row("log", str(path))
    return table


if __name__ == "__main__":
    command.run(main, config_type(sys.argv[1:]), __doc__)
