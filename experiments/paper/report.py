"""What came out, beside what the paper says, as Markdown from logs and clock."""

from collections.abc import Sequence

import numpy as np

from experiments import logbook
from experiments.figures import STYLES
from experiments.overlap.clock import Clock
from experiments.paper import figures


def report(
    logs: figures.Logs,
    shares: figures.Logs,
    clocks: dict[str, Clock],
    rate: str,
) -> str:
    """All tables."""
    parts = [accuracy(logs), speed(clocks), unequal(shares, clocks[rate])]
    return "\n".join(parts)


def accuracy(logs: figures.Logs) -> str:
    """Test accuracy of the consensus after the last epoch, in percent."""
    names = [name for name in STYLES]
    lines = [
        "## Test accuracy at equal epochs",
        "",
        "Of the consensus, in percent: mean ± standard deviation over seeds.",
        "",
        "| network | " + " | ".join(STYLES[name][0] for name in names) + " |",
        "|---" * (1 + len(names)) + "|",
    ]
    for model, paths in logs.items():
        runs = figures.read(paths)
        cells = [
            _percent([r["epoch"][-1]["test_accuracy"] for r in runs[n]]) for n in names
        ]
        lines.append(f"| {model} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _percent(shares: Sequence[float]) -> str:
    values = 100 * np.array(shares)
    spread = values.std(ddof=1) if len(values) > 1 else 0.0
    return f"{values.mean():.2f} ± {spread:.2f}"


def speed(clocks: dict[str, Clock]) -> str:
    """How much faster a step of CoCoD-SGD is than one of the others."""
    lines = [
        "## Time",
        "",
        "Seconds of a step of the others over those of CoCoD-SGD: measured with two "
        "workers, by the clock with more of them.",
        "",
        "| links | workers | Tm / Tc | S-SGD | Pipe-SGD | Local SGD |",
        "|---|---|---|---|---|---|",
    ]
    for clock in clocks.values():
        rows = {f"{clock.workers}, measured": clock.measured}
        ratios = {f"{clock.workers}, measured": clock.exchange / clock.compute}
        for workers in (clock.workers, 4, 16):
            rows[f"{workers}, clock"] = {
                name: clock.timeline(algorithm, workers).seconds_per_step
                for name, algorithm in clock.algorithms.items()
            }
            ratios[f"{workers}, clock"] = clock.exchange_of(workers) / clock.compute
        for label, seconds in rows.items():
            others = ("S-SGD", "Pipe-SGD", "Local SGD")
            factors = [f"{seconds[n] / seconds['CoCoD-SGD']:.2f} x" for n in others]
            lines.append(
                f"| {clock.rate} | {label} | {ratios[label]:.2f} | "
                + " | ".join(factors)
                + " |"
            )
    return "\n".join(lines) + "\n"


def unequal(shares: figures.Logs, clock: Clock) -> str:
    """Accuracy and seconds of an epoch on unequal workers."""
    lines = [
        "## Unequal workers",
        "",
        f"ResNet-18 on workers of speeds {figures.SPEEDS}, {clock.rate} links.",
        "",
        "| | test accuracy [%] | seconds of an epoch (clock) |",
        "|---|---|---|",
    ]
    for name, paths in shares.items():
        runs = [logbook.read(path) for path in paths]
        final = _percent([r["epoch"][-1]["test_accuracy"] for r in runs])
        seconds = figures.unequal_seconds(clock, runs)
        lines.append(f"| {figures.UNEQUAL[name][0]} | {final} | {seconds:.1f} |")
    return "\n".join(lines) + "\n"
