"""A problem whose constants in the theory are all known."""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from cocod_jax import theory
from experiments.iterations.config import CHUNK, IterationsConfig
from experiments.iterations.trainer import Factory, Trainer, trainer

DIMENSION, START = 16, 0.25


@jax.jit
def objective(x: jax.Array) -> jax.Array:
    """A quadratic with ripples: L = 1, minimum 0 at 0, not convex.

    On a quadratic alone the consensus follows S-SGD exactly, whatever period and
    delay are: there would be nothing to measure.
    """
    curvatures = jnp.linspace(0.1, 0.5, DIMENSION)
    ripples = 0.5 / 8**2 * (1 - jnp.cos(8 * x))
    return jnp.sum(curvatures * x**2 / 2 + ripples)


def worker_loss(x: jax.Array, tilt: jax.Array) -> jax.Array:
    """The tilt is a sample's noise, and what makes a worker's optimum its own."""
    return objective(x) + x @ tilt


def gradient_and_deviation(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Squared norms: the consensus's gradient, and the workers' distance from it.

    Args:
      x: the workers, [N, D].
    """
    consensus = x.mean(axis=0)
    deviation = jnp.sum((x - consensus[None]) ** 2, axis=1).mean()
    return jnp.sum(jax.grad(objective)(consensus) ** 2), deviation


def make_trainers(factories: Mapping[str, Factory]) -> dict[str, Trainer]:
    """A trainer on this problem for each algorithm."""
    return {
        name: trainer(make, worker_loss, gradient_and_deviation)
        for name, make in factories.items()
    }


def problem_of(
    config: IterationsConfig, workers: int, dissimilarity: float
) -> theory.Problem:
    """The constants; each worker has one sample for each step."""
    return theory.Problem(
        smoothness=1.0,
        noise=config.noise,
        gap=float(objective(np.full(DIMENSION, START, np.float32))),
        workers=workers,
        batch=workers,
        dissimilarity=dissimilarity if workers > 1 else 0.0,
    )


def draw_tilts(problem: theory.Problem, rng: np.random.Generator) -> np.ndarray:
    """What makes the workers' optima differ, [N, D]: sum 0, mean square zeta²."""
    tilts = rng.standard_normal((problem.workers, DIMENSION), np.float32)
    tilts -= tilts.mean(axis=0)
    size = math.sqrt(np.sum(tilts**2) / problem.workers) or 1.0  # 0 for one worker
    return tilts * np.float32(problem.dissimilarity / size)


def descend(
    trainers: Mapping[str, Trainer],
    problem: theory.Problem,
    *,
    rate: float,
    steps: int,
    runs: int,
) -> dict[str, np.ndarray]:
    """Means over all steps of squared gradient and squared deviation.

    All algorithms meet the same noise, and all dissimilarities as well.

    Args:
      trainers: one for each algorithm.
      problem: the constants.
      rate: the learning rate.
      steps: local steps, a multiple of 256.
      runs: the number of independent runs.

    Returns:
      [2, runs] for each algorithm.
    """
    rng = np.random.default_rng((problem.workers, steps))
    tilts = draw_tilts(problem, rng)
    start = np.full((runs, problem.workers, DIMENSION), START, np.float32)
    now = {name: (start, each.init(start)) for name, each in trainers.items()}
    sums = {name: np.zeros((2, runs)) for name in trainers}
    for _ in range(steps // CHUNK):
        noise = rng.standard_normal((CHUNK, *start.shape), np.float32)
        batches = np.float32(problem.noise / math.sqrt(DIMENSION)) * noise + tilts
        for name, each in trainers.items():
            now[name], seen = each.advance(*now[name], rate, batches[:, None])
            sums[name] += np.sum(seen, axis=1, dtype=float)
    return {name: total / steps for name, total in sums.items()}
