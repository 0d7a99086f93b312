"""What the logs of the soak say: slopes with their errors, and speeds."""

from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from cocod_jax.observe.loggers import read_jsonl
from experiments import markdown
from experiments.soak.config import PARTS, SoakConfig, SoakRun

NAMES = {
    "checkpoints": "rounds with checkpoints",
    "streamed": "streamed steps",
    "vmap": "rounds of vmap",
    "devices": "rounds of many devices",
    "json": "descriptions by TensorStore",
}


class Estimate(NamedTuple):
    """A number and its standard error."""

    value: float
    error: float

    def __str__(self) -> str:
        # A line through equal numbers has a slope and an error of rounding alone.
        return f"{round(self.value, 6):.3g} ± {round(self.error, 6):.2g}"


class Samples(NamedTuple):
    """What a load's log has, an entry for each sample; the first part is cut off.

    Attributes:
      calls: of the program up to the sample.
      memory: MB that the process holds.
      files: that are open.
      threads: of the process.
      arrays: of JAX.
      core_ms: processor milliseconds of a call.
      ms: milliseconds of a call by the clock.
    """

    calls: np.ndarray
    memory: np.ndarray
    files: np.ndarray
    threads: np.ndarray
    arrays: np.ndarray
    core_ms: np.ndarray
    ms: np.ndarray

    @property
    def slope(self) -> Estimate:
        """Of the memory, in kB for a thousand calls of the last two thirds.

        Samples that follow each other are alike: the line goes through the means of
        six parts, which are less so. Allocators take a while to have what they need.
        """
        x, y = (_parts(values)[3:] for values in (self.calls, self.memory))
        fit = stats.linregress(x, y)
        # SciPy has no error for a line that is flat to the byte.
        return Estimate(1e6 * fit.slope, 1e6 * float(np.nan_to_num(fit.stderr)))

    @property
    def slowed(self) -> Estimate:
        """Processor time of the last third of the calls, divided by that of the first.

        The error is that of the mean of a third's parts.
        """
        parts = _parts(self.core_ms).reshape(3, -1)
        mean, error = parts.mean(axis=1), stats.sem(parts, axis=1)
        ratio = mean[2] / mean[0]
        return Estimate(ratio, ratio * np.hypot(error[0] / mean[0], error[2] / mean[2]))


def _parts(values: np.ndarray) -> np.ndarray:
    """The means of the parts after the warm-up, [9]."""
    return values.reshape(PARTS - 1, -1).mean(axis=1)


def samples(run: SoakRun) -> Samples:
    """What its log has after the warm-up."""
    records = read_jsonl(run.log)["sample"]
    column = lambda name: np.array([r[name] for r in records], float)[
        run.samples // PARTS :
    ]
    calls = run.calls / run.samples
    return Samples(
        calls=column("calls"),
        memory=column("memory_bytes") / 1e6,
        files=column("files"),
        threads=column("threads"),
        arrays=column("arrays"),
        core_ms=1e3 * column("core_seconds") / calls,
        ms=1e3 * column("seconds") / calls,
    )


def report(config: SoakConfig) -> str:
    """A row for each load, as Markdown."""
    head = ["load", "workers", "calls", "memory, MB", "slope, kB in 1,000 calls"]
    head += ["files", "threads", "arrays", "core ms a call", "last third / first"]
    rows = []
    for run in config.runs():
        found = samples(run)
        cells: list[Any] = [
            NAMES[run.load],
            run.workers,
            f"{run.calls:,}",
            f"{found.memory[0]:.1f} to {found.memory[-1]:.1f}",
            found.slope,
            *map(_ends, (found.files, found.threads, found.arrays)),
            f"{found.core_ms.mean():.3g}",
            found.slowed,
            f"{found.ms.mean():.3g}",
        ]
        rows.append(cells)
    return markdown.table([*head, "ms a call"], rows)


def _ends(values: np.ndarray) -> str:
    """The means of the first and of the last third, which are alike without a leak."""
    first, _, last = _parts(values).reshape(3, -1).mean(axis=1)
    return f"{first:.1f}, {last:.1f}"
