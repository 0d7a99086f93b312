"""Overheads, measured: ``python -m experiments.overhead``.

Seconds per local step of a round, fused and split, and of one without an exchange,
against a plain step under ``pmap``, which has none either. And seconds to compile the
library's programs for a model of many leaves, against a plain step that averages its
gradients.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
from rich.table import Table

import cocod_jax as cj
from experiments import command, logbook, progress
from experiments.algorithms import AXIS
from experiments.cluster import trace
from experiments.cluster.processes import machine
from experiments.job.devices import start_devices
from experiments.overhead.config import OverheadConfig
from experiments.overhead.jobs import OPTIMIZER, Job, mlp, plain_step, resnet


def stepping(config: OverheadConfig, job: Job) -> dict[str, Callable[[], Any]]:
    """Programs that take a period of local steps, ready to call; each has its state."""
    devices = jax.devices()[: config.workers]
    place = lambda tree: cj.place(tree, devices)

    def plain() -> Callable[[], Any]:
        first = (job.params, OPTIMIZER.init(job.params), job.model_state)
        carried = cj.replicate(first, config.workers, devices=devices)
        batch = place(job.draw(config.workers))
        step = jax.pmap(plain_step(job), AXIS, donate_argnums=(0, 1, 2))

        def call() -> Any:
            nonlocal carried
            loss = None
            for _ in range(config.period):
                *carried, loss = step(*carried, batch)
            return carried, loss

        return call

    def rounds(execution: Any, rule: cj.MergeRule) -> Callable[[], Any]:
        round_ = cj.make_round(
            job.loss, OPTIMIZER, rule, period=config.period, stateful=True
        )
        run = cj.distribute(round_, execution=execution)
        state = cj.replicate(round_.init(job.params, job.model_state), config.workers)
        batches = place(job.draw(config.workers, config.period))

        def call() -> Any:
            nonlocal state
            state, metrics = run(state, batches)
            return state, metrics

        return call

    return {
        "plain": plain(),
        "steps": rounds("fused", cj.independent()),
        "fused": rounds("fused", cj.cocod(AXIS)),
        "split": rounds("split", cj.cocod(AXIS)),
    }


def seconds_per_step(config: OverheadConfig, call: Callable[[], Any]) -> float:
    """Of calls one after the other, without waiting between them."""
    done = jax.block_until_ready(call())
    start, calls = time.perf_counter(), 0
    while not calls or time.perf_counter() - start < config.seconds:
        if calls % 16 == 0:  # the plain program would run far ahead
            jax.block_until_ready(done)
        done, calls = call(), calls + 1
    jax.block_until_ready(done)
    return (time.perf_counter() - start) / (calls * config.period)


def compiling(config: OverheadConfig, job: Job) -> Iterator[tuple[str, Any, tuple]]:
    """The library's programs and the plain one: name, function, arguments."""
    over = lambda tree: cj.replicate(tree, config.workers)
    batch, batches = job.draw(config.workers), job.draw(config.workers, config.period)
    round_ = cj.make_round(
        job.loss, OPTIMIZER, cj.cocod(AXIS), period=config.period, stateful=True
    )
    optimizer = cj.every(config.period, OPTIMIZER, cj.cocod(AXIS))
    inputs = lambda chosen: (
        over(job.params),
        over(chosen.init(job.params)),
        None,
        batch,
    )
    state = over(round_.init(job.params))
    sent, _ = jax.eval_shape(jax.vmap(round_.send, axis_name=AXIS), state)
    light = state._replace(opt_state=())
    yield "plain", plain_step(job, AXIS), inputs(OPTIMIZER)
    yield "step", round_.step, (state, batch)
    yield "send", round_.send, (state,)
    yield "merge", round_.merge, (light, state.params, sent)
    yield "round", round_.run, (state, batches)
    yield "every", plain_step(job, optimizer=optimizer), inputs(optimizer)


def compile_seconds(function: Any, args: tuple) -> dict[str, Any]:
    """By the clock, of all processors together, and of each part."""
    lowered = jax.pmap(function, AXIS).lower(*args)
    clock, processors = time.perf_counter(), time.process_time()
    stages = trace.compilation(lowered.compile)
    return {
        "seconds": time.perf_counter() - clock,
        "processor_seconds": time.process_time() - processors,
        "stages": stages,
    }


def tables(records: list[dict[str, Any]]) -> Iterator[Table]:
    """Each measurement as a multiple of the plain program's."""
    steps = Table("model", "program", "ms per step", "of plain", title="A local step")
    compiled = Table("leaves", "program", "s", "of plain", title="Compilation")
    for stage in dict.fromkeys(trace.STAGES.values()):
        compiled.add_column(stage)
    plain: dict[str, Any] = {}
    for record in records:
        if record["program"] == "plain":
            plain = record
        if "job" in record:
            pairs = zip(record["repeats"], plain["repeats"], strict=True)
            ratios = sorted(own / base for own, base in pairs)
            spread = (
                f"{statistics.median(ratios):.2f}, {ratios[0]:.2f}-{ratios[-1]:.2f}"
            )
            steps.add_row(
                record["job"],
                record["program"],
                f"{1e3 * record['seconds_per_step']:.3g}",
                spread,
            )
        else:
            base = plain.get("processor_seconds", math.nan)
            ratio = record["processor_seconds"] / base
            compiled.add_row(
                str(record["leaves"]),
                record["program"],
                f"{record['processor_seconds']:.1f}",
                f"{ratio:.2f}",
                *(
                    f"{record['stages'].get(stage, 0):.1f}"
                    for stage in dict.fromkeys(trace.STAGES.values())
                ),
            )
    yield steps
    yield compiled


def measure(
    config: OverheadConfig, show: progress.Reporter
) -> Iterator[dict[str, Any]]:
    """The records of the log."""
    jobs = {
        "MLP 4 x 64": lambda: mlp(4, 64, 32),
        "MLP 8 x 512": lambda: mlp(8, 512, 128),
        f"ResNet-18, width {config.width}": lambda: resnet(
            config.width, config.batch_size
        ),
    }
    for name, make in jobs.items():
        show.now(f"{name}: compiling")
        programs = stepping(config, make())
        for call in programs.values():
            jax.block_until_ready(call())
        times: dict[str, list[float]] = {program: [] for program in programs}
        for turn in range(config.repeats):
            show.now(f"{name}: turn {turn + 1}", turn, config.repeats)
            for program, call in programs.items():
                times[program].append(seconds_per_step(config, call))
        for program, repeats in times.items():
            yield {
                "job": name,
                "program": program,
                "seconds_per_step": statistics.median(repeats),
                "repeats": repeats,
            }
    for leaves in config.leaves:
        for program, function, args in compiling(config, mlp(leaves // 2, 16, 8)):
            if program not in config.compiled:
                continue
            show.now(f"{leaves} leaves: compiling {program}")
            measured = compile_seconds(function, args)
            yield {"leaves": leaves, "program": program, **measured}


def main(config: OverheadConfig) -> None:
    """Measures, logs and prints."""
    start_devices(config.workers)
    records = []
    with progress.report() as show:
        path = config.out / "overhead.jsonl"
        with logbook.opened(path, config, machine=machine()) as log:
            for record in measure(config, show):
                log.write("result", **record)
                records.append(record)
        for table in tables(records):
            show.print(table)


if __name__ == "__main__":
    command.run(main, OverheadConfig, __doc__)
