"""Unequal workers, measured: ``python -m experiments.overlap.unequal``.

Two workers, one of which shares its core with a process that spins: equal shares of
the work against shares in proportion to the measured capabilities. And workers that
are stopped at random: how much of the pauses each algorithm absorbs.
"""

import dataclasses
import statistics
import sys
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.table import Table

from cocod_jax.observe.loggers import to_jsonl
from experiments import logbook
from experiments.overlap import figures
from experiments.overlap.network import Network
from experiments.overlap.processes import machine, run_program


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnequalConfig:
    """What is measured."""

    rate: str = "500mbit"
    """Of the links, as ``tc`` writes it; none for loopback."""
    workers: int = 2
    """Processes, each on its core; the last one is slow."""
    width: int = 32
    """Channels of the first stage of ResNet-18."""
    batch_size: int = 8
    """Images in a micro-batch."""
    micro_batches: int = 12
    """Micro-batches that all workers together take in a local step."""
    period: int = 4
    """Local steps in a round."""
    pause: float = 0.5
    """Seconds of a random pause of a worker."""
    interval: float = 2.0
    """Seconds from a pause of a worker to its next one, on average."""
    repeats: int = 5
    """Interleaved measurements: the median of those of shares counts, and the mean of
    those with pauses."""
    out: Path = Path("runs/unequal")
    """Folder for the log and the figure."""


def measure(config: UnequalConfig) -> list[dict[str, Any]]:
    """What every worker reported."""
    rate = None if config.rate == "none" else config.rate
    with Network(config.workers, rate) as network:
        return run_program(
            network,
            [sys.executable, "-m", "experiments.overlap.unequal_worker"],
            timeout=3600,
            width=config.width,
            batch_size=config.batch_size,
            micro_batches=config.micro_batches,
            period=config.period,
            pause=config.pause,
            interval=config.interval,
            repeats=config.repeats,
        )


def tables(records: list[dict[str, Any]]) -> tuple[Table, Table]:
    """Equal against proportional shares; and the pauses, with their spread."""
    shares = Table("shares", "micro-batches", "images/s", "idle", title="A slow worker")
    idle: dict[str, list[str]] = {}
    for record in (r for r in records if "shares" in r):
        idle.setdefault(record["shares"], []).append(f"{record['idle']:.0%}")
    for record in (r for r in records if "shares" in r and r["worker"] == 0):
        shares.add_row(
            record["shares"],
            str(tuple(record["micro_batches"])),
            f"{record['images_per_second']:.1f}",
            ", ".join(idle[record["shares"]]),
        )
    pauses = Table(
        "algorithm", "s per round", "with pauses", "more", title="Random pauses"
    )
    for record in (r for r in records if "pauses" in r and r["worker"] == 0):
        more = [rough - smooth for smooth, rough in record["repeats"]]
        spread = f" ± {statistics.stdev(more):.2f}" if len(more) > 1 else ""
        pauses.add_row(
            record["pauses"],
            f"{record['without']:.2f}",
            f"{record['with']:.2f}",
            f"{statistics.mean(more):.2f}{spread}",
        )
    return shares, pauses


def main(config: UnequalConfig) -> None:
    """Measures, logs, draws and prints."""
    path = config.out / "unequal.jsonl"
    with to_jsonl(path) as log:
        log.write("run", **logbook.circumstances(config), machine=machine())
        records = measure(config)
        for record in records:
            log.write("result", **record)
    figures.unequal(path, config.out / "unequal.png")
    console = Console()
    for table in tables(records):
        console.print(table)


if __name__ == "__main__":
    main(tyro.cli(UnequalConfig, description=__doc__))
