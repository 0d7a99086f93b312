"""What came out, beside what the paper says, as Markdown from logs and clock."""

from cocod_jax.loggers import read_jsonl
from cocod_jax.style import ALGORITHMS
from experiments.compare import mean_and_spread
from experiments.figures import by_algorithm
from experiments.overlap.clock import Clock
from experiments.paper import figures


def report(logs: figures.Logs, shares: figures.Logs, clocks: dict[str, Clock]) -> str:
    """All tables; unequal workers on the last of the links."""
    *_, last = clocks.values()
    return "\n".join([accuracy(logs), speed(clocks), unequal(shares, last)])


def accuracy(logs: figures.Logs) -> str:
    """Test accuracy of the consensus after the last epoch, in percent."""
    lines = [
        "## Test accuracy at equal epochs",
        "",
        "Of the consensus, in percent: mean ± standard deviation over seeds.",
        "",
        "| network | " + " | ".join(ALGORITHMS[name][0] for name in ALGORITHMS) + " |",
        "|---" * (1 + len(ALGORITHMS)) + "|",
    ]
    for model, paths in logs.items():
        runs = by_algorithm(paths)
        cells = [mean_and_spread(runs[name]) for name in ALGORITHMS]
        lines.append(f"| {model} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def speed(clocks: dict[str, Clock]) -> str:
    """How much faster a step of CoCoD-SGD is than one of the others."""
    lines = [
        "## Time",
        "",
        "Seconds of a step of the others over those of CoCoD-SGD.",
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
        runs = [read_jsonl(path) for path in paths]
        seconds = figures.unequal_seconds(clock, runs)
        lines.append(
            f"| {figures.UNEQUAL[name][0]} | {mean_and_spread(runs)} | {seconds:.1f} |"
        )
    return "\n".join(lines) + "\n"
