"""One worker of the benchmark: what each algorithm takes, and when it does what.

Every worker is a process with two CPU devices, one for the local steps and one for
the exchange. Prints JSON lines: one record an algorithm, one a measured timeline.
"""

import dataclasses
import json
import math
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jax.experimental import multihost_utils

import cocod_jax as cj
from experiments import models
from experiments.train import loss_of

AXIS = "workers"

Run = Callable[[], None]
"""Does a round's worth of work, and waits for its end."""
Note = Callable[[str, Any], None]
"""Takes note of when a result is there."""


def ignore(what: str, result: Any) -> None:
    """Takes no note."""


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


class Worker:
    """The model, its data and its devices, shared by all algorithms."""

    def __init__(self, config: WorkerConfig):
        self.config = config
        self.devices, self.exchange_devices = cj.device_pairs()
        self.model = models.build(
            "resnet18",
            num_classes=10,
            channels=3,
            width=config.width,
            key=jax.random.key(0),
        )
        rng = np.random.default_rng(config.rank)
        shape = (1, config.period, config.batch_size)
        self.batches = {
            "image": rng.normal(size=(*shape, 32, 32, 3)).astype(np.float32),
            "label": rng.integers(10, size=shape, dtype=np.int32),
        }
        self.batch = jax.tree.map(lambda leaf: leaf[:, 0], self.batches)
        self.optimizer = optax.sgd(0.01, momentum=0.9)

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
        state = round_.init(self.model.params, self.model.model_state)
        state = cj.replicate(state, 1, first=self.config.rank)
        return self.here(state)

    def here(self, tree: Any) -> Any:
        """The tree where this worker computes."""
        return cj.place(tree, _own(self.devices))

    def there(self, tree: Any) -> Any:
        """The tree where this worker exchanges."""
        return cj.place(tree, _own(self.exchange_devices))

    def over(
        self, function: Callable, devices: list[jax.Device], donate=()
    ) -> Callable:
        """The function of one worker over all workers, on these devices."""
        return jax.pmap(function, AXIS, devices=devices, donate_argnums=donate)


def _own(devices: list[jax.Device]) -> list[jax.Device]:
    return [d for d in devices if d.process_index == jax.process_index()]


def steps(worker: Worker, optimizer: optax.GradientTransformation | None = None) -> Run:
    """The steps of a round alone, k Tc; S-SGD with an optimizer that communicates."""
    round_ = worker.round_(cj.independent(), optimizer)
    step = worker.over(round_.step, worker.devices, donate=0)
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


def pipelined(worker: Worker, stale: bool = True, note: Note = ignore) -> Run:
    """Pipe-SGD: the exchange of the last gradient beside the next one.

    A CPU device runs one program at a time, so that the transform
    ``stale_mean_gradients`` cannot overlap there; this is the same algorithm with
    its exchange on the exchange device. Without ``stale``, it is S-SGD in parts.
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
    apply = worker.over(apply_to, worker.devices, donate=(0, 1))
    params, opt_state, model_state = state.params, state.opt_state, state.model_state
    pending = jax.tree.map(jnp.zeros_like, params)

    def run() -> None:
        nonlocal params, opt_state, model_state, pending
        for _ in range(worker.config.period):
            arriving = average(worker.there(pending)) if stale else None
            pending, model_state = gradient(params, model_state, worker.batch)
            note("step", model_state)
            if arriving is None:
                arriving = average(worker.there(pending))
            note("exchange", arriving)
            params, opt_state = apply(params, opt_state, worker.here(arriving))
        jax.block_until_ready(params)

    return run


def rounds(worker: Worker, delay: int) -> Run:
    """Local SGD (delay 0) and CoCoD-SGD, by the library's split execution."""
    round_ = worker.round_(cj.cocod(AXIS), delay=delay)
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
        state, _ = run_round(state, worker.batches)
        jax.block_until_ready(state.params)

    return run


def seconds(run: Run, times: int) -> float:
    """Seconds for one call, from a common start to this worker's end."""
    multihost_utils.sync_global_devices("start")
    start = time.perf_counter()
    for _ in range(times):
        run()
    return (time.perf_counter() - start) / times


