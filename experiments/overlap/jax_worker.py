"""One worker of the benchmark: what each algorithm takes, and when it does what.

Every worker is a process with two CPU devices, one for the local steps and one for
the exchange. Prints JSON lines: a record for each algorithm, for its timeline, for each
part of a round, and a profile of the local steps.
"""

import dataclasses
import json
import math
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jax.experimental import multihost_utils

import cocod_jax as cj
from experiments import models
from experiments.overlap import trace
from experiments.train import loss_of

AXIS = "workers"

Algorithm = Literal[
    "S-SGD", "Pipe-SGD", "Local SGD", "CoCoD-SGD", "CoCoD-SGD, just in time"
]

Run = Callable[[], object]
"""Does a round's worth of work, and waits for its end."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkerConfig:
    """What to measure, the same for all workers but for the rank."""

    rank: int
    """The number of this worker."""
    workers: int
    """How many there are."""
    address: str
    """HOST:PORT that worker 0 listens on."""
    width: int = 64
    """Channels of the first stage of ResNet-18."""
    batch_size: int = 16
    """Images in a local batch."""
    period: int = 4
    """Local steps in a round."""
    repeats: int = 5
    """Interleaved measurements of each algorithm."""
    algorithms: tuple[Algorithm, ...] = get_args(Algorithm)
    """Which of them."""
    records: Literal["all", "times"] = "all"
    """Times alone, or timelines, parts and a profile as well, which need memory."""


class Worker:
    """The model, its data and its devices, shared by all algorithms."""

    def __init__(self, config: WorkerConfig):
        self.config = config
        self.devices, self.exchange_devices = cj.execution.device_pairs()
        self.model = models.build(
            "resnet18", num_classes=10, channels=3, width=config.width
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

    def round_(self, rule: cj.MergeRule, optimizer=None, delay: int | None = None):
        """A round of ResNet-18 with this rule."""
        return cj.make_round(
            loss_of(self.model),
            optimizer or self.optimizer,
            rule,
            period=self.config.period,
            delay=delay,
            stateful=True,
        )

    def state(self, round_: cj.Round) -> cj.RoundState:
        """This worker's initial state, where it computes."""
        return self.here(cj.replicate(round_.init(*self.values), 1))

    def here(self, tree: Any) -> Any:
        """The tree where this worker computes."""
        return cj.place(tree, _own(self.devices))

    def there(self, tree: Any) -> Any:
        """The tree where this worker exchanges."""
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


def exchange(worker: Worker) -> Run:
    """The exchange of the snapshot alone: Tm."""
    round_ = worker.round_(cj.cocod(AXIS))
    send = worker.over(round_.send, worker.exchange_devices)
    state = worker.state(round_)._replace(opt_state=(), model_state=())
    state = worker.there(state)
    return lambda: jax.block_until_ready(send(state))


