"""What an exchange sends, and what passes the links: ``python -m experiments.wire``.

Every worker is a process in a network namespace of its own. Beside the bytes that the
library's data flow tells of stands what the workers' interfaces have counted.
"""

import sys
from collections.abc import Iterator
from typing import Any

from rich.table import Table

from experiments import command, logbook, progress
from experiments.cluster.network import Network
from experiments.cluster.processes import machine, run_program
from experiments.wire.config import WireConfig
from experiments.wire.exchanges import EXCHANGES, link_bytes

# Of Ethernet, IPv4 and TCP with time stamps. An interface counts a packet of up to 64
# kB, with one header, before the network card would cut it.
HEADER = 14 + 20 + 32


def measure(
    config: WireConfig, workers: int, show: progress.Reporter
) -> Iterator[dict[str, Any]]:
    """A result for each exchange: means of one exchange and worker."""
    with Network(workers, config.rate) as network:
        records = run_program(
            network,
            [sys.executable, "-m", "experiments.wire.worker"],
            timeout=600,
            show=show.within(f"{workers} workers"),
            parameters=config.parameters,
            exchanges=config.exchanges,
        )
    for name, make in EXCHANGES.items():
        own = [r for r in records if r.get("exchange") == name]
        each = 1 / (len(own) * config.exchanges)
        counted = each * sum(r["tx_bytes"] for r in own)
        packets = each * sum(r["tx_packets"] for r in own)
        told = link_bytes(make(), workers, config.parameters)
        yield {
            "workers": workers,
            "exchange": name,
            "told": told,
            "counted": counted,
            "packets": packets,
            "payload": counted - HEADER * packets,
            "off": (counted - HEADER * packets) / told - 1,
        }


def table(results: list[dict[str, Any]]) -> Table:
    """What was told beside what was counted."""
    names = ("workers", "exchange", "told, kB", "counted, kB", "payload", "of mean")
    shown = Table(*names)
    for result in results:
        mean = next(
            r["payload"]
            for r in results
            if (r["workers"], r["exchange"]) == (result["workers"], "mean")
        )
        shown.add_row(
            str(result["workers"]),
            result["exchange"],
            f"{result['told'] / 1e3:.1f}",
            f"{result['counted'] / 1e3:.1f}",
            f"{result['off']:+.2%}",
            f"{result['payload'] / mean:.3f}",
        )
    return shown


def main(config: WireConfig) -> None:
    """Counts, logs and prints."""
    results = []
    with progress.report() as show:
        path = config.out / "wire.jsonl"
        with logbook.opened(path, config, machine=machine()) as log:
            for workers in config.workers:
                for result in measure(config, workers, show):
                    log.write("result", **result)
                    results.append(result)
        show.print(table(results))


if __name__ == "__main__":
    command.run(main, WireConfig, __doc__)
