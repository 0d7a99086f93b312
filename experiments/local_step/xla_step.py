"""XLA's local steps on this core; reads a line for each turn, and answers in JSON."""

import json
import re
import sys
import time
from collections.abc import Callable

import jax
import tyro

from experiments.cluster import trace
from experiments.local_step.config import LocalStepConfig
from experiments.overhead.jobs import OPTIMIZER, plain_step, resnet


def kinds_of(hlo: str) -> Callable[[str], str]:
    """By an operation's name: whether it is, or holds, a convolution, or what it is."""
    bodies = dict(re.findall(r"^%?([\w.-]+) \(.*?\n(.*?)^}", hlo, re.M | re.S))
    calls = dict(re.findall(r"^ *(?:ROOT )?%([\w.-]+) = .*calls=%([\w.-]+)", hlo, re.M))

    def kind(name: str) -> str:
        plain = name.split(".")[0]
        is_convolution = " convolution(" in bodies.get(calls.get(name, ""), "")
        return f"{plain} of a convolution" if is_convolution else plain

    return kind


def main(config: LocalStepConfig) -> None:
    """Compiles, and then takes steps whenever it is told to."""
    job = resnet(config.width, config.images)
    step = jax.jit(plain_step(job), donate_argnums=(0, 1, 2))
    carried = [job.params, OPTIMIZER.init(job.params), job.model_state]
    batch = jax.device_put(job.draw())
    lowered = step.lower(*carried, batch)
    flop = (lowered.cost_analysis() or {}).get("flops")
    kind_of = kinds_of(lowered.compile().as_text() or "")

    def take() -> None:
        nonlocal carried
        for _ in range(config.steps):
            *carried, _ = step(*carried, batch)
        jax.block_until_ready(carried)

    take()
    for line in sys.stdin:
        if line.strip() == "profile":
            said = {"operations": trace.operations(take, kind_of), "flop": flop}
        else:
            start = time.perf_counter()
            take()
            said = {"seconds_per_step": (time.perf_counter() - start) / config.steps}
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main(tyro.cli(LocalStepConfig))
