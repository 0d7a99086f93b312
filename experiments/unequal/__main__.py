"""Unequal workers, measured: ``python -m experiments.unequal``.

Two workers, one of which shares its core with a process that spins: equal shares of
the work against shares in proportion to the measured capabilities. And workers that
are stopped at random: how much of the pauses each algorithm absorbs.
"""

import statistics
import sys
from typing import Any

from rich.table import Table

from experiments import command, logbook, progress
from experiments.cluster.network import Network
from experiments.cluster.processes import machine, run_program
from experiments.unequal import figures
from experiments.unequal.config import UnequalConfig


def measure(config: UnequalConfig, show: progress.Reporter) -> list[dict[str, Any]]:
    """What every worker reported."""
    rate = None if config.rate == "none" else config.rate
    with Network(config.workers, rate) as network:
        return run_program(
            network,
            [sys.executable, "-m", "experiments.unequal.worker"],
            timeout=3600,
            show=show.now,
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
    with progress.report() as show:
        with logbook.opened(path, config, machine=machine()) as log:
            records = measure(config, show)
            for record in records:
                log.write("result", **record)
        figures.unequal(path, config.out / "unequal.png")
        for table in tables(records):
            show.print(table)


if __name__ == "__main__":
    command.run(main, UnequalConfig, __doc__)
