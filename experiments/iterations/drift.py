"""How far do workers drift apart, and what does it cost?"""

import functools

from cocod_jax import theory
from cocod_jax.observe.loggers import Logbook
from experiments.iterations.config import IterationsConfig
from experiments.iterations.quadratic import descend, make_trainers, problem_of
from experiments.iterations.speedup import finite
from experiments.iterations.trainer import factory
from experiments.progress import Reporter


def drift(config: IterationsConfig, log: Logbook, show: Reporter) -> None:
    """The workers' deviation at every delay of every period, beside the expected one.

    The learning rate is Corollary 1's for the longest runs: the expectation is the
    leading order in it.
    """
    for period in config.drift_periods:
        delays = range(period + 1)
        trainers = make_trainers(
            {str(d): factory("just_in_time", period, d) for d in delays}
        )
        for zeta in (0.0, config.dissimilarity):
            show.now(f"drift: period {period}, dissimilarity {zeta:g}")
            problem = problem_of(config, config.drift_workers, zeta)
            rate = theory.speedup_learning_rate(problem, config.steps)
            measured = descend(
                trainers, problem, rate=rate, steps=config.drift_steps, runs=config.runs
            )
            for delay in delays:
                log.write(
                    "deviation",
                    dissimilarity=zeta,
                    period=period,
                    delay=delay,
                    learning_rate=rate,
                    deviations=measured[str(delay)][1].tolist(),
                    expected=theory.expected_deviation(
                        problem, learning_rate=rate, period=period, delay=delay
                    ),
                )


def cost(config: IterationsConfig, log: Logbook, show: Reporter) -> None:
    """The error of many workers at long periods, relative to S-SGD's."""
    workers, steps = config.workers[-1], config.drift_steps
    synchronous = make_trainers({"ssgd": factory("ssgd", 1)})
    relaxed = {
        period: make_trainers(
            {name: factory(name, period) for name in ("local_sgd", "cocod")}
        )
        for period in config.long_periods
    }
    for zeta in (0.0, config.dissimilarity):
        problem = problem_of(config, workers, zeta)
        rate = theory.speedup_learning_rate(problem, steps)
        run = functools.partial(
            descend, problem=problem, rate=rate, steps=steps, runs=config.runs
        )
        least = run(synchronous)["ssgd"][0]
        for period, trainers in relaxed.items():
            show.now(f"cost: dissimilarity {zeta:g}, period {period}")
            bound = theory.gradient_bound(
                problem, learning_rate=rate, period=period, steps=steps
            )
            for name, (errors, _) in run(trainers).items():
                log.write(
                    "cost",
                    algorithm=name,
                    dissimilarity=zeta,
                    workers=workers,
                    steps=steps,
                    period=period,
                    learning_rate=rate,
                    errors=errors.tolist(),
                    relative_errors=(errors / least).tolist(),
                    bound=finite(bound),
                    largest_period=theory.largest_period(rate, problem.smoothness),
                )
