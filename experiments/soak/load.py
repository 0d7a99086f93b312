"""One load, in a process of its own: ``python -m experiments.soak.load``."""

import contextlib
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import numpy as np
import optax
import psutil
import tensorstore as ts

import cocod_jax as cj
from cocod_jax.observe.loggers import Logbook
from experiments import command, logbook
from experiments.algorithms import AXIS
from experiments.job.devices import start_devices
from experiments.soak.config import SoakRun
from experiments.streaming import mlp

INNER = optax.sgd(0.1, momentum=0.9)


def drawn(run: SoakRun, *steps: int) -> Iterator[np.ndarray]:
    """Which examples each batch has, int32 [N, *steps, batch], without end."""
    rng = np.random.default_rng(1)
    examples = len(mlp.digits()["train"][1])
    while True:
        shape = run.workers, *steps, run.batch_size
        yield rng.integers(0, examples, shape, np.int32)


def rounds(run: SoakRun, folder: Path) -> Generator[float, None, None]:
    """Round after round, with all that a loop has: a log, an alarm, checkpoints.

    Yields:
      The mean loss of each.
    """
    rule = cj.cocod(AXIS)
    round_ = cj.make_round(mlp.batch_loss, INNER, rule, period=run.period)
    take = cj.distribute(round_, via="vmap" if run.load == "vmap" else "pmap")
    state = cj.replicate(round_.init(mlp.params_of(0, run.hidden)), run.workers)
    alarm = cj.DriftAlarm()
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(cj.loggers.to_jsonl(folder / "log.jsonl"))
        checkpoints = None
        if run.save_rounds:
            manager = cj.execution.Checkpoints(folder / "checkpoints")
            checkpoints = stack.enter_context(manager)
        for number, batches in enumerate(drawn(run, run.period), start=1):
            state, metrics = take(state, batches)
            scalars = cj.loggers.scalars(metrics)
            log(number * run.period, scalars)
            alarm(metrics)
            if checkpoints is not None and number % run.save_rounds == 0:
                checkpoints.save(number * run.period, state)
            yield scalars["loss"]


def streamed_steps(run: SoakRun, folder: Path) -> Generator[float, None, None]:
    """Step after step of the streamed optimizer, as a loop of one's own has it.

    Yields:
      The mean loss of each.
    """
    optimizer = cj.every(run.period, INNER, cj.cocod(AXIS), streamed=True)

    def step(params: Any, state: Any, chosen: jax.Array) -> Any:
        loss, gradient = jax.value_and_grad(mlp.batch_loss)(params, chosen)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, loss

    take = jax.pmap(step, AXIS, donate_argnums=(0, 1))
    params = mlp.params_of(0, run.hidden)
    carried = cj.replicate((params, optimizer.init(params)), run.workers)
    with cj.loggers.to_jsonl(folder / "log.jsonl") as log:
        for number, chosen in enumerate(drawn(run), start=1):
            *carried, losses = take(*carried, chosen)
            loss = float(losses.mean())
            log(number, {"loss": loss})
            yield loss


def descriptions(run: SoakRun, folder: Path) -> Generator[float, None, None]:
    """Description after description of an array on disk, thrown away at once.

    Yields:
      0, as nothing is learnt.
    """
    store = {"driver": "file", "path": str(folder)}
    shape = [run.hidden, run.hidden]
    metadata = {"shape": shape, "chunks": shape, "dtype": "<f4"}
    while True:
        ts.Spec({"driver": "zarr", "kvstore": store, "metadata": metadata}).to_json()
        yield 0.0


LOADS: dict[str, Callable[[SoakRun, Path], Generator[float, None, None]]] = {
    "checkpoints": rounds,
    "streamed": streamed_steps,
    "vmap": rounds,
    "devices": rounds,
    "json": descriptions,
}


def soak(run: SoakRun, log: Logbook) -> None:
    """Runs the load, and logs what the process holds after each of equal parts."""
    process = psutil.Process()
    with TemporaryDirectory() as folder:
        calls = LOADS[run.load](run, Path(folder))
        with contextlib.closing(calls):
            for sample in range(run.samples):
                clock, cores = time.perf_counter(), time.process_time()
                losses = [next(calls) for _ in range(run.calls // run.samples)]
                log.write(
                    "sample",
                    calls=(sample + 1) * len(losses),
                    loss=float(np.mean(losses)),
                    seconds=time.perf_counter() - clock,
                    core_seconds=time.process_time() - cores,
                    memory_bytes=process.memory_info().rss,
                    files=process.num_fds(),
                    threads=process.num_threads(),
                    arrays=len(jax.live_arrays()),
                )


def main(run: SoakRun) -> None:
    start_devices(run.workers if run.load != "vmap" else 1)
    with logbook.opened(run.log, run) as log:
        soak(run, log)


if __name__ == "__main__":
    command.run(main, SoakRun, __doc__)
