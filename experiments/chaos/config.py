"""The configuration of the study of faults.

``python -m experiments.chaos`` takes an hour on 2 CPU cores, and root for the
links that are cut. Expected: every run ends as if nothing had happened.
"""

import dataclasses
from pathlib import Path
from typing import Literal, get_args

from experiments.options import Count, Options, Positive, Seed, Share

Kind = Literal["killed", "halted", "exception", "cut", "slowed"]
"""SIGKILL; SIGSTOP; an exception in Python; the link to the others cut; SIGSTOP until
the process is named as slow."""
Job = Literal["images", "text"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """Runs of one job that faults befall."""

    job: Job
    """What is trained: a small CNN on digits, or a small transformer on sums."""
    processes: int
    """How many train it, a worker each."""
    kinds: tuple[Kind, ...]
    """Which faults there are; all are as frequent."""
    runs: int
    """How many runs there are, besides one without faults."""
    faults: int
    """Of each run, at most; what it ends before does not befall it."""
    starting: float
    """The share of them that comes while processes start."""
    seed: int
    """Draws the faults: kinds, processes and moments."""
    timeout: int
    """Seconds after which a process that is not heard of is missing."""
    save_rounds: int
    """Rounds from one checkpoint to the next."""
    epochs: float | None
    """Passes over the data; None is those of the job."""
    out: Path
    """Folder for the log."""

    @property
    def log(self) -> Path:
        """The log of these runs."""
        return self.out / f"{self.job}-{self.processes}.jsonl"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChaosConfig(Options):
    """Which faults befall which runs."""

    jobs: tuple[Job, ...] = get_args(Job)
    """What is trained."""
    processes: tuple[Count, ...] = (2, 4)
    """How many train it, a worker each."""
    kinds: tuple[Kind, ...] = get_args(Kind)
    """Which faults there are; "cut" needs Linux, iproute2 and root."""
    runs: Count = 2
    """Of each job with each number of processes."""
    faults: Count = 8
    """Of each run."""
    starting: Share = 0.4
    """The share of them that comes while processes start; the rest while they train."""
    seed: Seed = 0
    """Draws the faults: kinds, processes and moments."""
    timeout: Count = 10
    """Seconds after which a process that is not heard of is missing."""
    save_rounds: Count = 5
    """Rounds from one checkpoint to the next."""
    epochs: Positive | None = None
    """Passes over the data; default: 30 of the digits, 12 of the sums."""
    out: Path = Path("runs/chaos")
    """Folder for the logs and the table."""

    @property
    def cells(self) -> list[Cell]:
        """One for each job and number of processes."""
        shared = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in ("jobs", "processes")
        }
        return [
            Cell(job=job, processes=number, **shared)
            for number in self.processes
            for job in self.jobs
        ]
