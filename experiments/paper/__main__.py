"""The study of the paper, once more: ``python -m experiments.paper``.

ResNet-18 and VGG-16 with S-SGD, Pipe-SGD, Local SGD and CoCoD-SGD, on equal and on
unequal workers, over several seeds. A run whose log says that it finished is not
repeated, so that the study can be stopped and resumed. The figures and the table of
claims come from the logs, and the times in them from the clock of
``cocod_jax.timeline`` with the Tc and Tm that ``experiments.overlap`` measured.
"""

from cocod_jax.style import ALGORITHMS
from experiments import command
from experiments.clock import Clock, read_clocks
from experiments.paper import figures
from experiments.paper.config import (
    EQUAL,
    MODELS,
    UNEQUAL,
    PaperConfig,
    equal,
    unequal,
)
from experiments.paper.report import report
from experiments.sweep import train_all


def clocks_of(config: PaperConfig) -> dict[str, Clock]:
    """A clock for each of the links to show, from the overlap log.

    Raises:
      ValueError: when the log has not what figures and table need.
    """
    measured = read_clocks(config.overlap)
    if not config.rates or not set(config.rates) <= set(measured):
        raise ValueError(
            f"rates={config.rates!r} must be some of those in {config.overlap}, which "
            f"has {', '.join(measured)}; or give another log as overlap."
        )
    needed = [ALGORITHMS[key][0] for key in EQUAL]
    for rate in config.rates:
        ours = measured[rate].measured
        if missing := [name for name in needed if name not in ours]:
            raise ValueError(
                f"overlap={str(config.overlap)!r} has no {', '.join(missing)} at "
                f"{rate}, but only {', '.join(ours)}; measure all algorithms with "
                "experiments.overlap."
            )
    return {rate: measured[rate] for rate in config.rates}


def main(config: PaperConfig) -> None:
    """Runs what has not run yet; leaves logs, figures and ``claims.md``."""
    clocks = clocks_of(config)
    runs = {
        model: [
            equal(config, model, algorithm, seed)
            for seed in config.seeds
            for algorithm in EQUAL
        ]
        for model in MODELS
    } | {
        share: [
            unequal(config, share, algorithm, seed)
            for algorithm in UNEQUAL
            for seed in config.seeds
        ]
        for share in figures.SHARES
    }
    train_all(run for group in runs.values() for run in group)
    logs_of = lambda names: {n: [run.log for run in runs[n]] for n in names}
    logs, shares = logs_of(MODELS), logs_of(figures.SHARES)
    figures.learning(logs, clocks, config.out / "learning.png")
    figures.speedup(clocks, config.out / "speedup.png")
    last = clocks[config.rates[-1]]
    figures.timelines(last, config.out / "timelines.png")
    figures.unequal(shares, last, config.out / "unequal.png")
    text = report(logs, shares, clocks)
    (config.out / "claims.md").write_text(text)
    print(text)


if __name__ == "__main__":
    command.run(main, PaperConfig, __doc__)
