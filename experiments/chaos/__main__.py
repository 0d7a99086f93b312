"""Training through faults: ``python -m experiments.chaos``.

Processes that train are killed, halted, cut off and made to fail, at random moments.
The launcher starts them again; in the end the model and the log have to be, to the bit,
those of a run without faults. A cell of the study whose log says that it finished is
not repeated.
"""

import tempfile
import time
from pathlib import Path

from cocod_jax.observe.loggers import Logbook, read_jsonl
from experiments import command, logbook, progress
from experiments.chaos import disturb, report
from experiments.chaos.config import Cell, ChaosConfig
from experiments.chaos.launched import Launched
from experiments.chaos.outcome import lost_bytes
from experiments.cluster.network import Network
from experiments.config import RunConfig, parse
from experiments.sweep import finished

RATE = "1gbit"


def main(config: ChaosConfig) -> None:
    """Runs what has not run yet; leaves a log of each cell, and ``tables.md``."""
    with progress.report() as show:
        for cell in config.cells:
            if not finished(cell):
                with logbook.opened(cell.log, cell) as log:
                    study(cell, log, show)
    text = report.report(config.out)
    (config.out / "tables.md").write_text(text)
    print(text)


def study(cell: Cell, log: Logbook, show: progress.Reporter) -> None:
    """One run without faults, and those that are to end like it."""
    rate = RATE if "cut" in cell.kinds else None
    with (
        Network(cell.processes, rate) as network,
        tempfile.TemporaryDirectory() as name,
    ):
        folder = Path(name)
        whole, cache = job(cell, folder, "whole"), folder / "cache"
        title = f"{cell.job}, {cell.processes} processes"
        show.now(f"{title}, without faults")
        begun = time.monotonic()
        with Launched(cell, network, whole, cache) as launched:
            disturb.disturb(cell, whole, launched, ())
        seconds = time.monotonic() - begun
        rounds = len(read_jsonl(whole.log)["round"])
        log.write("whole", rounds=rounds, seconds=round(seconds, 2))
        # Processes start for more than half of the time of so short a run.
        for number, faults in enumerate(disturb.draw(cell, rounds, seconds / 2)):
            show.now(f"{title}, with faults", number, cell.runs)
            run = job(cell, folder, str(number))
            with Launched(cell, network, run, cache) as launched:
                found = disturb.disturb(cell, run, launched, faults)
            for each in found:
                log.write("fault", run=number, **each.record())
            lost = lost_bytes(whole, run)
            log.write("result", run=number, restarts=launched.restarts, lost_bytes=lost)


def job(cell: Cell, folder: Path, name: str) -> RunConfig:
    """The configuration of a run of a cell."""
    text = folder / "sums.txt"
    text.write_text("".join(f"{i} and {i + 1} are {2 * i + 1}.\n" for i in range(400)))
    examples = 120 // cell.processes if cell.job == "images" else 16 // cell.processes
    words = {
        "images": "--data digits --model cnn",
        "text": f"--task text --data-file {text} --context 16 --algorithm streamed",
    }[cell.job]
    epochs = (
        {"images": 30, "text": 12}[cell.job] if cell.epochs is None else cell.epochs
    )
    words += f" --workers {cell.processes} --batch-size {examples} --epochs {epochs:g}"
    words += f" --save-rounds {cell.save_rounds} --slow {cell.timeout / 4}"
    words += f" --out {folder / name}"
    return parse(words.split())


if __name__ == "__main__":
    command.run(main, ChaosConfig, __doc__)
