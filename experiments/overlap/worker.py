"""One worker of the benchmark: what each algorithm takes, and when it does what.

Prints a record for each algorithm, for its timeline, for each part of a round, and a
profile of the local steps.
"""

import dataclasses
import math
import os
import statistics
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jax.experimental import multihost_utils

import cocod_jax as cj
from experiments.algorithms import AXIS, RECIPES
from experiments.cluster import trace
from experiments.cluster.worker import (
    Run,
    Stages,
    Worker,
    WorkerConfig,
    core_seconds,
    report,
    rounds,
    seconds,
    steps,
)
from experiments.overlap.config import NAMES, Timed
from experiments.tasks.images import loss_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class OverlapWorkerConfig(WorkerConfig):
    """What to measure, the same for all workers but for the rank."""

    algorithms: tuple[Timed, ...] = get_args(Timed)
    """Which ones."""
    records: Literal["all", "times"] = "all"
    """Times alone, or timelines, parts and a profile as well, which need memory."""


def exchange_alone(worker: Worker) -> Run:
    """The exchange of the snapshot alone: Tm."""
    round_ = worker.round_(cj.cocod(AXIS))
    send = worker.over(round_.send, worker.exchange_devices)
    state = worker.state(round_)._replace(opt_state=(), model_state=())
    state = worker.on_exchange_device(state)
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
            arriving = average(worker.on_exchange_device(pending))
            pending, model_state = gradient(params, model_state, worker.batch)
            arriving = worker.on_compute_device(arriving)
            params, opt_state = apply(params, opt_state, arriving)
        jax.block_until_ready(params)

    return run


def algorithm(worker: Worker, name: Timed, delay: int) -> Run:
    """An algorithm as it is measured; ``delay`` is for the one just in time."""
    exchange = cj.mean(AXIS)
    if name == "streamed_optimizer":
        # On a CPU its exchange does not run beside the step of the same program.
        rule, period = cj.cocod(exchange), worker.config.period
        return steps(worker, cj.every(period, worker.optimizer, rule, streamed=True))
    recipe = RECIPES[name]
    if name == "pipe_sgd":
        return pipelined(worker)
    if recipe.gradients is not None:
        gradients = recipe.gradients(exchange, 0)
        return steps(worker, optax.chain(gradients, worker.optimizer))
    chosen = delay if name == "just_in_time" else recipe.delay
    return rounds(worker, recipe.rule(exchange), chosen, recipe.streamed)


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
    send = worker.over(round_.send, worker.exchange_devices)
    merge = worker.over(round_.merge, worker.devices)
    snapshot = state.params
    sent, _ = send(worker.on_exchange_device(state))
    arrived = worker.on_compute_device(sent)
    each = {
        "move to the exchange": lambda: worker.on_exchange_device(snapshot),
        "move back": lambda: worker.on_compute_device(sent),
        "merge": lambda: merge(state, snapshot, arrived),
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


def main(config: OverlapWorkerConfig) -> None:
    """Measures everything, each algorithm once in every repeat."""
    explained = len(config.algorithms) + 1 if config.records == "all" else 0
    stages = Stages(1 + len(config.algorithms) + config.repeats + explained)
    stages.begin("local steps and exchange: compiling")
    worker = Worker(config)
    compute, send = steps(worker), exchange_alone(worker)
    compute(), send()  # compile
    delay = just_in_time(worker, compute, send)
    algorithms = {}
    for key in config.algorithms:
        name = NAMES[key]
        stages.begin(f"{name}: compiling")
        algorithms[name] = algorithm(worker, key, delay)
        seconds(algorithms[name], 2)
    runs = {"local steps": compute, "exchange": send, **algorithms}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(config.repeats):
        stages.begin(f"all algorithms: repeat {repeat + 1} of {config.repeats}")
        for name, run in runs.items():
            times[name].append(seconds(run, 2))
    for name, values in times.items():
        result = {
            "algorithm": name,
            "seconds_per_round": statistics.median(values),
            "repeats": values,
        }
        if name == NAMES["just_in_time"]:
            result["delay"] = delay
        if name == "exchange":
            leaves = jax.tree.leaves(worker.values[0])
            result["sent_bytes"] = sum(leaf.nbytes for leaf in leaves)
        report(result)
    if config.records == "all":
        explain(worker, compute, send, algorithms, stages)
    jax.distributed.shutdown()


def explain(
    worker: Worker, compute: Run, send: Run, algorithms: dict[str, Run], stages: Stages
) -> None:
    """Reports where the time of the algorithms goes."""
    for name, run in algorithms.items():
        stages.begin(f"{name}: timeline")
        multihost_utils.sync_global_devices("timeline")
        found = trace.record(lambda run=run: (run(), run()), jax.local_devices()[0])
        report({"timeline": name, "hidden": trace.hidden(found), "intervals": found})
    stages.begin("parts of a round and profile")
    for name, part in parts(worker).items():
        seconds(part, 2)
        report({"part": name, "seconds": seconds(part, 5)})
    report({"profile": "local steps", **profile(worker, compute)})
    if hasattr(os, "sched_getaffinity"):  # Linux, where the workers are pinned
        busy = core_seconds(lambda: [send() for _ in range(10)]) / 10
        report({"part": "the core's work for an exchange", "seconds": busy})


if __name__ == "__main__":
    main(tyro.cli(OverlapWorkerConfig, description=__doc__))
