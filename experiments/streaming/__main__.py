"""Whole or streamed exchanges: ``python -m experiments.streaming``.

S-SGD, Local SGD, the just-in-time merge with delay 1, CoCoD-SGD and streamed rounds, at
several periods, on equal and on skewed data, with SGD and AdamW. Accuracy, loss and
drift come from training, seconds from the clock of ``cocod_jax.timeline``. A run whose
log says that it finished is not repeated, so that the study can be stopped and resumed.
"""

from experiments import command, logbook, progress
from experiments.streaming import figures, mlp, quadratic
from experiments.streaming.config import StreamingConfig, mlp_runs, resnet_runs
from experiments.streaming.report import report
from experiments.sweep import finished, train_all


def train_mlp(config: StreamingConfig, show: progress.Reporter) -> None:
    """The programs of the MLP that have not run yet, and the drift on the quadratic."""
    runs = mlp_runs(config)
    for number, run in enumerate(runs):
        show.now(run.log.stem, number, len(runs) + 1)
        if not finished(run):
            with logbook.opened(run.log, run) as log:
                mlp.train(run, log)
    run = quadratic.quadratic_run(config)
    show.now(run.log.stem, len(runs), len(runs) + 1)
    if not finished(run):
        with logbook.opened(run.log, run) as log:
            quadratic.drift(run, log, show)


def main(config: StreamingConfig) -> None:
    """Trains; leaves logs, ``tables.md`` and, of the MLP, a figure an optimizer."""
    if config.model == "resnet18":
        train_all(resnet_runs(config))
    else:
        with progress.report() as show:
            train_mlp(config, show)
        for optimizer in config.optimizers:
            figures.draw(config, optimizer, config.out / f"{optimizer}.png")
    text = report(config)
    (config.out / "tables.md").write_text(text)
    print(text)


if __name__ == "__main__":
    command.run(main, StreamingConfig, __doc__)
