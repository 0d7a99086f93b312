"""One worker of the study: exchanges, and what its interface counts meanwhile."""

import dataclasses
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import tyro
from jax.experimental import multihost_utils

import cocod_jax as cj
from experiments.algorithms import AXIS
from experiments.cluster.worker import report
from experiments.wire.exchanges import EXCHANGES

_STATISTICS = Path("/sys/class/net/eth0/statistics")  # of the worker's own namespace


@dataclasses.dataclass(frozen=True, kw_only=True)
class WireWorkerConfig:
    """What to exchange, the same for all workers but for the rank."""

    rank: int
    """The number of this worker."""
    workers: int
    """How many there are."""
    address: str
    """HOST:PORT that worker 0 listens on."""
    parameters: int
    """Numbers in the buffer."""
    exchanges: int
    """Of each kind."""


def counted() -> dict[str, int]:
    """Bytes and packets that have left this worker so far."""
    names = ("tx_bytes", "tx_packets")
    return {name: int((_STATISTICS / name).read_text()) for name in names}


def main(config: WireWorkerConfig) -> None:
    """Counts what leaves this worker in each kind of exchange."""
    jax.distributed.initialize(config.address, config.workers, config.rank)
    draw = jax.random.normal(jax.random.key(config.rank), [config.parameters])
    tree = jnp.asarray(draw)[None]
    for name, make in EXCHANGES.items():
        exchange = make()
        send = jax.pmap(lambda s, x, e=exchange: e.send(s, x, None), AXIS)
        state = cj.replicate(exchange.init(jnp.zeros(config.parameters)), 1)
        _, state = jax.block_until_ready(send(state, tree))  # the links are open
        multihost_utils.sync_global_devices(name)
        time.sleep(0.2)  # what still goes to and fro belongs to what was before
        before = counted()
        for _ in range(config.exchanges):
            _, state = jax.block_until_ready(send(state, tree))
        time.sleep(0.2)
        after = counted()
        multihost_utils.sync_global_devices(f"{name}: counted")
        report({"exchange": name} | {key: after[key] - before[key] for key in after})
    jax.distributed.shutdown()


if __name__ == "__main__":
    main(tyro.cli(WireWorkerConfig, description=__doc__))
