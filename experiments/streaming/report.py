"""The tables of the study, as Markdown."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from cocod_jax.observe.loggers import read_jsonl
from cocod_jax.style import ALGORITHMS
from experiments import markdown
from experiments.streaming.config import COMPARED, StreamingConfig, mlp_runs
from experiments.streaming.quadratic import quadratic_run
from experiments.streaming.results import (
    ERROR,
    Cells,
    cells_of,
    clock,
    drifts_of,
    middle,
    settings,
    verdicts,
)

OTHERS = tuple(name for name in COMPARED if name != "streamed")
TITLES = {
    "test_accuracy": "Test accuracy of the consensus [%]",
    "train_loss": "Training loss of the consensus",
    "test_loss": "Test loss of the consensus",
}


def report(config: StreamingConfig) -> str:
    """All tables, from the logs and the clock."""
    cells = cells_of(config)
    measures = next(iter(cells.values())).values
    seeds = len(config.seeds)
    parts = [
        f"{seeds} seeds; mean ± standard deviation over them. + and - mark what is "
        "better or worse than streamed by a paired t-test over the seeds (losses by "
        f"their logarithms) with Holm's correction, at {ERROR:.0%} for all comparisons "
        "of a table together. What has no mark is not told apart.\n",
        summary(cells, list(measures)),
        *(values(config, cells, measure) for measure in measures),
    ]
    if config.model == "mlp":
        parts += [drift(config), quadratic(config), traffic(config)]
    return "\n".join([*parts, seconds(config)])


def summary(cells: Cells, measures: Sequence[str]) -> str:
    """How often streaming is better, worse, or not told apart."""
    rows = []
    partitions = dict.fromkeys(setting.partition for setting, _ in cells)
    for measure in measures:
        found = verdicts(cells, measure)
        for partition in partitions:
            row = [TITLES[measure], partition]
            for other in OTHERS:
                own = [
                    "worse" if v.better and v.told_apart
                    else "better" if v.told_apart else "open"
                    for (setting, name), v in found.items()
                    if (setting.partition, name) == (partition, other)
                ]  # fmt: skip
                count = Counter(own)
                row.append(f"{count['better']} / {count['worse']} / {count['open']}")
            rows.append(row)
    head = ["measure", "split", *(f"against {ALGORITHMS[o][0]}" for o in OTHERS)]
    return _section("Streamed: better / worse / not told apart", head, rows)


def values(config: StreamingConfig, cells: Cells, measure: str) -> str:
    """A measure of every algorithm in every setting."""
    found = verdicts(cells, measure)
    scale, digits = (100, 2) if measure == "test_accuracy" else (1, 3)
    rows = []
    for setting in settings(config):
        row = [setting.optimizer, setting.partition, str(setting.period)]
        for name in COMPARED:
            text = _spread(scale * cells[setting, name].values[measure], digits)
            verdict = found.get((setting, name))
            if verdict is not None and verdict.told_apart:
                text += " +" if verdict.better else " -"
            row.append(text)
        rows.append(row)
    return _section(TITLES[measure], _head(COMPARED), rows)


def drift(config: StreamingConfig) -> str:
    """The workers' mean squared distance from their mean, at one learning rate."""
    found = drifts_of(config)
    names = [name for name in COMPARED if name != "ssgd"]
    rows = [
        [
            setting.optimizer,
            setting.partition,
            str(setting.period),
            *(_spread(found[setting, name], 3) for name in names),
        ]
        for setting in settings(config)
    ]
    sgd, adamw = middle(config.sgd_rates), middle(config.adamw_rates)
    title = f"Drift, all at the learning rate {sgd} (sgd) and {adamw} (adamw)"
    return _section(title, _head(names), rows)


def quadratic(config: StreamingConfig) -> str:
    """Measured over expected drift, where gradients hardly change with x."""
    records = read_jsonl(quadratic_run(config).log)["deviation"]
    names = list(dict.fromkeys(r["algorithm"] for r in records))
    cells: dict[tuple[float, int], dict[str, str]] = {}
    for r in records:
        row = cells.setdefault((r["dissimilarity"], r["period"]), {})
        row[r["algorithm"]] = f"{np.mean(r['deviations']) / r['expected']:.3f}"
    rows = [
        [f"{zeta:g}", str(period), *(row[name] for name in names)]
        for (zeta, period), row in cells.items()
    ]
    head = ["ζ", "k", *(ALGORITHMS[name][0] for name in names)]
    return _section("Drift on the quadratic, measured / expected", head, rows)


def traffic(config: StreamingConfig) -> str:
    """Bytes that a worker puts into exchanges for each local step."""
    sent = {
        (run.algorithm, run.period): read_jsonl(run.log)["sent"][0]["bytes_per_step"]
        for run in mlp_runs(config)
    }
    rows = [
        [str(period), *(f"{sent[name, 1 if name == 'ssgd' else period]:,.0f}"
                        for name in COMPARED)]
        for period in config.periods
    ]  # fmt: skip
    head = ["k", *(ALGORITHMS[name][0] for name in COMPARED)]
    return _section("Bytes for each step of a worker", head, rows)


def seconds(config: StreamingConfig) -> str:
    """Steps of all workers on the clock, in units of Tc."""
    rows = [
        [f"{ratio:g}", str(period), *(
            f"{clock(config, name, period, ratio).seconds_per_step:.2f}"
            for name in COMPARED
        )]
        for ratio in config.ratios
        for period in config.periods
    ]  # fmt: skip
    head = ["Tm / Tc", "k", *(ALGORITHMS[name][0] for name in COMPARED)]
    title = (
        f"Clock: a step in units of Tc, {config.workers} workers, latency "
        f"{config.latency:g} Tc, jitter {config.jitter:.0%}"
    )
    return _section(title, head, rows)


def _head(names: Sequence[str]) -> list[str]:
    return ["optimizer", "split", "k", *(ALGORITHMS[name][0] for name in names)]


def _spread(values: np.ndarray, digits: int) -> str:
    """Mean and standard deviation; how many have diverged."""
    lost = np.isnan(values).sum()
    if lost == len(values):
        return "diverged"
    text = f"{np.nanmean(values):.{digits}f} ± {np.nanstd(values, ddof=1):.{digits}f}"
    return text + (f" ({lost} diverged)" if lost else "")


def _section(title: str, head: Sequence[str], rows: list[list[str]]) -> str:
    return f"### {title}\n\n{markdown.table(head, rows)}"
