"""Trains a network with several workers: ``python -m experiments.train``.

The log is one JSON record a line: the circumstances of the run, then every round and
every epoch as it ends, so that a run that is stopped leaves a log that can be used.
"""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import tyro
from rich.console import Console
from rich.table import Table

import cocod_jax as cj
from cocod_jax.observe.loggers import Logbook, read_jsonl, to_jsonl
from experiments import data, figures, models
from experiments.algorithms import AXIS, local_optimizer, make_rounds
from experiments.config import TrainConfig
from experiments.devices import start_devices
from experiments.logbook import circumstances
from experiments.progress import Display, display


class Job(NamedTuple):
    """What a configuration means, before anything has run."""

    config: TrainConfig
    devices: list[jax.Device]
    dataset: data.Dataset
    pipeline: data.Pipeline
    model: models.Model
    warm: cj.Round
    main: cj.Round


def prepare(config: TrainConfig) -> Job:
    """Loads the data, builds the model and the rounds."""
    devices = start_devices(config.workers)
    dataset = data.load(config.data, config.data_dir)
    shards = data.partition(
        dataset.train_labels,
        len(devices),
        config.partition,
        config.seed,
        config.micro_batches,
    )
    pipeline = data.Pipeline(
        dataset,
        shards,
        batch_size=config.batch_size,
        seed=config.seed,
        micro_batches=config.micro_batches,
    )
    model = build_model(config)
    optimizer = local_optimizer(config, len(devices), pipeline.steps_per_epoch)
    warm, main = make_rounds(config, loss_of(model), optimizer)
    return Job(config, devices, dataset, pipeline, model, warm, main)


def build_model(config: TrainConfig) -> models.Model:
    """The network for the data set."""
    (*_, channels), num_classes = data.SHAPES[config.data]
    return models.build(
        config.model,
        num_classes=num_classes,
        channels=channels,
        width=config.width,
    )


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
            "to read. Leave it out to certify the fused round, which GPUs run."
        )
    image_shape, _ = data.SHAPES[config.data]
    batches = data.batch_shapes(
        image_shape, devices, config.period, config.batch_size, config.micro_batches
    )
    model = build_model(config)
    # The learning rate's schedule has no influence on the program but constants.
    optimizer = local_optimizer(config, devices, steps_per_epoch=100)
    _, round_ = make_rounds(config, loss_of(model), optimizer)
    state = jax.eval_shape(lambda: initial_state(config, round_, model, devices))
    return round_, state, batches


def initial_state(
    config: TrainConfig, round_: cj.Round, model: models.Model, workers: int
) -> cj.RoundState:
    """The initial values of the seed, the same on all workers."""
    key = jax.random.key(config.seed)
    return cj.replicate(round_.init(*model.init(key), key=key), workers)


def loss_of(model: models.Model) -> Callable[..., tuple[jax.Array, Any]]:
    """The mean cross-entropy of one local batch, with batch statistics."""

    def loss_fn(params, model_state, batch, key):
        del key  # the networks draw nothing
        logits, model_state = model.apply(
            params, model_state, batch["image"], train=True
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        return losses.mean(), model_state

    return loss_fn


def evaluator(job: Job, batch_size: int = 500) -> Callable[[cj.RoundState], dict]:
    """The consensus of the workers on the whole test set."""
    images = data.normalised(job.dataset, job.dataset.test_images)
    labels = job.dataset.test_labels

    @jax.jit
    def sums(params, model_state, image, label):
        logits, _ = job.model.apply(params, model_state, image, train=False)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, label)
        return losses.sum(), (logits.argmax(axis=-1) == label).sum()

    def evaluate(state: cj.RoundState) -> dict[str, float]:
        trees = cj.consensus(state), cj.consensus_model_state(state)
        trees = jax.device_put(trees, job.devices[0])
        parts = (
            sums(*trees, images[i : i + batch_size], labels[i : i + batch_size])
            for i in range(0, len(labels), batch_size)
        )
        loss, correct = np.sum([jax.device_get(part) for part in parts], axis=0)
        return {
            "test_loss": float(loss) / len(labels),
            "test_accuracy": float(correct) / len(labels),
        }

    return evaluate


