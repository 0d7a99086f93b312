"""What the theory promises, and what is measured: ``python -m experiments.iterations``.

Three questions, each asked of the library's own optimizers, with all workers on one
device:

* Do N workers need N times fewer steps? Beside the bound of Theorem 1.
* How far do workers drift apart, at every delay? Beside the expected deviation.
* What is it worth in seconds? Digits are learnt by a network, and the clock of
  ``cocod_jax.timeline`` says when each step ends, for a larger one.

The log is ``iterations.jsonl``, and the figures are drawn from it alone.
"""

import time

import tyro

from cocod_jax.observe.loggers import to_jsonl
from experiments import logbook
from experiments.iterations import figures
from experiments.iterations.config import IterationsConfig
from experiments.iterations.drift import cost, drift
from experiments.iterations.seconds import scaling, seconds
from experiments.iterations.speedup import speedup


def main(config: IterationsConfig) -> None:
    """Measures everything, then draws it."""
    with to_jsonl(config.out / "iterations.jsonl") as log:
        log.write("run", **logbook.circumstances(config))
        for part in (speedup, drift, cost, seconds, scaling):
            start = time.perf_counter()
            part(config, log)
            log.write("took", part=part.__name__, seconds=time.perf_counter() - start)
        log.write("end", status="finished")
    figures.draw(config.out / "iterations.jsonl", config.out)


if __name__ == "__main__":
    main(tyro.cli(IterationsConfig, description=__doc__))
