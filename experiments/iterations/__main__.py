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

from experiments import command, logbook, progress
from experiments.iterations import figures
from experiments.iterations.config import IterationsConfig
from experiments.iterations.drift import cost, drift
from experiments.iterations.seconds import scaling, seconds
from experiments.iterations.speedup import speedup


def main(config: IterationsConfig) -> None:
    """Measures everything, then draws it."""
    path = config.out / "iterations.jsonl"
    parts = (speedup, drift, cost, seconds, scaling)
    with progress.report() as show:
        with logbook.opened(path, config) as log:
            for number, part in enumerate(parts):
                show.now(part.__name__, number, len(parts))
                start = time.perf_counter()
                part(config, log, show)
                took = time.perf_counter() - start
                log.write("took", part=part.__name__, seconds=took)
        show.now("drawing", len(parts))
        figures.draw(path, config.out)


if __name__ == "__main__":
    command.run(main, IterationsConfig, __doc__)
