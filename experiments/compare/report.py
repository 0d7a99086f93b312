"""What the logs of the study say, one row for each algorithm."""

from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from cocod_jax import timeline
from cocod_jax.observe.loggers import read_jsonl
from experiments import markdown
from experiments.compare.config import CompareConfig
from experiments.compare.methods import METHODS
from experiments.streaming.results import ERROR, holm

BASELINE = "ssgd"


class Best(NamedTuple):
    """An algorithm on one split, at its best learning rate.

    Attributes:
      rate: the learning rate.
      accuracy: [seeds], of the consensus on test data; that of a guess where a run has
        diverged.
    """

    rate: float
    accuracy: np.ndarray


def best(config: CompareConfig) -> dict[tuple[str, str], Best]:
    """By algorithm and split."""
    found = {}
    for run in config.runs(tuple(METHODS)):
        records = read_jsonl(run.log)["result"]
        for partition in config.partitions:
            own = [r for r in records if r["partition"] == partition]
            chosen = min(own, key=_training_loss)
            accuracy = np.nan_to_num(np.array(chosen["test_accuracy"], float), nan=0.1)
            found[run.algorithm, partition] = Best(chosen["rate"], accuracy)
    return found


def _training_loss(record: dict[str, Any]) -> float:
    """What a learning rate is chosen by; one at which a seed diverges comes last."""
    losses = np.array(record["train_loss"], float)
    return float(np.nan_to_num(losses.mean(), nan=np.inf))


def told_apart(found: dict[tuple[str, str], Best]) -> set[tuple[str, str]]:
    """What differs from the baseline: paired t-tests over seeds, Holm's correction."""
    chances = {}
    for (name, partition), own in found.items():
        if name != BASELINE:
            difference = own.accuracy - found[BASELINE, partition].accuracy
            same = not np.ptp(difference)
            chances[name, partition] = (
                float(difference[0] == 0)
                if same
                else float(stats.ttest_1samp(difference, 0).pvalue)
            )
    return holm(chances)


def seconds(config: CompareConfig, name: str, sent: float, ratio: float) -> float:
    """Of a local step on the clock, in units of Tc.

    An exchange takes a time in proportion to the bytes that pass a link.
    """
    method, sums = METHODS[name], METHODS[BASELINE]
    whole = read_jsonl(config.runs((BASELINE,))[0].log)["sent"][0]["bytes_per_step"]
    each_round = 1 if method.rule is None else config.period
    passing = lambda each, sent: each.hops(config.workers) * sent
    share = passing(method, sent * each_round) / passing(sums, whole)
    return timeline.simulate(
        method.clock(config.period),
        timeline.Compute(1.0, config.workers, jitter=config.jitter),
        config.latency + share * (ratio - config.latency),
        latency=config.latency,
        steps=config.steps,
    ).seconds_per_step


def report(config: CompareConfig) -> str:
    """The table, as Markdown."""
    found = best(config)
    marked = told_apart(found)
    splits = [f"{partition} [%], rate" for partition in config.partitions]
    clocks = [f"step, Tm = {ratio:g} Tc" for ratio in config.ratios]
    rows = []
    for run in config.runs(tuple(METHODS)):
        name, records = run.algorithm, read_jsonl(run.log)
        sent = records["sent"][0]["bytes_per_step"]
        cells = []
        for partition in config.partitions:
            rate, accuracy = found[name, partition]
            mark = ""
            if (name, partition) in marked:
                below = accuracy.mean() < found[BASELINE, partition].accuracy.mean()
                mark = " -" if below else " +"
            spread = f"{100 * accuracy.mean():.1f} ± {100 * accuracy.std(ddof=1):.1f}"
            cells.append(f"{spread}{mark}, {rate:g}")
        hidden = records["certificate"][0]["hidden"]
        times = [f"{seconds(config, name, sent, each):.2f}" for each in config.ratios]
        rows.append([METHODS[name].title, *cells, f"{sent:,.0f}", hidden, *times])
    head = ["algorithm", *splits, "bytes a step", "hidden", *clocks]
    note = (
        f"{config.workers} workers, k = {config.period}, {config.steps} local steps, "
        f"{len(config.seeds)} seeds: test accuracy of the consensus, mean ± standard "
        "deviation, and the learning rate that it is at. + and - mark what is better "
        "or worse than S-SGD by a paired t-test over the seeds with Holm's correction, "
        f"at {ERROR:.0%} for the whole table; what has no mark is not told apart. "
        "Hidden is what the compiler for H100 makes of this small program. A step is "
        "that of all workers on the clock, in units of Tc."
    )
    return f"{markdown.table(head, rows)}\n{note}\n"
