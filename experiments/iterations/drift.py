"""How far do workers drift apart, and what does it cost?"""

import functools

from cocod_jax import theory
from cocod_jax.observe.loggers import Logbook
from experiments.iterations.config import IterationsConfig
from experiments.iterations.quadratic import descend, make_trainers, problem_of
from experiments.iterations.speedup import finite
from experiments.iterations.trainer import factories, with_delay


def drift(config: IterationsConfig, log: Logbook) -> None:
    """The workers' deviation at every delay of every period, beside the expected one.

    The learning rate is Corollary 1's for the longest runs: the expectation is the
    leading order in it.
    """
    for period in config.drift_periods:
        delays = range(period + 1)
        trainers = make_trainers({str(d): with_delay(period, d) for d in delays})
        for zeta in (0.0, config.dissimilarity):
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
        print(f"drift: period {period}", flush=True)


def cost(config: IterationsConfig, log: Logbook) -> None:
    """The error of many workers at long periods, relative to S-SGD's."""
    workers, steps = config.workers[-1], config.drift_steps
    synchronous = make_trainers({"ssgd": factories(1)["ssgd"]})
    relaxed = {
        period: make_trainers(
            {"local_sgd": with_delay(period, 0), "cocod": with_delay(period)}
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
        print(f"cost: dissimilarity {zeta:g}", flush=True)
