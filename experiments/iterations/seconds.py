"""What is it worth in seconds? A network learns digits, and a clock runs beside it."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import cocod_jax as cj
from cocod_jax import timeline
from cocod_jax.observe.loggers import Logbook
from experiments.algorithms import RECIPES
from experiments.iterations.config import ROW, IterationsConfig
from experiments.iterations.speedup import finite
from experiments.iterations.trainer import Factory, Trainer, factory, trainer
from experiments.progress import Reporter

HIDDEN, BATCH = 32, 8

# The clock's model is larger than the network that learns: ResNet-18's parameters.
BYTES, STEP_SECONDS = 44.7e6, 0.2
# Steps vary by a tenth; one in 500 pauses, as for garbage collection or a slow disk.
JITTER, PAUSE, PAUSE_PROBABILITY = 0.1, 1.0, 0.002


class Network(NamedTuple):
    """What connects the workers.

    Attributes:
      name: in figures.
      latency: of a message, in seconds.
      bandwidth: of a worker, in bytes per second.
      period: k on this network; the longer one hides the exchange of 64 workers.
    """

    name: str
    latency: float
    bandwidth: float
    period: int

    @property
    def link(self) -> timeline.Link:
        return timeline.Link(self.latency, self.bandwidth, "fastest")

    def exchange_seconds(self, workers: int) -> float:
        """Seconds of one exchange of all parameters."""
        return self.link.seconds(BYTES, workers)


NETWORKS = (
    Network("data centre: 10 Gbit/s, 50 µs", 50e-6, 1.25e9, period=8),
    Network("wide area: 200 Mbit/s, 20 ms", 20e-3, 2.5e7, period=32),
)


def algorithms(
    network: Network, workers: int
) -> dict[str, tuple[Factory, timeline.Algorithm]]:
    """What trains and what the clock runs, by the algorithm's name.

    S-SGD has a second clock, that of frameworks which send gradients while others are
    being computed. The just-in-time merge has the smallest delay that hides the
    exchange of so many workers.
    """
    period, exchange = network.period, network.exchange_seconds(workers)
    delay = cj.advise(STEP_SECONDS, exchange, workers, period=period).delay
    every = {}
    for name, recipe in RECIPES.items():
        own = delay if name == "just_in_time" else None
        every[name] = factory(name, period, own), recipe.clock(period, delay)
    train_synchronously, _ = every["ssgd"]
    sends_early = timeline.SSGD(sends_after=1 / 3)
    return every | {"ssgd_backward": (train_synchronously, sends_early)}


def compute_of(workers: int) -> timeline.Compute:
    return timeline.Compute(
        STEP_SECONDS,
        workers,
        jitter=JITTER,
        pause=PAUSE,
        pause_probability=PAUSE_PROBABILITY,
    )


@functools.cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    images, labels = map(np.asarray, load_digits(return_X_y=True))
    return (images / 16).astype(np.float32), labels.astype(np.int32)


def batch_loss(params: Any, chosen: jax.Array) -> jax.Array:
    """The mean cross-entropy of one hidden layer on the digits with these numbers."""
    images, labels = map(jnp.asarray, digits())
    logits = jnp.tanh(images[chosen] @ params["hidden"]) @ params["out"]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels[chosen])
    return losses.mean()


def training_loss(params: Any) -> jax.Array:
    """The loss of the consensus on all digits."""
    consensus = jax.tree.map(lambda leaf: leaf.mean(axis=0), params)
    return batch_loss(consensus, jnp.arange(len(digits()[1])))


def learn(config: IterationsConfig, each: Trainer, rate: float) -> np.ndarray:
    """The training loss before every fourth step, [rows, runs].

    Every worker draws its batches from all digits. All algorithms and rates have the
    same initial networks and the same batches.
    """
    rng = np.random.default_rng(0)
    shape = (config.clock_runs, config.clock_workers)
    hidden = rng.standard_normal((config.clock_runs, 1, 64, HIDDEN), np.float32) / 8
    params = {
        "hidden": np.broadcast_to(hidden, (*shape, 64, HIDDEN)),
        "out": np.zeros((*shape, HIDDEN, 10), np.float32),
    }
    rows = (config.clock_steps // ROW, ROW)
    chosen = rng.integers(len(digits()[1]), size=(*rows, *shape, BATCH), dtype=np.int32)
    return np.asarray(each.advance(params, each.init(params), rate, chosen)[1])


def reached(losses: np.ndarray, goal: float) -> int | None:
    """The first row after which the mean of the runs stays below the goal.

    Args:
      losses: [rows, runs].
      goal: the loss.
    """
    above = np.flatnonzero(~(losses.mean(axis=1) < goal))  # nan is, too
    first = int(above[-1]) + 1 if above.size else 0
    return first if first < len(losses) else None


def train(
    config: IterationsConfig, log: Logbook, name: str, make: Factory, period: int
) -> np.ndarray:
    """The training losses of an algorithm at its best learning rate."""
    each = trainer(make, batch_loss, training_loss)
    curves = {rate: learn(config, each, rate) for rate in config.rates}
    final = {rate: float(curve[-1].mean()) for rate, curve in curves.items()}
    rows = {rate: reached(curve, config.goal) for rate, curve in curves.items()}

    def order(rate: float) -> tuple[float, float]:
        first, loss = rows[rate], final[rate]
        return math.inf if first is None else first, np.nan_to_num(loss, nan=math.inf)

    best = min(config.rates, key=order)
    log.write(
        "training",
        algorithm=name,
        period=period,
        rates=config.rates,
        final_losses=[finite(loss) for loss in final.values()],
        steps_to_goal=[None if row is None else row * ROW for row in rows.values()],
        best_rate=best,
    )
    return curves[best]


def seconds(config: IterationsConfig, log: Logbook, show: Reporter) -> None:
    """Losses against the clock's seconds, on each network."""
    workers = config.clock_workers
    curves: dict[tuple[str, int], np.ndarray] = {}
    for network in NETWORKS:
        exchange = network.exchange_seconds(workers)
        for name, (make, algorithm) in algorithms(network, workers).items():
            key = name.removesuffix("_backward"), algorithm.period
            if key not in curves:
                show.now(f"digits: {key[0]}, period {key[1]}")
                curves[key] = train(config, log, key[0], make, key[1])
            line = timeline.simulate(
                algorithm,
                compute_of(workers),
                link=network.link,
                size=BYTES,
                steps=config.clock_steps,
            )
            # The loss before a step is there when all have taken the step before.
            ends = np.concatenate([[0.0], line.step_ends.max(axis=0)[:-1]])[::ROW]
            row = reached(curves[key], config.goal)
            log.write(
                "loss",
                network=network.name,
                algorithm=name,
                period=algorithm.period,
                delay=getattr(algorithm, "delay", None),
                exchange_seconds=exchange,
                seconds_per_step=line.seconds_per_step,
                seconds=ends.round(3).tolist(),
                losses=curves[key].T.round(5).tolist(),
                steps_to_goal=None if row is None else row * ROW,
                seconds_to_goal=None if row is None else float(ends[row]),
            )


def scaling(config: IterationsConfig, log: Logbook, show: Reporter) -> None:
    """Seconds for each step up to thousands of workers: the clock on its own."""
    for network in NETWORKS:
        chosen = algorithms(network, config.clock_workers)
        workers = 1
        while workers <= config.most_workers:
            show.now(f"clock: {network.name}, {workers} workers")
            for name, (_, algorithm) in chosen.items():
                line = timeline.simulate(
                    algorithm,
                    compute_of(workers),
                    link=network.link,
                    size=BYTES,
                    steps=8 * network.period,
                )
                log.write(
                    "clock",
                    network=network.name,
                    algorithm=name,
                    workers=workers,
                    exchange_seconds=network.exchange_seconds(workers),
                    seconds_per_step=line.seconds_per_step,
                    step_seconds=STEP_SECONDS,
                )
            workers *= 4
