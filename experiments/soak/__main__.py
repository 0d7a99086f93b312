"""Whether a long run keeps its pace and its memory: ``python -m experiments.soak``.

Each load runs in a process of its own, which logs after equal parts what it holds:
memory, files, threads, arrays; and the seconds of a call, by the clock and of its
cores, since other programs may use these as well. A load whose log says that it
finished is not repeated.
"""

import subprocess
import sys

from experiments import command, progress
from experiments.soak import figures
from experiments.soak.config import SoakConfig
from experiments.soak.report import report
from experiments.sweep import finished, options


def main(config: SoakConfig) -> None:
    """Runs what has not run yet; leaves logs, ``table.md`` and ``soak.png``."""
    runs = config.runs()
    with progress.report() as show:
        for number, run in enumerate(runs):
            show.now(run.load, number, len(runs))
            if not finished(run):
                load = [sys.executable, "-m", "experiments.soak.load"]
                subprocess.run([*load, *options(run)], check=True)
        figures.draw(config, config.out / "soak.png")
        text = report(config)
        (config.out / "table.md").write_text(text)
        show.line(text)


if __name__ == "__main__":
    command.run(main, SoakConfig, __doc__)
