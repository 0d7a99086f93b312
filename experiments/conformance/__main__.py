"""Beside what others published: ``python -m experiments.conformance``.

Trains in the settings of public results, and asks the clock of ``cocod_jax.timeline``
for published seconds. A run whose log says that it finished is not repeated.
"""

from experiments import command, logbook, progress
from experiments.conformance import labels, report, text
from experiments.conformance.config import ConformanceConfig
from experiments.sweep import finished


def main(config: ConformanceConfig) -> None:
    """Runs what has not run yet; leaves logs and ``tables.md``."""
    with progress.report() as show:
        for run in config.labels_runs():
            if not finished(run):
                with logbook.opened(run.log, run) as log:
                    labels.train(run, log, show)
        for run in config.text_runs():
            show.now(run.log.stem)
            if not finished(run):
                if config.data_file is None:
                    raise command.UsageError("give Tiny Shakespeare by --data-file.")
                with logbook.opened(run.log, run) as log:
                    text.train(run, config.data_file, log)
    table = report.report(config)
    (config.out / "tables.md").write_text(table)
    print(table)


if __name__ == "__main__":
    command.run(main, ConformanceConfig, __doc__)
