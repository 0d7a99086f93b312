"""A local step of ResNet-18 on one core: XLA, with flags and without, and PyTorch.

``python -m experiments.local_step`` keeps a process for each, which take turns on one
core, and logs the seconds of every turn and a profile by kind of operation.
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from rich.table import Table

from experiments import command, logbook, progress
from experiments.cluster.processes import machine
from experiments.local_step.config import LocalStepConfig
from experiments.overlap.peers import torch_python

FLAGS = {
    "XLA": "",
    "XLA, convolutions by Eigen": "--xla_cpu_experimental_ynn_fusion_type=",
    "XLA, the older fusions": "--xla_cpu_use_fusion_emitters=false",
    "XLA, fast math": "--xla_cpu_enable_fast_math=true",
}
"""XLA's variants, by what is set for each."""
TORCH = "PyTorch"


class Program:
    """A process that takes steps on one core when it is told to."""

    def __init__(self, argv: list[str], core: int, flags: str = ""):
        one_thread = {"OMP_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu"}
        self._process = subprocess.Popen(
            ["taskset", "-c", str(core), *argv],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **one_thread, "XLA_FLAGS": flags},
        )

    def ask(self, what: str) -> dict[str, Any]:
        """The answer.

        Raises:
          RuntimeError: when the process has ended.
        """
        asked, said = self._process.stdin, self._process.stdout
        assert asked is not None
        assert said is not None
        with suppress(BrokenPipeError):
            print(what, file=asked, flush=True)
        line = said.readline()
        if not line:
            raise RuntimeError(f"{self._process.args} ended; see what it said above.")
        return json.loads(line)

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()


def programs(config: LocalStepConfig) -> dict[str, Callable[[], Program]]:
    """How each is started."""
    own = [sys.executable, "-m", "experiments.local_step.xla_step"]
    own += [
        f"--{name}={getattr(config, name)}" for name in ("width", "images", "steps")
    ]
    peer = str(Path(__file__).with_name("torch_step.py"))
    python = str(torch_python(config.peers_environment))
    peer_argv = [python, peer, f"--steps={config.steps}"]
    start = lambda flags: lambda: Program(own, config.core, flags)
    return {name: start(flags) for name, flags in FLAGS.items()} | {
        TORCH: lambda: Program(peer_argv, config.core)
    }


def measure(
    config: LocalStepConfig, show: progress.Reporter
) -> Iterator[dict[str, Any]]:
    """The records of the log."""
    with ExitStack() as stack:
        running = {}
        for name, start in programs(config).items():
            show.now(f"{name}: starts")
            running[name] = start()
            stack.callback(running[name].close)
            running[name].ask("step")
        times: dict[str, list[float]] = {name: [] for name in running}
        for turn in range(config.repeats):
            for name, program in running.items():
                show.now(f"turn {turn + 1}: {name}", turn, config.repeats)
                times[name].append(program.ask("step")["seconds_per_step"])
        for name, program in running.items():
            yield {
                "program": name,
                "flags": FLAGS.get(name, ""),
                "seconds_per_step": statistics.median(times[name]),
                "repeats": times[name],
                **program.ask("profile"),
            }


def table(records: list[dict[str, Any]]) -> Table:
    """Each program's step, and over XLA's of the same turn."""
    shown = Table("program", "s per step", "of XLA's", "from", "to")
    base = next(r for r in records if r["program"] == "XLA")["repeats"]
    for record in records:
        ratios = [own / xla for own, xla in zip(record["repeats"], base, strict=True)]
        ends = statistics.median(ratios), min(ratios), max(ratios)
        seconds = f"{record['seconds_per_step']:.3f}"
        shown.add_row(record["program"], seconds, *(f"{end:.2f}" for end in ends))
    return shown


def main(config: LocalStepConfig) -> None:
    """Measures, logs and prints."""
    records = []
    with progress.report() as show:
        path = config.out / "local_step.jsonl"
        with logbook.opened(path, config, machine=machine()) as log:
            for record in measure(config, show):
                log.write("result", **record)
                records.append(record)
        show.print(table(records))


if __name__ == "__main__":
    command.run(main, LocalStepConfig, __doc__)
