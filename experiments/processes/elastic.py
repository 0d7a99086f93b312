"""Going on with fewer processes, where one of them is gone for good."""

import dataclasses
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import NamedTuple

from experiments.command import UsageError
from experiments.config import RunConfig, parse

JOB = "experiments.train"


class Team(NamedTuple):
    """The processes of a run, and what they run.

    Attributes:
      command: of each of them.
      members: by the numbers that they began with, which are those of their GPUs.
      run: what the command trains, where it can go on with fewer; None elsewhere.
    """

    command: tuple[str, ...]
    members: tuple[int, ...]
    run: RunConfig | None = None


def resizable(command: Sequence[str]) -> RunConfig:
    """What a command trains, which has to be able to go on with fewer workers.

    Raises:
      UsageError: when it could not, and why.
    """
    if JOB not in command:
        raise UsageError(
            f"--elastic is for python -m {JOB}, whose runs can be given another number "
            f"of workers, and not for {' '.join(command)}."
        )
    run = parse(command[command.index(JOB) + 1 :])
    if run.workers is None or run.micro_batches is not None:
        raise UsageError(
            f"workers={run.workers}, micro_batches={run.micro_batches}: with --elastic "
            "give --workers, and leave --micro-batches out."
        )
    return run


def without(team: Team, gone: Sequence[int]) -> Team | None:
    """The team without some of its members, by their places in it.

    The run goes on from its last checkpoint, with the workers of those that are left.

    Returns:
      The team; None when nobody is left, or there is no such run.
    """
    run = team.run
    left = tuple(m for place, m in enumerate(team.members) if place not in gone)
    if run is None or run.workers is None or not left:
        return None
    workers = run.workers // len(team.members) * len(left)
    command = (*team.command, "--workers", str(workers), "--resume")
    resize = [sys.executable, "-m", "experiments.resize", str(run.folder)]
    done = subprocess.run(
        [*resize, "--workers", str(workers)],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},  # whose memory is the largest
        check=False,
    )
    if done.returncode:
        return None
    return Team(command, left, dataclasses.replace(run, workers=workers))
