"""The configuration of the soak.

``python -m experiments.soak`` takes about ten minutes on 2 CPU cores. Expected: memory,
files and threads stay where they were after the first tenth of a load, and the last
rounds take as long as the first.
"""

import dataclasses
from pathlib import Path
from typing import Literal

from experiments.options import Count, Options, Whole

Load = Literal["checkpoints", "streamed", "vmap", "devices", "json"]
"""Rounds with a checkpoint every few, streamed steps one by one, many workers on one
device, one on each of many devices; and what TensorStore does for each array of a
checkpoint: it says in JSON how it is stored."""
PARTS = 10
"""Of a load; its first is the warm-up."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SoakConfig(Options):
    """Which loads, and how long; an MLP of one hidden layer on 8 x 8 digits."""

    loads: tuple[Load, ...] = ("checkpoints", "streamed", "vmap", "devices", "json")
    """What runs, each in a process of its own."""
    rounds: Count = 2000
    """Rounds with checkpoints, of four workers."""
    save_rounds: Count = 20
    """From one checkpoint to the next."""
    steps: Count = 20_000
    """Streamed steps, of four workers."""
    many_workers: Count = 64
    """Workers on one device, by vmap."""
    many_devices: Count = 16
    """CPU devices, with a worker on each."""
    many_rounds: Count = 10_000
    """Rounds of these."""
    samples: Count = 100
    """How often a load is looked at, a multiple of ten."""
    out: Path = Path("runs/soak")
    """Folder for the logs, the table and the figure."""

    def __post_init__(self):
        super().__post_init__()
        if self.samples % PARTS:
            raise ValueError(f"samples={self.samples} must be a multiple of {PARTS}.")

    def runs(self) -> list["SoakRun"]:
        """A program for each load."""
        each = {
            "checkpoints": (4, self.rounds),
            "streamed": (4, self.steps),
            "vmap": (self.many_workers, self.many_rounds),
            "devices": (self.many_devices, self.many_rounds),
            "json": (1, self.steps),
        }
        return [
            SoakRun(
                load=load,
                workers=each[load][0],
                calls=each[load][1],
                save_rounds=self.save_rounds if load == "checkpoints" else 0,
                samples=self.samples,
                out=self.out,
            )
            for load in self.loads
        ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SoakRun(Options):
    """One load."""

    load: Load
    """What is done."""
    workers: Count
    """N."""
    calls: Count
    """Of the program: rounds, or steps of the streamed load."""
    save_rounds: Whole
    """From one checkpoint to the next; 0 saves none."""
    samples: Count
    """How often it is looked at."""
    out: Path
    """Folder for the log."""
    period: Count = 4
    """k, local steps in a round, or pieces."""
    hidden: Count = 32
    """Units of the hidden layer."""
    batch_size: Count = 8
    """Examples in a local batch."""

    def __post_init__(self):
        super().__post_init__()
        if self.calls % self.samples:
            raise ValueError(
                f"calls={self.calls} must be a multiple of samples={self.samples}."
            )

    @property
    def log(self) -> Path:
        """Its log."""
        return self.out / f"{self.load}.jsonl"
