"""What pieces cost a step: real optimizers, with few and with many arrays."""

import statistics
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax

import cocod_jax as cj
from experiments.algorithms import AXIS

PERIOD, WORKERS, CALLS = 8, 2, 5


def measure(parameters: int, leaves: int, repeats: int) -> Iterator[dict[str, Any]]:
    """An optimizer alone, and the same with a piece exchanged in every step.

    Yields:
      For each, instructions of the compiled program, the bytes that it reads and writes
      as the compiler counts them, the seconds to compile it, and the median seconds of
      a call.
    """
    one = {f"{i:04d}": jnp.ones([parameters // leaves]) for i in range(leaves)}
    inner = optax.sgd(0.01, momentum=0.9)
    optimizers = {
        "local": inner,
        "streamed": cj.every(PERIOD, inner, cj.cocod(AXIS), streamed=True),
    }
    programs: dict[str, tuple[Any, Any, Any]] = {}
    compiling = {}
    for name, optimizer in optimizers.items():

        def step(
            params: Any, state: Any, optimizer: Any = optimizer
        ) -> tuple[Any, Any]:
            # The parameters stand for their gradients: those cost the same in both.
            updates, state = optimizer.update(params, state, params)
            return optax.apply_updates(params, updates), state

        params, state = cj.replicate((one, optimizer.init(one)), WORKERS)
        run = jax.pmap(step, AXIS, donate_argnums=(0, 1))
        lowered, start = run.lower(params, state), time.perf_counter()
        programs[name] = lowered.compile(), params, state
        compiling[name] = time.perf_counter() - start
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(repeats + 1):  # the first warms up
        for name, (program, params, state) in programs.items():
            start = time.perf_counter()
            for _ in range(CALLS):
                params, state = program(params, state)
            jax.block_until_ready(params)
            seconds[name].append((time.perf_counter() - start) / CALLS)
            programs[name] = program, params, state
    for name, (program, *_) in programs.items():
        yield {
            "leaves": leaves,
            "parameters": parameters,
            "period": PERIOD,
            "step": name,
            "instructions": program.as_text().count(" = "),
            "bytes_accessed": _bytes(program),
            "compile_seconds": compiling[name],
            "seconds": statistics.median(seconds[name][1:]),
            "repeats": seconds[name][1:],
        }


def _bytes(program: Any) -> float | None:
    """The compiler's own count; it may not have one."""
    cost = program.cost_analysis() or {}
    cost = cost[0] if isinstance(cost, list) else cost
    return cost.get("bytes accessed")
