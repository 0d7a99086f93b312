"""What came out, beside what the paper says, as Markdown from logs and clock."""

from cocod_jax.style import ALGORITHMS
from experiments import markdown
from experiments.clock import Clock
from experiments.cluster.network import links_of
from experiments.figures import by_algorithm
from experiments.paper import figures
from experiments.paper.config import EQUAL, SPEEDS
from experiments.sweep import mean_and_spread, results


def report(logs: figures.Logs, shares: figures.Logs, clocks: dict[str, Clock]) -> str:
    """All tables; unequal workers on the last of the links."""
    *_, last = clocks.values()
    return "\n".join([accuracy(logs), speed(clocks), unequal(shares, last)])


def accuracy(logs: figures.Logs) -> str:
    """Test accuracy of the consensus after the last epoch, in percent."""
    trained = EQUAL
    others = [name for name in trained if name != "ssgd"]
    ended, less = [], []
    for model, paths in logs.items():
        runs = by_algorithm(paths)
        ended.append([model, *(mean_and_spread(runs[name]) for name in trained)])
        differences = (_differences(runs[name], runs["ssgd"]) for name in others)
        less.append([model, *differences])
    head = lambda names: ["network", *(ALGORITHMS[name][0] for name in names)]
    parts = [
        "## Test accuracy at equal epochs\n",
        "Of the consensus, in percent: mean ± standard deviation over seeds.\n",
        markdown.table(head(trained), ended),
        "Less that of S-SGD with the same seed: of each seed, and in the mean.\n",
        markdown.table(head(others), less),
    ]
    return "\n".join(parts)


def _differences(runs: list[dict], to: list[dict]) -> str:
    by_seed = lambda runs: sorted(runs, key=lambda r: r["run"][0]["config"]["seed"])
    each = results(by_seed(runs)) - results(by_seed(to))
    return f"{', '.join(f'{d:+.1f}' for d in each)}; {each.mean():+.2f}"


def speed(clocks: dict[str, Clock]) -> str:
    """How much faster a step of CoCoD-SGD is than one of the others."""
    ours = ALGORITHMS["cocod"][0]
    others = [ALGORITHMS[key][0] for key in EQUAL if key != "cocod"]
    buckets = "S-SGD in buckets"
    parts = [
        "## Time\n",
        "Seconds of a step of the others over those of CoCoD-SGD. S-SGD in buckets "
        "sends during the backward pass; it was not measured.\n",
    ]
    table = []
    for clock in clocks.values():
        rows = {f"{clock.workers}, measured": clock.measured}
        ratios = {f"{clock.workers}, measured": clock.exchange / clock.compute}
        algorithms = {**clock.algorithms, buckets: figures.IN_BUCKETS}
        for workers in (clock.workers, 4, 16):
            rows[f"{workers}, clock"] = {
                name: clock.timeline(algorithm, workers).seconds_per_step
                for name, algorithm in algorithms.items()
            }
            ratios[f"{workers}, clock"] = clock.exchange_of(workers) / clock.compute
        for label, seconds in rows.items():
            cells = [clock.rate, label, f"{ratios[label]:.2f}"]
            cells += [f"{seconds[n] / seconds[ours]:.2f} x" for n in others]
            last = seconds.get(buckets)
            cells.append(f"{last / seconds[ours]:.2f} x" if last else "")
            table.append(cells)
    head = ["links", "workers", "Tm / Tc", *others, buckets]
    return "\n".join([*parts, markdown.table(head, table)])


def unequal(shares: figures.Logs, clock: Clock) -> str:
    """Accuracy and seconds of an epoch on unequal workers."""
    rows = []
    for share, paths in shares.items():
        runs = by_algorithm(paths)
        for name in (name for name in ALGORITHMS if name in runs):
            label = f"{ALGORITHMS[name][0]}, {figures.SHARES[share]}"
            seconds = figures.unequal_seconds(clock, runs[name])
            spread = mean_and_spread(runs[name])
            rows.append([label, spread, f"{seconds:.1f}"])
    parts = [
        "## Unequal workers\n",
        f"ResNet-18 on workers of speeds {SPEEDS}, {links_of(clock.rate)}.\n",
        markdown.table(["", "test accuracy [%]", "seconds of an epoch (clock)"], rows),
    ]
    return "\n".join(parts)
