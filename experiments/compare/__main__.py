"""The family side by side: ``python -m experiments.compare``.

Every algorithm of the library trains a small network on the same samples, with equal
and with skewed data, at its best learning rate of a few. Accuracy and loss come from
training, bytes from the rounds, seconds from the clock of ``cocod_jax.timeline``, and
whether the exchange is hidden from the compiler. A run whose log says that it finished
is not repeated.
"""

from experiments import command, logbook, progress
from experiments.compare import figure, report, train
from experiments.compare.config import CompareConfig
from experiments.compare.methods import METHODS
from experiments.sweep import finished


def main(config: CompareConfig) -> None:
    """Trains what has not run yet; leaves logs, ``tables.md`` and ``accuracy.png``."""
    runs = config.runs(tuple(METHODS))
    with progress.report() as show:
        for number, run in enumerate(runs):
            show.now(run.log.stem, number, len(runs))
            if not finished(run):
                with logbook.opened(run.log, run) as log:
                    train.train(run, log)
    text = report.report(config)
    (config.out / "tables.md").write_text(text)
    figure.draw(config, config.out / "accuracy.png")
    print(text)


if __name__ == "__main__":
    command.run(main, CompareConfig, __doc__)
