"""What the logs of the study say, one cell for each algorithm in each setting."""

import dataclasses
import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from cocod_jax import timeline
from cocod_jax.observe.loggers import read_jsonl
from experiments.algorithms import RECIPES
from experiments.config import Measured
from experiments.streaming.config import (
    COMPARED,
    JUST_IN_TIME,
    MlpRun,
    Optimizer,
    StreamingConfig,
    mlp_runs,
    resnet_runs,
)

ERROR = 0.05  # that of the whole family of comparisons
LOSSES = ("train_loss", "test_loss")  # compared by their logarithms


class Setting(NamedTuple):
    """In what the algorithms are compared."""

    optimizer: Optimizer
    partition: str
    period: int


@dataclasses.dataclass(frozen=True)
class Cell:
    """An algorithm in a setting, at its best learning rate.

    Attributes:
      rate: the learning rate.
      values: [seeds] by measure, nan where a run has diverged.
      curve: the training loss of the consensus before each row of steps, if logged.
    """

    rate: float
    values: Mapping[str, np.ndarray]
    curve: np.ndarray | None = None


Cells = Mapping[tuple[Setting, Measured], Cell]


def cells_of(config: StreamingConfig) -> Cells:
    """Every cell. S-SGD, which has no period, is in the settings of all of them."""
    cells = _of_mlp(config) if config.model == "mlp" else _of_resnet(config)
    every = {}
    for setting in settings(config):
        for name in COMPARED:
            own = setting._replace(period=1) if name == "ssgd" else setting
            every[setting, name] = cells[own, name]
    return every


def settings(config: StreamingConfig) -> Iterator[Setting]:
    """Those of the tables, in order."""
    parts = config.optimizers, config.partitions, config.periods
    return itertools.starmap(Setting, itertools.product(*parts))


def drifts_of(config: StreamingConfig) -> dict[tuple[Setting, Measured], np.ndarray]:
    """Drifts [seeds] at the middle learning rate: the same for all algorithms."""
    found = {}
    for run in mlp_runs(config):
        rate = middle(run.rates)
        for record in read_jsonl(run.log)["result"]:
            if record["rate"] == rate:
                setting = Setting(run.optimizer, record["partition"], run.period)
                found[setting, run.algorithm] = np.array(record["drift"], float)
    return found


def middle(rates: Sequence[float]) -> float:
    """That of the learning rates; the smaller of two."""
    return sorted(rates)[(len(rates) - 1) // 2]


def _of_mlp(config: StreamingConfig) -> dict[tuple[Setting, Measured], Cell]:
    cells = {}
    for run in mlp_runs(config):
        of_partition = defaultdict(list)
        for record in read_jsonl(run.log)["result"]:
            of_partition[record["partition"]].append(_cell(run, record))
        for partition, every in of_partition.items():
            setting = Setting(run.optimizer, partition, run.period)
            cells[setting, run.algorithm] = min(every, key=_training_loss)
    return cells


def _cell(run: MlpRun, record: dict[str, Any]) -> Cell:
    measures = ("test_accuracy", "train_loss", "test_loss")
    values = {name: np.array(record[name], float) for name in measures}
    return Cell(record["rate"], values, np.array(record["curve"], float))


def _training_loss(cell: Cell) -> float:
    """What a learning rate is chosen by; one at which a seed diverges comes last."""
    return float(np.nan_to_num(cell.values["train_loss"].mean(), nan=math.inf))


def _of_resnet(config: StreamingConfig) -> dict[tuple[Setting, Measured], Cell]:
    found = defaultdict(list)
    for run in resnet_runs(config):
        in_time = run.algorithm == "cocod" and run.delay == JUST_IN_TIME
        name: Measured = "just_in_time" if in_time else run.algorithm
        setting = Setting(run.optimizer, run.partition, run.period)
        last = read_jsonl(run.log)["epoch"][-1]
        found[setting, name].append((run.learning_rate, last))
    return {
        key: Cell(
            rate=runs[0][0],
            values={
                name: np.array([last[name] for _, last in runs], float)
                for name in ("test_accuracy", "test_loss")
            },
        )
        for key, runs in found.items()
    }


class Verdict(NamedTuple):
    """An algorithm against the streamed one, in one setting.

    Attributes:
      better: whether its mean is better than streamed.
      told_apart: whether the paired t-test over seeds says so, after Holm's correction
        for all comparisons of the measure.
    """

    better: bool
    told_apart: bool


def verdicts(cells: Cells, measure: str) -> dict[tuple[Setting, Measured], Verdict]:
    """Every algorithm against the streamed one, wherever both have run."""
    gains, chances = {}, {}
    for (setting, name), cell in cells.items():
        if name == "streamed":
            continue
        pair = cell.values[measure], cells[setting, "streamed"].values[measure]
        other, streamed = (_gain(values, measure) for values in pair)
        difference = other - streamed
        gains[setting, name] = difference.mean()
        same = not np.ptp(difference) and not difference[0]
        chance = 1.0 if same else stats.ttest_1samp(difference, 0).pvalue
        chances[setting, name] = float(chance)
    kept = holm(chances)
    return {key: Verdict(gains[key] > 0, key in kept) for key in gains}


def _gain(values: np.ndarray, measure: str) -> np.ndarray:
    """More is better; a run that has diverged is as bad as a guess, or worse."""
    if measure in LOSSES:
        return -np.log(np.nan_to_num(values, nan=1e3))
    return np.nan_to_num(values, nan=0.0)


def holm(chances: Mapping[Any, float], error: float = ERROR) -> set[Any]:
    """Holm's step-down procedure: which hypotheses are rejected."""
    rejected = set()
    for number, key in enumerate(sorted(chances, key=lambda key: chances[key])):
        if chances[key] > error / (len(chances) - number):
            break
        rejected.add(key)
    return rejected


def clock(
    config: StreamingConfig, name: Measured, period: int, ratio: float
) -> timeline.Timeline:
    """The steps of an algorithm, in units of Tc; an exchange takes ``ratio`` units."""
    return timeline.simulate(
        RECIPES[name].clock(period, JUST_IN_TIME),
        timeline.Compute(1.0, config.workers, jitter=config.jitter),
        ratio,
        latency=config.latency,
        steps=config.steps,
    )
