"""One worker of a measured network: its model, its devices, and how rounds are timed.

Every worker is a process with two CPU devices, one for the local steps and one for
the exchange. What it finds it prints as JSON lines.
"""

import dataclasses
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.experimental import multihost_utils

import cocod_jax as cj
from experiments import models
from experiments.algorithms import AXIS
from experiments.config import Model
from experiments.tasks.images import loss_of

Run = Callable[[], object]
"""Does a round's worth of work, and waits for its end."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkerConfig:
    """What every worker has to know; the same for all but for the rank."""

    rank: int
    """The number of this worker."""
    workers: int
    """How many there are."""
    address: str
    """HOST:PORT that worker 0 listens on."""
    model: Model = "resnet18"
    """The network."""
    width: int = 64
    """Channels of its first stage."""
    batch_size: int = 16
    """Images in a local batch, or in a micro-batch."""
    period: int = 4
    """Local steps in a round."""
    repeats: int = 5
    """Interleaved measurements of each algorithm."""


class Worker:
    """The model, its data and its devices, shared by all algorithms.

    It meets the others when it is made: nothing may have used JAX before.
    """

    def __init__(self, config: WorkerConfig):
        jax.config.update("jax_num_cpu_devices", 2)
        jax.distributed.initialize(config.address, config.workers, config.rank)
        self.config = config
        self.devices, self.exchange_devices = cj.execution.device_pairs()
        self.model = models.build(
            config.model, num_classes=10, channels=3, width=config.width
        )
        self.values = self.model.init(jax.random.key(0))
        self.batches = self.draw(config.period, config.batch_size)
        self.batch = jax.tree.map(lambda leaf: leaf[:, 0], self.batches)
        self.optimizer = optax.sgd(0.01, momentum=0.9)

    def draw(self, *shape: int) -> dict[str, np.ndarray]:
        """Images and labels of this worker, [1, ...]."""
        rng = np.random.default_rng(self.config.rank)
        return {
            "image": rng.normal(size=(1, *shape, 32, 32, 3)).astype(np.float32),
            "label": rng.integers(10, size=(1, *shape), dtype=np.int32),
        }

    def round_(
        self,
        rule: cj.MergeRule,
        optimizer=None,
        delay: int | None = None,
        streamed: bool = False,
    ):
        """A round of the network with this rule."""
        return cj.make_round(
            loss_of(self.model),
            optimizer or self.optimizer,
            rule,
            period=self.config.period,
            delay=delay,
            streamed=streamed,
            stateful=True,
        )

    def state(self, round_: cj.Round) -> cj.RoundState:
        """This worker's initial state, on its compute device."""
        return self.on_compute_device(cj.replicate(round_.init(*self.values), 1))

    def on_compute_device(self, tree: Any) -> Any:
        """The tree on the device of this worker's local steps."""
        return cj.place(tree, _own(self.devices))

    def on_exchange_device(self, tree: Any) -> Any:
        """The tree on the device of this worker's exchange."""
        return cj.place(tree, _own(self.exchange_devices))

    def over(self, function: Callable, devices: list[jax.Device]) -> Callable:
        """The function of one worker over all workers, on these devices.

        Nothing is donated, as in the library's split execution.
        """
        return jax.pmap(function, AXIS, devices=devices)


def _own(devices: list[jax.Device]) -> list[jax.Device]:
    return [d for d in devices if d.process_index == jax.process_index()]


def steps(worker: Worker, optimizer: optax.GradientTransformation | None = None) -> Run:
    """The steps of a round alone, k Tc; S-SGD with an optimizer that communicates."""
    round_ = worker.round_(cj.independent(), optimizer)
    step = worker.over(round_.step, worker.devices)
    state = worker.state(round_)

    def run() -> None:
        nonlocal state
        for _ in range(worker.config.period):
            state, _ = step(state, worker.batch)
        jax.block_until_ready(state.params)

    return run


def rounds(
    worker: Worker,
    rule: cj.MergeRule,
    delay: int | None = None,
    streamed: bool = False,
) -> Run:
    """Rounds of a rule, merged after so many local steps; None is the whole period."""
    round_ = worker.round_(rule, delay=delay, streamed=streamed)
    return split(worker, round_, worker.batches)


def split(worker: Worker, round_: cj.Round, batches: Any) -> Run:
    """The round by the library's split execution, always on the same batches."""
    run_round = cj.distribute(
        round_,
        AXIS,
        execution="split",
        devices=worker.devices,
        exchange_devices=worker.exchange_devices,
    )
    state = worker.state(round_)

    def run() -> None:
        nonlocal state
        state, _ = run_round(state, batches)
        jax.block_until_ready(state.params)

    return run


def seconds(run: Run, times: int) -> float:
    """Seconds for one call, from a common start to the end of the last worker.

    A worker of CoCoD-SGD may be done a round before the others are.
    """
    multihost_utils.sync_global_devices("start")
    start = time.perf_counter()
    for _ in range(times):
        run()
    multihost_utils.sync_global_devices("end")
    return (time.perf_counter() - start) / times


def core_seconds(run: Run) -> float:
    """Seconds for which this worker's core was busy during one call.

    The kernel's share counts too: it moves the packets, in nobody's process time.
    What runs at a lower priority on the machine does not count.
    """
    (core,) = os.sched_getaffinity(0)
    multihost_utils.sync_global_devices("core")
    before = _busy_ticks(core)
    run()
    return (_busy_ticks(core) - before) / os.sysconf("SC_CLK_TCK")


def _busy_ticks(core: int) -> int:
    lines = Path("/proc/stat").read_text().splitlines()
    ticks = next(line.split()[1:] for line in lines if line.startswith(f"cpu{core} "))
    user, _nice, system, _idle, _wait, irq, softirq = map(int, ticks[:7])
    return user + system + irq + softirq


def report(result: dict[str, Any]) -> None:
    """Hands a result to the process that started this one."""
    print(json.dumps(result), flush=True)


class Stages:
    """How far this worker is, for the process that started it.

    Args:
      total: how many stages there are.
    """

    def __init__(self, total: int):
        self._done, self._total = 0, total

    def begin(self, words: str) -> None:
        """Ends the stage before this one."""
        told = {"words": words, "done": self._done, "total": self._total}
        report({"progress": told})
        self._done += 1