def pipelined(worker: Worker) -> Run:
    """Pipe-SGD: the exchange of the last gradient beside the next one.

    A CPU device runs one program at a time, so that the transform
    ``stale_mean_gradients`` cannot overlap there; this is the same algorithm with
    its exchange on the exchange device.
    """
    gradient_fn = jax.grad(loss_of(worker.model), has_aux=True)
    state = worker.state(worker.round_(cj.independent()))

    def gradient_of(params, model_state, batch):
        return gradient_fn(params, model_state, batch, None)

    def apply_to(params, opt_state, mean):
        updates, opt_state = worker.optimizer.update(mean, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    average = worker.over(cj.mean(AXIS).average, worker.exchange_devices)
    gradient = worker.over(gradient_of, worker.devices)
    apply = worker.over(apply_to, worker.devices)
    params, opt_state, model_state = state.params, state.opt_state, state.model_state
    pending = jax.tree.map(jnp.zeros_like, params)

    def run() -> None:
        nonlocal params, opt_state, model_state, pending
        for _ in range(worker.config.period):
            arriving = average(worker.there(pending))
            pending, model_state = gradient(params, model_state, worker.batch)
            params, opt_state = apply(params, opt_state, worker.here(arriving))
        jax.block_until_ready(params)

    return run


def rounds(worker: Worker, delay: int) -> Run:
    """Local SGD (delay 0) and CoCoD-SGD."""
    round_ = worker.round_(cj.cocod(AXIS), delay=delay)
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


def just_in_time(worker: Worker, compute: Run, send: Run) -> int:
    """The smallest delay that hides the exchange, the same on all workers."""
    step = seconds(compute, 2) / worker.config.period
    delay = math.ceil(seconds(send, 2) / step)
    delays = multihost_utils.process_allgather(np.int32(delay))
    return min(int(np.max(delays)), worker.config.period)


def parts(worker: Worker) -> dict[str, Run]:
    """What a round does besides local steps and exchange, each part alone."""
    round_ = worker.round_(cj.cocod(AXIS))
    state = worker.state(round_)._replace(opt_state=(), model_state=())
    merge = worker.over(round_.merge, worker.devices)
    snapshot = state.params
    sent = worker.there(snapshot)
    each = {
        "move to the exchange": lambda: worker.there(snapshot),
        "move back": lambda: worker.here(sent),
        "merge": lambda: merge(state, snapshot, snapshot),
    }
    return {
        name: lambda part=part: jax.block_until_ready(part())
        for name, part in each.items()
    }


def profile(worker: Worker, compute: Run) -> dict[str, Any]:
    """Where the time of the local steps goes, and how fast the core can be.

    A matrix product of NumPy is the yardstick: convolutions are not faster.
    """
    round_ = worker.round_(cj.independent())
    one = lambda tree: jax.tree.map(lambda leaf: leaf[0], tree)
    step = jax.jit(round_.step).lower(one(worker.state(round_)), one(worker.batch))
    cost = step.cost_analysis() or {}
    size = 2048
    square = np.ones([size, size], np.float32)
    product = lambda: square @ square
    product()  # the threads and the memory are there
    return {
        "operations": trace.operations(compute),
        "flop": worker.config.period * cost["flops"],
        "flop_per_second": 2 * size**3 / seconds(product, 5),
    }


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


def main(config: WorkerConfig) -> None:
    """Measures everything, each algorithm once in every repeat."""
    jax.config.update("jax_num_cpu_devices", 2)
    jax.distributed.initialize(config.address, config.workers, config.rank)
    worker = Worker(config)
    compute, send = steps(worker), exchange(worker)
    compute(), send()  # compile
    delay = just_in_time(worker, compute, send)
    synchronous = optax.chain(cj.mean_gradients(AXIS), worker.optimizer)
    make: dict[Algorithm, Callable[[], Run]] = {
        "S-SGD": lambda: steps(worker, synchronous),
        "Pipe-SGD": lambda: pipelined(worker),
        "Local SGD": lambda: rounds(worker, 0),
        "CoCoD-SGD": lambda: rounds(worker, config.period),
        "CoCoD-SGD, just in time": lambda: rounds(worker, delay),
    }
    algorithms = {name: make[name]() for name in config.algorithms}
    runs = {"local steps": compute, "exchange": send, **algorithms}
    for run in runs.values():
        seconds(run, 2)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(config.repeats):
        for name, run in runs.items():
            times[name].append(seconds(run, 2))
    for name, values in times.items():
        result = {
            "algorithm": name,
            "seconds_per_round": statistics.median(values),
            "repeats": values,
        }
        if name.endswith("just in time"):
            result["delay"] = delay
        report(result)
    if config.records == "all":
        explain(worker, compute, send, algorithms)
    jax.distributed.shutdown()


def explain(
    worker: Worker, compute: Run, send: Run, algorithms: dict[Algorithm, Run]
) -> None:
    """Reports where the time of the algorithms goes."""
    for name, run in algorithms.items():
        multihost_utils.sync_global_devices("timeline")
        found = trace.record(lambda run=run: (run(), run()), jax.local_devices()[0])
        report({"timeline": name, "hidden": trace.hidden(found), "intervals": found})
    for name, part in parts(worker).items():
        seconds(part, 2)
        report({"part": name, "seconds": seconds(part, 5)})
    report({"profile": "local steps", **profile(worker, compute)})
    if hasattr(os, "sched_getaffinity"):  # Linux, where the workers are pinned
        busy = core_seconds(lambda: [send() for _ in range(10)]) / 10
        report({"part": "the core's work for an exchange", "seconds": busy})


def report(result: dict[str, Any]) -> None:
    """Hands a result to the process that started this one."""
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main(tyro.cli(WorkerConfig, description=__doc__))
