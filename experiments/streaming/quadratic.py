"""How far streamed workers drift apart, beside what the theory expects."""

import dataclasses
from pathlib import Path

from cocod_jax import theory
from cocod_jax.observe.loggers import Logbook
from experiments.config import Measured
from experiments.iterations.config import IterationsConfig
from experiments.iterations.quadratic import descend, make_trainers, problem_of
from experiments.iterations.trainer import factory
from experiments.progress import Reporter
from experiments.streaming.config import COMPARED, JUST_IN_TIME, StreamingConfig

RATE = 0.001  # the expectation is the leading order in it
DELAYS = {"local_sgd": 0, "just_in_time": JUST_IN_TIME, "cocod": None, "streamed": 1}


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuadraticRun:
    """The problem of ``experiments.iterations``, with this study's workers."""

    workers: int
    periods: tuple[int, ...]
    runs: int = 16
    steps: int = 2048
    noise: float = 20.0
    dissimilarity: float = 6.0
    rate: float = RATE
    out: Path

    @property
    def log(self) -> Path:
        """Its log."""
        return self.out / "quadratic.jsonl"


def quadratic_run(config: StreamingConfig) -> QuadraticRun:
    return QuadraticRun(workers=config.workers, periods=config.periods, out=config.out)


def drift(run: QuadraticRun, log: Logbook, show: Reporter) -> None:
    """Every algorithm that drifts, at every period, with equal and with other data."""
    problems = IterationsConfig(noise=run.noise)
    names: list[Measured] = [name for name in COMPARED if name in DELAYS]
    for period in run.periods:
        trainers = make_trainers(
            {name: factory(name, period, _own_delay(name)) for name in names}
        )
        for zeta in (0.0, run.dissimilarity):
            show.now(f"drift on a quadratic: period {period}, dissimilarity {zeta:g}")
            problem = problem_of(problems, run.workers, zeta)
            measured = descend(
                trainers, problem, rate=run.rate, steps=run.steps, runs=run.runs
            )
            for name, (_, deviations) in measured.items():
                log.write(
                    "deviation",
                    algorithm=name,
                    period=period,
                    dissimilarity=zeta,
                    deviations=deviations.tolist(),
                    expected=theory.expected_deviation(
                        problem,
                        learning_rate=run.rate,
                        period=period,
                        delay=DELAYS[name],
                    ),
                )


def _own_delay(name: Measured) -> int | None:
    """The delay, of the one algorithm whose recipe leaves it to the caller."""
    return DELAYS[name] if name == "just_in_time" else None
