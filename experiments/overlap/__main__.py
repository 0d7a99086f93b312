"""The overlap on a real slow network: ``python -m experiments.overlap``.

Every worker is a process on a core of its own, in a network namespace of its own;
rate-limited links join them. Rates other than ``none`` (loopback) need Linux, root
and iproute2. In one run, interleaved and repeated: the local steps alone (Tc), the
exchange alone (Tm), and a round of every algorithm.
"""

import dataclasses
import math
import sys
from pathlib import Path
from typing import Any, Literal, get_args

import tyro
from rich.console import Console
from rich.table import Table

from cocod_jax.observe.loggers import Logbook, to_jsonl
from experiments.logbook import circumstances
from experiments.overlap import figures
from experiments.overlap.jax_worker import Algorithm
from experiments.overlap.network import Network, links_of
from experiments.overlap.peers import run_torch, torch_python
from experiments.overlap.processes import machine, run_program


@dataclasses.dataclass(frozen=True, kw_only=True)
class OverlapConfig:
    """What is measured, and on which links."""

    rate: str = "500mbit,200mbit"
    """Rates of the links, as ``tc`` writes them, with commas; none for loopback."""
    workers: int = 2
    """Processes, each on its core."""
    width: int = 64
    """Channels of the first stage of ResNet-18."""
    batch_size: int = 16
    """Images of 32 x 32 pixels in a local batch."""
    period: int = 4
    """Local steps in a round."""
    repeats: int = 5
    """Interleaved measurements of each algorithm; their median counts."""
    algorithms: tuple[Algorithm, ...] = get_args(Algorithm)
    """Which of this library's."""
    peers: Literal["none", "torch"] = "none"
    """Whether PyTorch runs on the same links, in a virtual environment of its own."""
    peers_environment: Path = Path(".venv-torch")
    """Where that environment is, or will be made."""
    out: Path = Path("runs/overlap")
    """Folder for the log and the figure."""


def measure_ours(
    config: OverlapConfig, network: Network, log: Logbook
) -> list[dict[str, Any]]:
    """This library's results at one rate, and what explains them, logged."""
    rate = network.rate or "none"
    with network:
        records = run_program(
            network,
            [sys.executable, "-m", "experiments.overlap.jax_worker"],
            timeout=3600,
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
    config: OverlapConfig, network: Network, log: Logbook, python: Path
) -> list[dict[str, Any]]:
    """PyTorch's results on links of the same rate, logged."""
    with network:
        records = run_torch(
            network, python, period=config.period, repeats=config.repeats
        )
    rate = network.rate or "none"
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

    The last two columns: the part of the round that computation or exchange needs
    anyway, and the part of the exchange beside which a worker computed, at least.
    """
    ours = {
        r["algorithm"]: r["seconds_per_round"] for r in results if r["side"] == "ours"
    }
    compute, exchange = ours["local steps"], ours["exchange"]
    each = f"Tc {compute / config.period:.3f} s, Tm {exchange:.3f} s"
    shown = Table(title=f"{links_of(rate)}: {each}")
    shown.add_column("algorithm")
    for column in ("s per step", "from", "to", "against S-SGD"):
        shown.add_column(column, justify="right")
    for column in ("max(k Tc, Tm) / round", "hidden"):
        shown.add_column(column, justify="right")
    for r in results:
        if r["is_algorithm"]:
            faster = ours.get("S-SGD", math.nan) / r["seconds_per_round"]
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
      ValueError: when a rate cannot be parsed, there are fewer than 2 workers, or
        PyTorch would run another network or batch.
      RuntimeError: when the network cannot be made, or a worker fails.
    """
    if config.workers < 2:
        raise ValueError(f"workers={config.workers} must be 2 or more: they exchange.")
    rates = [None if rate == "none" else rate for rate in config.rate.split(",")]
    networks = [Network(config.workers, rate) for rate in rates]
    if config.peers == "torch" and (config.width, config.batch_size) != (64, 16):
        raise ValueError(
            f"--peers torch has width 64 and batch size 16, not {config.width} and "
            f"{config.batch_size}."
        )
    python = torch_python(config.peers_environment) if config.peers == "torch" else None
    console = Console()
    path = config.out / "overlap.jsonl"
    with to_jsonl(path) as log:
        log.write("run", **circumstances(config), machine=machine())
        for network in networks:
            results = measure_ours(config, network, log)
            if python:
                results += measure_torch(config, network, log, python)
            console.print(table(config, network.rate or "none", results))
    figures.bars(path, config.out / "bars.png")
    figures.timelines(path, config.out / "timelines.png")
    console.print(f"log and figures: {config.out}")


if __name__ == "__main__":
    main(tyro.cli(OverlapConfig, description=__doc__))
