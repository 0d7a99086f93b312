"""A small network on digits: all workers, splits and seeds in one program."""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cocod_jax.observe.loggers import Logbook
from experiments import data
from experiments.algorithms import per_step
from experiments.iterations.speedup import finite
from experiments.iterations.trainer import trainer
from experiments.streaming.config import JUST_IN_TIME, ROW, MlpProblem, MlpRun


@functools.cache
def digits() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Images [n, 64] in 0..1 and labels [n], by "train" and "test"."""
    loaded = data.load("digits")
    # The data set draws each pixel 4 x 4 times.
    pixels = lambda images: images[:, ::4, ::4].reshape(len(images), -1)
    scaled = lambda images: pixels(images).astype(np.float32) / 255
    return {
        "train": (scaled(loaded.train_images), loaded.train_labels),
        "test": (scaled(loaded.test_images), loaded.test_labels),
    }


def params_of(seed: int, hidden: int) -> dict[str, np.ndarray]:
    """The first parameters of one worker, float32, drawn from the seed."""
    rng = np.random.default_rng((0, seed))
    params = {
        "hidden": rng.normal(size=(64, hidden)) / 8,
        "bias": np.zeros([hidden]),
        "out": np.zeros([hidden, 10]),
        "out_bias": np.zeros([10]),
    }
    return {name: leaf.astype(np.float32) for name, leaf in params.items()}


def initial(run: MlpProblem) -> dict[str, np.ndarray]:
    """Parameters [runs, N, ...]: of a seed the same for every split and worker."""
    seeds = [params_of(seed, run.hidden) for seed in run.seeds]
    splits = len(run.partitions)

    def spread(name: str) -> np.ndarray:
        leaf = np.stack([params[name] for params in seeds])
        leaf = leaf[:, None].repeat(run.workers, axis=1)
        return np.tile(leaf, (splits, *[1] * (leaf.ndim - 1)))

    return {name: spread(name) for name in seeds[0]}


def batches(run: MlpProblem) -> np.ndarray:
    """Which training examples each batch has, [rows, ROW, runs, N, batch].

    Every worker draws from its own shard with replacement.
    """
    labels = digits()["train"][1]
    shape = (run.steps, run.batch_size)
    runs = []
    for scheme in run.partitions:
        for seed in run.seeds:
            shards = data.partition(labels, run.workers, scheme, seed)
            rng = np.random.default_rng((1, seed))
            runs.append([rng.choice(shard, shape) for shard in shards])
    chosen = np.array(runs, np.int32).transpose(2, 0, 1, 3)
    return chosen.reshape(-1, ROW, *chosen.shape[1:])


def logits_of(params: Any, images: jax.Array) -> jax.Array:
    """One hidden layer."""
    hidden = jax.nn.relu(images @ params["hidden"] + params["bias"][None])
    return hidden @ params["out"] + params["out_bias"][None]


def loss_of(params: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
    """The mean cross-entropy."""
    losses = optax.softmax_cross_entropy_with_integer_labels(
        logits_of(params, images), labels
    )
    return losses.mean()


def batch_loss(params: Any, chosen: jax.Array) -> jax.Array:
    """That of a worker's batch."""
    images, labels = map(jnp.asarray, digits()["train"])
    return loss_of(params, images[chosen], labels[chosen])


def training_loss_and_drift(params: Any) -> tuple[jax.Array, jax.Array]:
    """Of the consensus on all training data; the workers' mean squared distance."""
    consensus = jax.tree.map(lambda leaf: leaf.mean(axis=0), params)
    apart = jax.tree.map(lambda leaf, mean: leaf - mean[None], params, consensus)
    workers = len(jax.tree.leaves(params)[0])
    return (
        loss_of(consensus, *map(jnp.asarray, digits()["train"])),
        optax.tree.norm(apart, squared=True) / workers,
    )


@jax.jit
@jax.vmap
def final(params: Any) -> dict[str, jax.Array]:
    """What the consensus of one run has learnt."""
    consensus = jax.tree.map(lambda leaf: leaf.mean(axis=0), params)
    images, labels = map(jnp.asarray, digits()["test"])
    right = logits_of(consensus, images).argmax(axis=-1) == labels
    return {
        "train_loss": loss_of(consensus, *map(jnp.asarray, digits()["train"])),
        "test_loss": loss_of(consensus, images, labels),
        "test_accuracy": right.mean(),
    }


def inner_of(run: MlpRun, rate: Any) -> optax.GradientTransformation:
    """The local optimizer."""
    if run.optimizer == "adamw":
        return optax.adamw(rate)
    return optax.sgd(rate, momentum=0.9)


def sent_bytes(run: MlpRun, params: dict[str, np.ndarray]) -> float:
    """What a worker puts into exchanges in a local step, padding included."""
    sizes = [leaf[0, 0].size for leaf in params.values()]
    if run.algorithm == "streamed":
        return 4.0 * sum(-(-size // run.period) for size in sizes)
    return 4.0 * sum(sizes) / run.period


def train(run: MlpRun, log: Logbook) -> None:
    """Every split, rate and seed; a record for each split and rate."""
    delay = JUST_IN_TIME if run.algorithm == "just_in_time" else None
    each = trainer(
        lambda rate: per_step(run.algorithm, inner_of(run, rate), run.period, delay),
        batch_loss,
        training_loss_and_drift,
    )
    params, chosen = initial(run), batches(run)
    log.write("sent", bytes_per_step=sent_bytes(run, params))
    state = each.init(params)
    for rate in run.rates:
        (trained, _), (losses, drifts) = each.advance(params, state, rate, chosen)
        for own, result in results(run, trained, losses):
            drift = [finite(float(d)) for d in drifts[:, own].mean(axis=0)]
            log.write("result", rate=rate, drift=drift, **result)


def results(
    run: MlpProblem, trained: Any, losses: jax.Array
) -> Iterator[tuple[slice, dict[str, Any]]]:
    """For each split the place of its seeds, and what they came to.

    Args:
      run: what was learnt.
      trained: parameters [runs, N, ...].
      losses: [rows, runs], of the consensus before each row of steps.
    """
    ends = jax.device_get(final(trained))
    for number, partition in enumerate(run.partitions):
        own = slice(number * len(run.seeds), (number + 1) * len(run.seeds))
        result = {name: [finite(float(v)) for v in ends[name][own]] for name in ends}
        curve = [finite(round(float(v), 5)) for v in losses[:, own].mean(axis=1)]
        yield own, {"partition": partition, **result, "curve": curve}
