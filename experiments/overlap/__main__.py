"""The overlap on a real slow network: ``python -m experiments.overlap``.

Every worker is a process on a core of its own, in a network namespace of its own;
rate-limited links join them. Rates other than ``none`` (loopback) need Linux, root
and iproute2. In one run, interleaved and repeated: the local steps alone (Tc), the
exchange alone (Tm), and a round of every algorithm.
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
from experiments.overlap import figures
from experiments.overlap.config import OverlapConfig
from experiments.overlap.peers import run_torch, torch_python


def measure_ours(
    config: OverlapConfig, network: Network, log: Logbook, show: progress.Reporter
) -> list[dict[str, Any]]:
    """This library's results at one rate, and what explains them, logged."""
    rate = network.rate or "none"
    with network:
        records = run_program(
            network,
            [sys.executable, "-m", "experiments.overlap.worker"],
            timeout=3600,
            show=show.within(links_of(rate)),
            model=config.model,
            width=config.width,
            batch_size=config.batch_size,
            period=config.period,
            repeats=config.repeats,
            algorithms=config.algorithms,
        )
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
    """Seconds per step, from the least to the greatest, and how good that is.

    The last two columns are the part of the round that computation or exchange needs
    anyway, and the least part of the exchange beside which a worker computed.
    """
    ours = {
        r["algorithm"]: r["seconds_per_round"] for r in results if r["side"] == "ours"
    }
    compute, exchange = ours["local steps"], ours["exchange"]
    baseline = ALGORITHMS["ssgd"][0]
    each = f"Tc {compute / config.period:.3f} s, Tm {exchange:.3f} s"
    shown = Table(title=f"{links_of(rate)}: {each}")
    shown.add_column("algorithm")
    for column in ("s per step", "from", "to", f"against {baseline}"):
        shown.add_column(column, justify="right")
    for column in ("max(k Tc, Tm) / round", "hidden"):
        shown.add_column(column, justify="right")
    for r in results:
        if r["is_algorithm"]:
            faster = ours.get(baseline, math.nan) / r["seconds_per_round"]
            shown.add_row(
                f"{r['algorithm']} ({r['side']})",
                f"{r['seconds_per_step']:.3f}",
                *(f"{end(r['repeats']) / config.period:.3f}" for end in (min, max)),
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
            for network in config.networks():
                results = measure_ours(config, network, log, show)
                if python:
                    results += measure_torch(config, network, log, show, python)
                show.print(table(config, network.rate or "none", results))
        show.now("drawing")
        figures.bars(path, config.out / "bars.png")
        figures.timelines(path, config.out / "timelines.png")
        show.line(f"log and figures: {config.out}")


if __name__ == "__main__":
    command.run(main, OverlapConfig, __doc__)