def number_of_rounds(job: Job) -> tuple[int, int]:
    """Of the warm-up and after it.

    The last round is whole: a run may be longer than its epochs by a part of one.
    """
    total = job.config.epochs * job.pipeline.steps_per_epoch
    warm = min(job.config.warmup_rounds, total)
    return warm, math.ceil((total - warm) / job.main.period)


def train(job: Job, log: Logbook, show: Display) -> None:
    """Runs all rounds and logs them, and each epoch as it ends."""
    config = job.config
    evaluate = evaluator(job)
    state = initial_state(config, job.main, job.model, len(job.devices))
    cj.workers.check_equal_start(state)
    alarm = cj.DriftAlarm(config.micro_batches)
    step, epoch, losses, images, seconds = 0, 0, [], 0, 0.0
    for round_, count in zip((job.warm, job.main), number_of_rounds(job), strict=True):
        run = cj.distribute(
            round_,
            AXIS,
            via=config.via,
            execution=config.execution,
            devices=job.devices,
        )
        for batches in job.pipeline.rounds(
            first_step=step, period=round_.period, count=count
        ):
            start = time.perf_counter()
            state, metrics = run(state, batches)
            metrics = jax.device_get(metrics)
            seconds += time.perf_counter() - start
            images += round_.period * job.pipeline.images_per_step
            step += round_.period
            scalars = cj.loggers.scalars(metrics)
            log(step, {"seconds": seconds, **scalars})
            if sentence := alarm(metrics):
                log.write("alarm", step=step, sentence=sentence)
                show.alarm(sentence)
            losses.extend(
                np.average(metrics.loss, axis=0, weights=config.micro_batches)
            )
            show.round_done(epoch, scalars["loss"], images / seconds)
            if step // job.pipeline.steps_per_epoch > epoch:
                epoch = step // job.pipeline.steps_per_epoch
                record = {
                    "epoch": epoch,
                    "train_loss": float(np.mean(losses)),
                    "images_per_second": images / seconds,
                    **evaluate(state),
                }
                log.write("epoch", **record)
                show.epoch_done(record)
                losses, images, seconds = [], 0, 0.0


def main(config: TrainConfig) -> int:
    """Trains, and leaves a log, a figure and a table; returns the exit status."""
    console = Console()
    job = prepare(config)
    path = config.log
    with to_jsonl(path) as log:
        log.write(
            "run",
            **circumstances(config),
            workers=len(job.devices),
            parameters=models.parameter_count(job.model),
        )
        status = "interrupted"
        console.print("Compiling; the first epoch takes longest.", highlight=False)
        try:
            with display(console, config.epochs, number_of_rounds(job)) as show:
                train(job, log, show)
            status = "finished"
        except KeyboardInterrupt:
            console.print("Interrupted; the log holds everything up to here.")
        finally:
            log.write("end", status=status)
    epochs = read_jsonl(path).get("epoch", [])
    if epochs:
        figures.training_curves([path], path.with_suffix(".png"))
    console.print(closing_table(job, epochs, path))
    return 0 if status == "finished" else 130


def closing_table(job: Job, epochs: list[dict[str, float]], path: Path) -> Table:
    """What came out, and where it is."""
    table = Table(show_header=False, title=f"{job.config.algorithm}", min_width=60)
    shape = f"{len(job.devices)} workers on {job.devices[0].platform}"
    table.add_row("run", f"{job.config.model} on {job.config.data}, {shape}")
    count = models.parameter_count(job.model)
    table.add_row("parameters", f"{count:,}")
    if epochs:
        last = epochs[-1]
        table.add_row("epochs", str(last["epoch"]))
        table.add_row("training loss", f"{last['train_loss']:.4f}")
        table.add_row("test accuracy", f"{last['test_accuracy']:.2%} (consensus)")
        table.add_row("speed", f"{last['images_per_second']:,.0f} images/s")
        table.add_row("figure", str(path.with_suffix(".png")))
    table.add_row("log", str(path))
    return table


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(TrainConfig, description=__doc__)))
