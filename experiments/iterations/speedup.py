"""Do N workers need N times fewer steps?"""

import math
from collections.abc import Sequence

import numpy as np

from cocod_jax import theory
from cocod_jax.observe.loggers import Logbook
from experiments.config import Algorithm
from experiments.iterations.config import IterationsConfig
from experiments.iterations.quadratic import descend, make_trainers, problem_of
from experiments.iterations.trainer import factory
from experiments.progress import Reporter

# The algorithms that the theorem is about: Pipe-SGD's gradients are stale.
PROVEN: tuple[Algorithm, ...] = ("ssgd", "local_sgd", "cocod")
_RESAMPLES = 100


def speedup(config: IterationsConfig, log: Logbook, show: Reporter) -> None:
    """Errors for all numbers of workers and of steps, and the slopes they have.

    Each run has the learning rate of Corollary 1 for its own N and T.
    """
    trainers = make_trainers({name: factory(name, config.period) for name in PROVEN})
    halvings = round(math.log2(config.steps / config.shortest))
    lengths = [config.shortest << power for power in range(halvings + 1)]
    shape = (len(config.workers), len(lengths), config.runs)
    for zeta in (0.0, config.dissimilarity):
        tables = {name: np.empty(shape) for name in trainers}
        for row, workers in enumerate(config.workers):
            show.now(f"speed-up: dissimilarity {zeta:g}, {workers} workers")
            problem = problem_of(config, workers, zeta)
            for column, steps in enumerate(lengths):
                rate = theory.speedup_learning_rate(problem, steps)
                bound = theory.gradient_bound(
                    problem, learning_rate=rate, period=config.period, steps=steps
                )
                measured = descend(
                    trainers, problem, rate=rate, steps=steps, runs=config.runs
                )
                for name, (errors, _) in measured.items():
                    tables[name][row, column] = errors
                    log.write(
                        "error",
                        algorithm=name,
                        dissimilarity=zeta,
                        workers=workers,
                        steps=steps,
                        learning_rate=rate,
                        errors=errors.tolist(),
                        bound=finite(bound),
                    )
        # What one worker reaches in half of the longest run.
        target = float(tables["ssgd"][0, -2].mean())
        for name, table in tables.items():
            means = resampled_means(table)
            needed = np.array([steps_to(target, lengths, row) for row in means])
            log.write(
                "slope",
                algorithm=name,
                dissimilarity=zeta,
                workers=config.workers,
                of_error=slopes(config.workers, table[:, -1]).tolist(),
                target=target,
                steps_needed=needed.tolist(),
                promised_periods=[
                    theory.speedup_period(
                        problem_of(config, workers, zeta), round(row.mean())
                    )
                    for workers, row in zip(config.workers, needed, strict=True)
                ],
                of_steps=slopes(config.workers, needed).tolist(),
            )


def steps_to(target: float, lengths: Sequence[int], errors: np.ndarray) -> np.ndarray:
    """Steps in which an error would be reached, between those of two lengths.

    Interpolated in the logarithms.

    Args:
      target: the error.
      lengths: how many steps the runs took.
      errors: that they reached, the mean over runs, falling, [lengths, resamples].

    Returns:
      [resamples].
    """
    falling = -np.log(errors).T
    steps = np.log(lengths)
    return np.exp([np.interp(-math.log(target), row, steps) for row in falling])


def resampled_means(table: np.ndarray) -> np.ndarray:
    """Means over runs drawn with replacement: their spread is that of the mean.

    One run is too noisy to be read alone, and the mean of what is read off single
    runs is not what the mean run would give.

    Args:
      table: errors, [N, lengths, runs].

    Returns:
      [N, lengths, resamples].
    """
    runs = table.shape[-1]
    drawn = np.random.default_rng(0).integers(runs, size=(_RESAMPLES, runs))
    return table[..., drawn].mean(axis=-1)


def slopes(workers: Sequence[int], values: np.ndarray) -> np.ndarray:
    """The slope of log values [N, samples] against log N, for each sample."""
    return np.polyfit(np.log(workers), np.log(values), 1)[0]


def finite(value: float) -> float | None:
    """None for infinity, which JSON does not have."""
    return value if math.isfinite(value) else None
