"""One worker of the benchmark of unequal workers; prints JSON lines.

First the last worker shares its core with a process that spins, so that it is really
slow. Then all workers are equal, and each is stopped now and then, at random.
"""

import dataclasses
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import jax
import numpy as np
import optax
import tyro
from jax.experimental import multihost_utils

import cocod_jax as cj
from cocod_jax.style import ALGORITHMS
from experiments.algorithms import AXIS
from experiments.cluster import trace
from experiments.cluster.worker import (
    Run,
    Stages,
    Worker,
    WorkerConfig,
    report,
    rounds,
    seconds,
    split,
    steps,
)

_ROUNDS = 10  # in a measurement: the faster worker may be one ahead
_PAUSED_ROUNDS = 20  # in a measurement: some pauses of every worker

_SPIN = "while True: pass"
_STOP_AND_GO = """
import os, random, signal, sys, time
seed, pause, interval = int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
signal.signal(signal.SIGTERM, lambda *_: sys.exit())
chance, parent = random.Random(seed), os.getppid()
try:
    while True:
        time.sleep(chance.expovariate(1 / interval))
        os.kill(parent, signal.SIGSTOP)
        time.sleep(pause)
        os.kill(parent, signal.SIGCONT)
finally:
    os.kill(parent, signal.SIGCONT)
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnequalWorkerConfig(WorkerConfig):
    """What to measure, the same for all workers but for the rank."""

    micro_batches: int = 12
    """Micro-batches of batch_size images that all workers together take in a step."""
    pause: float = 0.5
    """Seconds for which a worker is stopped."""
    interval: float = 2.0
    """Seconds from a pause of a worker to its next one, on average."""


@contextmanager
def beside(*command: str) -> Iterator[None]:
    """A Python process on the same core, for the while."""
    process = subprocess.Popen([sys.executable, "-c", *command])
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def shared(worker: Worker, shares: tuple[int, ...]) -> Run:
    """CoCoD-SGD in which worker i takes ``shares[i]`` micro-batches in a step."""
    config = worker.config
    round_ = worker.round_(cj.cocod(AXIS, weights=shares))
    data = worker.draw(config.period, max(shares), config.batch_size)
    count = np.full((1, config.period), shares[config.rank], np.int32)
    return split(worker, round_, cj.MicroBatches(data, count))


def capabilities(worker: Worker) -> tuple[float, ...]:
    """Steps per second of every worker, measured at the same time."""
    round_ = worker.round_(cj.independent())
    step = worker.over(round_.step, worker.devices)
    state = worker.state(round_)
    compute = lambda: step(state, worker.batch)
    jax.block_until_ready(compute())  # compiled before the others begin
    multihost_utils.sync_global_devices("capabilities")
    own = cj.workers.measure_capability(compute, seconds=3.0)
    return cj.workers.gather_capabilities(own)


def slowed(worker: Worker, config: UnequalWorkerConfig, stages: Stages) -> None:
    """Equal shares against shares in proportion, with a last worker that is slow."""
    workers, total = config.workers, config.micro_batches
    stages.begin("a slow worker: capabilities")
    measured = capabilities(worker)
    shares = {
        "equal": cj.workers.batch_shares([1] * workers, total),
        "proportional": cj.workers.batch_shares(measured, total),
    }
    runs = {name: shared(worker, each) for name, each in shares.items()}
    for run in runs.values():
        seconds(run, 2)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(config.repeats):
        stages.begin(f"a slow worker: repeat {repeat + 1} of {config.repeats}")
        for name, run in runs.items():
            times[name].append(seconds(run, _ROUNDS))
    images = total * config.batch_size * config.period
    for name, run in runs.items():
        multihost_utils.sync_global_devices("idle")
        several = lambda run=run: [run() for _ in range(_ROUNDS)]
        found = trace.record(several, jax.local_devices()[0])
        report(
            {
                "shares": name,
                "micro_batches": shares[name],
                "capabilities": measured,
                "images_per_second": images / statistics.median(times[name]),
                "repeats": times[name],
                "idle": trace.idle(found),
            }
        )


def stopped(worker: Worker, config: UnequalWorkerConfig, stages: Stages) -> None:
    """Seconds of a round with and without random pauses of every worker.

    Means, not medians: pauses are rare, and a median would not show them.
    """
    stages.begin("random pauses: compiling")
    synchronous = optax.chain(cj.mean_gradients(AXIS), worker.optimizer)
    each = {
        "ssgd": steps(worker, synchronous),
        "local_sgd": rounds(worker, cj.cocod(AXIS), 0),
        "cocod": rounds(worker, cj.cocod(AXIS)),
    }
    runs = {ALGORITHMS[key][0]: run for key, run in each.items()}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for run in runs.values():
        seconds(run, 2)
    for repeat in range(config.repeats):
        stages.begin(f"random pauses: repeat {repeat + 1} of {config.repeats}")
        # The same pauses for each algorithm, others for each worker and repeat.
        seed = repeat * config.workers + config.rank
        command = (_STOP_AND_GO, *map(str, (seed, config.pause, config.interval)))
        for name, run in runs.items():
            smooth = seconds(run, _PAUSED_ROUNDS)
            with beside(*command):
                rough = seconds(run, _PAUSED_ROUNDS)
            times[name].append((smooth, rough))
    for name, pairs in times.items():
        smooth, rough = map(statistics.mean, zip(*pairs, strict=True))
        report(
            {
                "pauses": name,
                "without": smooth,
                "with": rough,
                "repeats": pairs,
                "pause": config.pause,
                "interval": config.interval,
            }
        )


def main(config: UnequalWorkerConfig) -> None:
    """Measures both."""
    worker, stages = Worker(config), Stages(2 + 2 * config.repeats)
    is_slow = config.rank == config.workers - 1
    with beside(_SPIN) if is_slow else nullcontext():
        slowed(worker, config, stages)
    stopped(worker, config, stages)
    jax.distributed.shutdown()


if __name__ == "__main__":
    main(tyro.cli(UnequalWorkerConfig, description=__doc__))
