"""What streaming costs a worker that is alone: seconds of a step on one device.

``python -m experiments.streamed_step`` trains ResNet-18 by Nesterov SGD and a small
transformer by AdamW, each with one worker: by the plain optimizer, by
``cj.every(..., streamed=True)`` around it, and in rounds, streamed and whole. Programs
take turns. The ratios to the plain step of the same turn count, by the clock and, for
CPUs that others use as well, by the seconds of this process's cores.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import optax

import cocod_jax as cj
from experiments import command, logbook, markdown, progress
from experiments.algorithms import AXIS
from experiments.cluster.processes import machine
from experiments.overhead.jobs import Job, plain_step, resnet, transformer
from experiments.streamed_step.config import StreamedStepConfig


class Program(NamedTuple):
    """A compiled program that takes a period of local steps.

    Attributes:
      call: takes them, waiting for nothing, and returns what they made.
      temp_bytes: its memory beside inputs and outputs.
    """

    call: Callable[[], Any]
    temp_bytes: int


def programs(
    config: StreamedStepConfig, job: Job, inner: optax.GradientTransformation
) -> dict[str, Program]:
    """The plain step first."""
    rule, period, device = cj.cocod(AXIS), config.period, jax.devices()[:1]
    batch = cj.place(job.draw(1), device)
    batches = cj.place(job.draw(1, period), device)

    def program(step: Callable, state: Any, data: Any, calls: int) -> Program:
        # What each returns first is what it takes, and may overwrite.
        mapped = jax.pmap(step, AXIS, devices=device, donate_argnums=0)
        carried = cj.replicate(state, 1, devices=device)
        compiled = mapped.lower(carried, data).compile()
        memory = compiled.memory_analysis()

        def call() -> Any:
            nonlocal carried
            made = None
            for _ in range(calls):
                carried, made = compiled(carried, data)
            return carried, made

        return Program(call, memory.temp_size_in_bytes if memory else 0)

    def by_step(optimizer: optax.GradientTransformation) -> Program:
        take = plain_step(job, optimizer=optimizer)

        def step(state: Any, batch: Any) -> Any:
            *state, loss = take(*state, batch)
            return tuple(state), loss

        state = (job.params, optimizer.init(job.params), job.model_state)
        return program(step, state, batch, period)

    def by_round(streamed: bool) -> Program:
        round_ = cj.make_round(
            job.loss, inner, rule, period=period, streamed=streamed, stateful=True
        )
        state = round_.init(job.params, job.model_state)
        return program(round_.run, state, batches, 1)

    return {
        "plain optimizer": by_step(inner),
        "streamed optimizer": by_step(cj.every(period, inner, rule, streamed=True)),
        "streamed round": by_round(streamed=True),
        "whole round": by_round(streamed=False),
    }


def seconds_per_step(
    config: StreamedStepConfig, call: Callable[[], Any]
) -> tuple[float, float]:
    """By the clock, and of this process's cores."""
    clock, cores, calls = time.perf_counter(), time.process_time(), 0
    while not calls or time.perf_counter() - clock < config.seconds:
        jax.block_until_ready(call())
        calls += 1
    steps = calls * config.period
    return (
        (time.perf_counter() - clock) / steps,
        (time.process_time() - cores) / steps,
    )


def job_of(config: StreamedStepConfig, model: str) -> Job:
    """A model and its batches."""
    if model == "resnet18":
        return resnet(config.width, config.images)
    return transformer(config.model_width, config.sequences)


def measure(
    config: StreamedStepConfig, show: progress.Reporter
) -> Iterator[dict[str, Any]]:
    """The records of the log, one for each model and program."""
    for model in config.models:
        if model == "resnet18":
            name = f"ResNet-18, width {config.width}, batch {config.images}"
            inner = optax.sgd(0.01, momentum=0.9, nesterov=True)
        else:
            name = f"transformer, width {config.model_width}, batch {config.sequences}"
            inner = optax.adamw(1e-3)
        show.now(f"{name}: compiling")
        job = job_of(config, model)
        parameters = sum(leaf.size for leaf in jax.tree.leaves(job.params))
        of_job = programs(config, job, inner)
        times: dict[str, list[tuple[float, float]]] = {each: [] for each in of_job}
        for program in of_job.values():
            jax.block_until_ready(program.call())
        for repeat in range(config.repeats):
            show.now(f"{name}: repeat {repeat + 1} of {config.repeats}")
            for each, program in of_job.items():
                times[each].append(seconds_per_step(config, program.call))
        plain = times["plain optimizer"]
        for each, program in of_job.items():
            ratios = [
                [own[i] / base[i] for own, base in zip(times[each], plain, strict=True)]
                for i in range(2)
            ]
            yield {
                "job": name,
                "parameters": parameters,
                "program": each,
                "repeats": [clock for clock, _ in times[each]],
                "ratio": statistics.median(ratios[0]),
                "ratios": ratios[0],
                "core_repeats": [cores for _, cores in times[each]],
                "core_ratio": statistics.median(ratios[1]),
                "core_ratios": ratios[1],
                "temp_bytes": program.temp_bytes,
            }


def table(records: list[dict[str, Any]]) -> str:
    """Ratios to the plain step of the same turn, as Markdown."""
    head = ["model", "program", "ms of a step", "clock, of plain", "cores, of plain"]
    rows = []
    shown = lambda middle, each: f"{middle:.3f} ({min(each):.3f} to {max(each):.3f})"
    for r in records:
        cells = [
            r["job"],
            r["program"],
            f"{1e3 * statistics.median(r['repeats']):.3g}",
            shown(r["ratio"], r["ratios"]),
            shown(r["core_ratio"], r["core_ratios"]),
            f"{r['temp_bytes'] / 1e6:.0f}",
        ]
        rows.append(cells)
    return markdown.table([*head, "MB beside the state"], rows)


def main(config: StreamedStepConfig) -> None:
    """Measures, logs and prints."""
    records = []
    with progress.report() as show:
        path = config.out / "streamed_step.jsonl"
        with logbook.opened(path, config, machine=machine()) as log:
            for record in measure(config, show):
                log.write("result", **record)
                records.append(record)
        text = table(records)
        path.with_suffix(".md").write_text(text)
        show.line(text)


if __name__ == "__main__":
    command.run(main, StreamedStepConfig, __doc__)
