"""Workers with labels of their own: VRL-SGD's study of LeNet-5."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import cocod_jax as cj
from cocod_jax.observe.loggers import Logbook
from experiments import data
from experiments.algorithms import AXIS, per_step
from experiments.conformance import lenet
from experiments.conformance.config import Compared, LabelsRun
from experiments.iterations.trainer import trainer
from experiments.progress import Reporter

LOOK = 50
"""Steps after which the start is evaluated again."""
EVALUATED = 500
"""Images that are evaluated at a time."""


def optimizer(run: LabelsRun, name: Compared) -> optax.GradientTransformation:
    """An algorithm by its name, with plain SGD and its weight decay."""
    inner = optax.chain(
        optax.add_decayed_weights(run.weight_decay), optax.sgd(run.rate)
    )
    if name != "vrl_sgd":
        return per_step(name, inner, run.period)
    rule = cj.rules.vrl_sgd(AXIS, learning_rate=run.rate, period=run.period)
    return cj.every(run.period, inner, rule, delay=0)


@functools.cache
def digits() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Normalised images and labels, by "train" and "test"."""
    loaded = data.load("mnist5k")
    normalised = functools.partial(data.normalised, loaded)
    return {
        "train": (normalised(loaded.train_images), loaded.train_labels),
        "test": (normalised(loaded.test_images), loaded.test_labels),
    }


def batches(run: LabelsRun, steps: int, stream: int) -> np.ndarray:
    """Which digits each batch has, [steps, 1, N, batch].

    The digits are sorted by their label and cut into N parts; a worker goes through its
    part in a new order each time, without the rest of a batch.
    """
    order = np.argsort(digits()["train"][1], kind="stable")
    rng = np.random.default_rng((run.seed, stream))

    def of_worker(shard: np.ndarray) -> np.ndarray:
        whole = len(shard) // run.batch_size
        orders = [rng.permutation(shard) for _ in range(-(-steps // whole))]
        chosen = np.stack(orders)[:, : whole * run.batch_size]
        return chosen.reshape(-1, 1, run.batch_size)[:steps]

    shards = np.split(order, run.workers)
    return np.stack([of_worker(shard) for shard in shards], axis=2).astype(np.int32)


def rows_of(batches: np.ndarray, steps: int) -> np.ndarray:
    """Cut into rows of so many steps."""
    return batches.reshape(-1, steps, *batches.shape[1:])


def batch_loss(params: Any, chosen: jax.Array) -> jax.Array:
    """The mean cross-entropy of a worker's batch."""
    images, labels = map(jnp.asarray, digits()["train"])
    return optax.softmax_cross_entropy_with_integer_labels(
        lenet.logits(params, images[chosen]), labels[chosen]
    ).mean()


def evaluate(params: Any) -> dict[str, jax.Array]:
    """Loss and accuracy of the consensus of one run, on all data."""
    consensus = jax.tree.map(lambda leaf: leaf.mean(axis=0), params)

    def of_part(part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        images, labels = part
        logits = lenet.logits(consensus, images)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), (logits.argmax(axis=-1) == labels).mean()

    found = {}
    for name, arrays in digits().items():
        parts = [jnp.asarray(a).reshape(-1, EVALUATED, *a.shape[1:]) for a in arrays]
        loss, accuracy = jax.lax.map(of_part, tuple(parts))
        found |= {f"{name}_loss": loss.mean(), f"{name}_accuracy": accuracy.mean()}
    return found


def train(run: LabelsRun, log: Logbook, show: Reporter) -> None:
    """S-SGD until the start is reached, and each algorithm from there.

    A record has values of the consensus at the start and after each epoch.
    """
    warm = trainer(lambda _: optimizer(run, "ssgd"), batch_loss, evaluate)
    spread = lambda leaf: jnp.broadcast_to(leaf, (1, run.workers, *leaf.shape))
    start = jax.tree.map(spread, lenet.init(run.seed))
    state, steps = warm.init(start), 0
    for row in rows_of(batches(run, run.longest_start, 0), LOOK):
        show.now(f"{run.log.stem}: start", steps)
        (after, state), seen = warm.advance(start, state, 0.0, row[None])
        if seen["train_accuracy"] >= run.start_accuracy:
            break
        start, steps = after, steps + LOOK
    log.write("start", steps=steps)
    chosen = rows_of(batches(run, run.epochs * run.epoch, 1), run.epoch)

    def curves(name: Compared) -> dict[str, jax.Array]:
        each = trainer(lambda _: optimizer(run, name), batch_loss, evaluate)
        (params, _), seen = each.advance(start, each.init(start), 0.0, chosen)
        last = jax.jit(jax.vmap(evaluate))(params)
        return jax.tree.map(lambda a, b: jnp.concatenate([a[:, 0], b]), seen, last)

    for name in run.algorithms:
        show.now(f"{run.log.stem}: {name}")
        plain = {key: _plain(curve) for key, curve in curves(name).items()}
        log.write("result", algorithm=name, **plain)


def _plain(curve: jax.Array) -> list[float]:
    return [round(float(value), 5) for value in curve]
