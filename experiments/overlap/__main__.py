"""The overlap on a real slow network: ``python -m experiments.overlap``.

Every worker is a process on a core of its own, in a network namespace of its own;
rate-limited links join them. Rates other than ``none`` (loopback) need Linux, root
and iproute2. In one run, interleaved and repeated: the local steps alone (Tc), the
exchange alone (Tm), and a round of every algorithm. With ``--balance`` a short run on
the loopback comes first, and the links are made so slow that Tm / Tc is what was asked
for; what came out is logged beside it.
"""

import math
import sys
from pathlib import Path
from typing import Any

from rich.table import Table

from cocod_jax.observe.loggers import Logbook
from cocod_jax.style import ALGORITHMS
from experiments import command, logbook, progress
from experiments.cluster.network import Network, links_of
from experiments.cluster.processes import machine, run_program
from experiments.overlap import balance, figures
from experiments.overlap.config import OverlapConfig
from experiments.overlap.peers import run_torch, torch_python


def balanced(
    config: OverlapConfig, log: Logbook, show: progress.Reporter
) -> list[Network]:
    """Links on which Tm is so many times Tc, by the local steps as they are now."""
    loopback = Network(config.workers, None)
    with loopback:
        records = run_ours(config, loopback, show, algorithms=(), records="times")
    first = {r["algorithm"]: r for r in records if r["worker"] == 0}
    compute = first["local steps"]["seconds_per_round"] / config.period
    sent_bytes = first["exchange"]["sent_bytes"]
    found = []
    for asked in config.balances():
        rate = balance.rate_of(asked, compute, sent_bytes, config.workers)
        found.append(Network(config.workers, rate))
        log.write(
            "balance", asked=asked, rate=rate, compute=compute, sent_bytes=sent_bytes
        )
    return found


def run_ours(
    config: OverlapConfig,
    network: Network,
    show: progress.Reporter,
    **options: Any,
) -> list[dict[str, Any]]:
    """What this library's workers report."""
    return run_program(
        network,
        [sys.executable, "-m", "experiments.overlap.worker"],
        timeout=3600,
        show=show.within(links_of(network.rate or "none")),
        model=config.model,
        width=config.width,
        batch_size=config.batch_size,
        period=config.period,
        repeats=config.repeats,
        **{"algorithms": config.algorithms, **options},
    )


def measure_ours(
    config: OverlapConfig, network: Network, log: Logbook, show: progress.Reporter
) -> list[dict[str, Any]]:
    """This library's results at one rate, and what explains them, logged."""
    rate = network.rate or "none"
    with network:
        records = run_ours(config, network, show)
    hidden = {}
    for record in records:
        if "timeline" in record and record["hidden"] is not None:
            name = record["timeline"]
            hidden[name] = min(record["hidden"], hidden.get(name, 1.0))
        for kind in ("timeline", "part", "profile"):
            if kind in record:
                log.write(kind, rate=rate, name=record.pop(kind), **record)
    results = [
        {
            **_result(config, rate, "ours", record, record["seconds_per_round"]),
            "delay": record.get("delay"),
            "hidden": hidden.get(record["algorithm"]),
        }
        for record in records
        if "algorithm" in record and record["worker"] == 0
    ]
    for result in results:
        log.write("result", **result)
    return results


def measure_torch(
    config: OverlapConfig,
    network: Network,
    log: Logbook,
    show: progress.Reporter,
    python: Path,
) -> list[dict[str, Any]]:
    """PyTorch's results on links of the same rate, logged."""
    rate = network.rate or "none"
    with network:
        records = run_torch(
            network,
            python,
            period=config.period,
            repeats=config.repeats,
            show=show.within(links_of(rate)),
        )
    results = [
        _result(config, rate, "PyTorch", record, record["seconds_per_round"])
        for record in records
        if record["worker"] == 0
    ]
    for result in results:
        log.write("result", **result)
    return results


def _result(
    config: OverlapConfig, rate: str, side: str, record: dict[str, Any], seconds: float
) -> dict[str, Any]:
    return {
        "rate": rate,
        "side": side,
        "algorithm": record["algorithm"],
        "is_algorithm": record["algorithm"] not in ("local steps", "exchange"),
        "seconds_per_step": seconds / config.period,
        "seconds_per_round": seconds,
        "repeats": record["repeats"],
    }


def table(config: OverlapConfig, rate: str, results: list[dict[str, Any]]) -> Table:
    """A step of each algorithm over Tc of the same run, and how good that is.

    The last two columns are the part of the round that computation or exchange needs
    anyway, and the least part of the exchange beside which a worker computed.
    """
    ours = {
        r["algorithm"]: r["seconds_per_round"] for r in results if r["side"] == "ours"
    }
    compute, exchange = ours["local steps"], ours["exchange"]
    baseline = ALGORITHMS["ssgd"][0]
    step = compute / config.period
    title = f"{links_of(rate)}: Tm / Tc {exchange / step:.2f}, Tc {step:.3f} s"
    shown = Table(title=title)
    shown.add_column("algorithm")
    for column in ("step / Tc", "from", "to", "s per step", f"against {baseline}"):
        shown.add_column(column, justify="right")
    for column in ("max(k Tc, Tm) / round", "hidden"):
        shown.add_column(column, justify="right")
    for r in results:
        if r["is_algorithm"]:
            faster = ours.get(baseline, math.nan) / r["seconds_per_round"]
            shown.add_row(
                f"{r['algorithm']} ({r['side']})",
                f"{r['seconds_per_step'] / step:.2f}",
                *(f"{end(r['repeats']) / compute:.2f}" for end in (min, max)),
                f"{r['seconds_per_step']:.3f}",
                f"{faster:.2f} x",
                f"{max(compute, exchange) / r['seconds_per_round']:.3f}",
                f"{r['hidden']:.0%}" if r.get("hidden") is not None else "",
            )
    return shown


def main(config: OverlapConfig) -> None:
    """Measures at every rate; leaves a log and two figures.

    What is measured at a rate is in the log before the next one begins: a worker that
    fails takes no more than its own rate's.

    Raises:
      RuntimeError: when the network cannot be made, or a worker fails.
    """
    python = torch_python(config.peers_environment) if config.peers == "torch" else None
    path = config.out / "overlap.jsonl"
    with progress.report() as show:
        with logbook.opened(path, config, machine=machine()) as log:
            chosen = config.balance is not None
            links = balanced(config, log, show) if chosen else config.networks()
            for network in links:
                results = measure_ours(config, network, log, show)
                if python:
                    results += measure_torch(config, network, log, show, python)
                show.print(table(config, network.rate or "none", results))
        show.now("drawing")
        figures.bars(path, config.out / "bars.png")
        figures.timelines(path, config.out / "timelines.png")
        if config.balance is not None:
            text = balance.table(path)
            path.with_name("balance.md").write_text(text)
            show.line(text)
        show.line(f"log and figures: {config.out}")


if __name__ == "__main__":
    command.run(main, OverlapConfig, __doc__)