def just_in_time(worker: Worker, compute: Run, send: Run) -> int:
    """The smallest delay that hides the exchange, the same on all workers."""
    step = seconds(compute, 2) / worker.config.period
    delay = math.ceil(seconds(send, 2) / step)
    delays = multihost_utils.process_allgather(np.int32(delay))
    return min(int(np.max(delays)), worker.config.period)


def rounds_in_parts(worker: Worker, delay: int, note: Note) -> Run:
    """The programs of the library's split execution, each with its end noted."""
    round_ = worker.round_(cj.cocod(AXIS), delay=delay)
    step = worker.over(round_.step, worker.devices, donate=0)
    merge = worker.over(round_.merge, worker.devices, donate=0)
    send = worker.over(round_.send, worker.exchange_devices)
    copy = worker.over(lambda tree: jax.tree.map(jnp.copy, tree), worker.devices)
    state = worker.state(round_)

    def run() -> None:
        nonlocal state
        snapshot = copy(state.params)
        light = state._replace(params=snapshot, opt_state=(), model_state=())
        arriving = send(worker.there(light))
        note("exchange", arriving)
        for t in range(worker.config.period + 1):
            if t == delay:
                state, merged = merge(state, snapshot, worker.here(arriving))
                note("merge", merged)
            if t < worker.config.period:
                state, metrics = step(state, worker.batch)
                note("step", metrics)
        jax.block_until_ready(state.params)

    return run


def timeline(
    make: Callable[[Note], Run], times: int = 2
) -> list[dict[str, str | float]]:
    """When each program of an algorithm ended, in seconds from a common start."""
    events: list[tuple[float, str]] = []
    waiting: list[threading.Thread] = []

    def note(what: str, result: Any) -> None:
        def wait() -> None:
            jax.block_until_ready(result)
            events.append((time.perf_counter(), what))

        waiting.append(threading.Thread(target=wait))
        waiting[-1].start()

    def finish() -> None:
        for thread in waiting:
            thread.join()

    run = make(note)
    run()  # compiles
    finish()
    events.clear()
    multihost_utils.sync_global_devices("timeline")
    start = time.perf_counter()
    for _ in range(times):
        run()
    finish()
    return [{"what": what, "end": end - start} for end, what in sorted(events)]


def main(config: WorkerConfig) -> None:
    """Measures everything, each algorithm once in every repeat."""
    jax.config.update("jax_num_cpu_devices", 2)
    jax.distributed.initialize(config.address, config.workers, config.rank)
    worker = Worker(config)
    compute, send = steps(worker), exchange(worker)
    synchronous = optax.chain(cj.mean_gradients(AXIS), worker.optimizer)
    compute(), send()  # compile
    delay = just_in_time(worker, compute, send)
    algorithms = {
        "local steps": compute,
        "exchange": send,
        "S-SGD": steps(worker, synchronous),
        "Pipe-SGD": pipelined(worker),
        "Local SGD": rounds(worker, 0),
        "CoCoD-SGD": rounds(worker, config.period),
        "CoCoD-SGD, just in time": rounds(worker, delay),
    }
    for run in algorithms.values():
        seconds(run, 2)
    times: dict[str, list[float]] = {name: [] for name in algorithms}
    for _ in range(config.repeats):
        for name, run in algorithms.items():
            times[name].append(seconds(run, 2))
    for name, values in times.items():
        record = {
            "algorithm": name,
            "seconds_per_round": statistics.median(values),
            "repeats": values,
        }
        if name.endswith("just in time"):
            record["delay"] = delay
        print(json.dumps(record), flush=True)
    timelines = {
        "S-SGD": lambda note: pipelined(worker, stale=False, note=note),
        "Pipe-SGD": lambda note: pipelined(worker, note=note),
        "Local SGD": lambda note: rounds_in_parts(worker, 0, note),
        "CoCoD-SGD": lambda note: rounds_in_parts(worker, config.period, note),
    }
    for name, make in timelines.items():
        print(json.dumps({"timeline": name, "events": timeline(make)}), flush=True)
    jax.distributed.shutdown()


if __name__ == "__main__":
    main(tyro.cli(WorkerConfig, description=__doc__))
