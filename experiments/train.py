"""Trains a network with several workers: ``python -m experiments.train``.

The log is one JSON record a line: the circumstances of the run, then every round and
every epoch as it ends, so that a run that is stopped leaves a log that can be used.
"""

import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import tyro
from rich.console import Console
from rich.table import Table

import cocod_jax as cj
from cocod_jax.observe.loggers import Logbook, read_jsonl
from experiments import command, figures, logbook, progress
from experiments.algorithms import AXIS, local_optimizer, make_rounds
from experiments.config import TrainConfig
from experiments.devices import start_devices
from experiments.models import parameter_count
from experiments.recorder import Recorder
from experiments.signals import exit_status
from experiments.tasks import Data, Task, task_of


class Job(NamedTuple):
    """What a configuration means, before anything has run."""

    config: TrainConfig
    devices: list[jax.Device]
    task: Task
    data: Data
    warm: cj.Round
    main: cj.Round


def prepare(config: TrainConfig) -> Job:
    """Loads the data, builds the model and the rounds."""
    devices = start_devices(config.workers)
    task = task_of(config)
    data = task.load(len(devices))
    optimizer = local_optimizer(config, len(devices), data.steps_per_epoch)
    warm, main = make_rounds(config, task.loss_fn, optimizer)
    return Job(config, devices, task, data, warm, main)


def certifiable(argv: list[str], devices: int) -> tuple[cj.Round, Any, Any]:
    """The round of this job, and the shapes that it takes, for the certificate.

    ``python -m cocod_jax.certify experiments.train --target h100 --algorithm cocod``

    Args:
      argv: the command line of a run.
      devices: the number of workers.

    Raises:
      ValueError: when the command line asks for other workers, or for an execution
        that is no one program.
    """
    config = tyro.cli(TrainConfig, args=argv)
    if config.workers not in (None, devices):
        raise ValueError(
            f"workers={config.workers}, but the certificate is for devices={devices}; "
            "give the same number, or leave workers out."
        )
    if config.execution == "split":
        raise ValueError(
            "execution='split' runs a program for each step: there is no one schedule "
            "to read. Leave it out to certify the fused round, the default."
        )
    task = task_of(config)
    batches = task.batch_shapes(devices, config.period)
    # The learning rate's schedule has no influence on the program but constants.
    optimizer = local_optimizer(config, devices, steps_per_epoch=100)
    _, round_ = make_rounds(config, task.loss_fn, optimizer)
    state = jax.eval_shape(lambda: initial_state(config, round_, task, devices))
    return round_, state, batches


def initial_state(
    config: TrainConfig, round_: cj.Round, task: Task, workers: int
) -> cj.RoundState:
    """The initial values of the seed, the same on all workers."""
    key = jax.random.key(config.seed)
    return cj.replicate(round_.init(*task.init(key), key=key), workers)


def number_of_rounds(job: Job) -> tuple[int, int]:
    """How many rounds warm up, and how many follow.

    The last round is whole: a run may be longer than its epochs by a part of one.
    """
    total = job.config.epochs * job.data.steps_per_epoch
    warm = min(job.config.warmup_rounds, total)
    return warm, math.ceil((total - warm) / job.main.period)


def train(job: Job, log: Logbook, show: progress.Training) -> None:
    """Runs all rounds and logs them, and each epoch as it ends."""
    config, data = job.config, job.data
    state = initial_state(config, job.main, job.task, len(job.devices))
    cj.workers.check_equal_start(state)
    recorder = Recorder(log, show, job.task, data.per_step, config.micro_batches)
    step, epoch = 0, 0
    try:
        for round_, count in zip(
            (job.warm, job.main), number_of_rounds(job), strict=True
        ):
            run = cj.distribute(
                round_,
                AXIS,
                via=config.via,
                execution=config.execution,
                devices=job.devices,
            )
            for batches in data.rounds(
                first_step=step, period=round_.period, count=count
            ):
                state, metrics = run(state, batches)
                step += round_.period
                recorder.dispatched(step, metrics)
                if step // data.steps_per_epoch > epoch:
                    epoch = step // data.steps_per_epoch
                    recorder.flush()
                    recorder.epoch_done(epoch, evaluate(job, state))
    finally:
        recorder.flush()


def evaluate(job: Job, state: cj.RoundState) -> dict[str, float]:
    """The consensus of the workers on the test data."""
    device = job.devices[0]
    params = cj.consensus(state, device)
    return job.data.evaluate(params, cj.consensus_model_state(state, device))


def main(config: TrainConfig) -> int:
    """Trains, and leaves a log, a figure and a table; returns the exit status."""
    console, path, status = Console(), config.log, 0
    with progress.report(console) as reporter:
        reporter.now(f"loading {config.data} and building {config.model}")
        job = prepare(config)
        size = {
            "workers": len(job.devices),
            "parameters": parameter_count(job.task.init),
        }
        reporter.line("Compiling; the first epoch takes longest.")
        rounds = sum(number_of_rounds(job))
        reporter.now("compiling", 0, rounds)
        show = progress.Training(reporter, config.epochs, rounds, job.task.unit)
        try:
            with logbook.opened(path, config, **size) as log:
                train(job, log, show)
        except KeyboardInterrupt as stop:
            reporter.line("Interrupted; the log holds everything up to here.")
            status = exit_status(stop)
    epochs = read_jsonl(path).get("epoch", [])
    if epochs:
        figures.training_curves([path], path.with_suffix(".png"))
    console.print(closing_table(job, epochs, path))
    return status


def closing_table(job: Job, epochs: list[dict[str, float]], path: Path) -> Table:
    """What came out, and where it is."""
    table = Table(show_header=False, title=f"{job.config.algorithm}", min_width=60)
    shape = f"{len(job.devices)} workers on {job.devices[0].platform}"
    table.add_row("run", f"{job.config.model} on {job.config.data}, {shape}")
    table.add_row("parameters", f"{parameter_count(job.task.init):,}")
    if epochs:
        last, unit = epochs[-1], job.task.unit
        name, value = job.task.result(last)
        table.add_row("epochs", str(last["epoch"]))
        table.add_row("training loss", f"{last['train_loss']:.4f}")
        table.add_row(name, f"{value} (consensus)")
        table.add_row("speed", f"{last[f'{unit}_per_second']:,.0f} {unit}/s")
        table.add_row("figure", str(path.with_suffix(".png")))
    table.add_row("log", str(path))
    return table


if __name__ == "__main__":
    command.run(main, TrainConfig, __doc__)
