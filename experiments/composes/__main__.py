"""Every optimizer of optax in rounds: ``python -m experiments.composes``.

Runs each one alone, in rounds (fused, split, without delay) and in ``every``. The page
"What composes" is made from the log, ``composes.jsonl``.
"""

import dataclasses

import jax

from experiments import command, logbook, progress
from experiments.composes.cases import CASES
from experiments.composes.config import ComposesConfig
from experiments.composes.probe import N, probe
from experiments.job.devices import start_devices


def main(config: ComposesConfig) -> None:
    """Tries them all, in a process that does nothing else."""
    start_devices(N)
    # Nearly all of the time is the compiler's.
    jax.config.update("jax_disable_most_optimizations", True)
    sweep(config)


def sweep(config: ComposesConfig) -> None:
    """Tries them one by one."""
    cases = [case for case in CASES if case.exists]
    with (
        progress.report() as show,
        logbook.opened(config.out / "composes.jsonl", config) as log,
    ):
        for number, case in enumerate(cases):
            show.now(case.code, number, len(cases))
            found = {d: dataclasses.asdict(probe(case, d)) for d in config.dtypes}
            log.write("case", group=case.group, code=case.code, **found)


if __name__ == "__main__":
    command.run(main, ComposesConfig, __doc__)
