"""Starts a program as several processes on this machine, which train together.

``python -m experiments.launch -n 2 -- python -m experiments.train --workers 2``

Each process gets the variables by which it finds the others, and the GPU of its number.
Its lines come out with that number before them. When one fails the others are ended,
and its status is that of the launcher. With ``--restarts 3`` all of them are started
again instead, up to three times, and the main job goes on from its last checkpoint.
With ``--elastic`` it then goes on without the process that is gone, with fewer workers.
"""

import dataclasses
import os
import shutil
import signal
import sys
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import tyro

from experiments import command
from experiments.cluster.network import free_port
from experiments.options import Count, NonNegative, Options, Whole
from experiments.processes import elastic, rendezvous
from experiments.processes.elastic import Team
from experiments.processes.together import Processes


@dataclasses.dataclass(frozen=True, kw_only=True)
class LaunchConfig(Options):
    """What runs, and how often."""

    command: tyro.conf.Positional[tuple[str, ...]]
    """What every process runs, after --; "python" is the interpreter that runs this."""
    processes: Annotated[Count, tyro.conf.arg(aliases=["-n"])]
    """How many processes there are."""
    restarts: Whole = 0
    """How often all of them are started again after one has failed."""
    elastic: bool = False
    """Whether the others go on without a process that has failed once more."""
    timeout: Count = rendezvous.MISSED
    """Seconds after which a process that is not heard of any more has failed."""
    grace: NonNegative = 10.0
    """Seconds that processes have to end by themselves after one has failed."""


def main(config: LaunchConfig) -> int:
    """Runs the processes; returns the status of the first that fails at last, or 0."""
    if not config.command:
        raise command.UsageError("There is no command: give it after --.")
    if shutil.which(config.command[0], path=search_path()) is None:
        print(f"{config.command[0]}: command not found", file=sys.stderr)
        return 127
    launch, restarts = uuid.uuid4().hex, 0
    resizable = elastic.resizable(config.command) if config.elastic else None
    team = Team(config.command, tuple(range(config.processes)), resizable)
    while True:
        ended = run(config, team, environment(config, team, launch))
        if not ended.gone:
            return ended.status
        if restarts < config.restarts:
            restarts += 1
            print(f"Restart {restarts} of {config.restarts}.", file=sys.stderr)
            continue
        fewer = elastic.without(team, ended.gone)
        if fewer is None:
            return ended.status
        names = lambda team: ", ".join(map(str, team.members))
        print(
            f"The processes that began as {names(fewer)} go on without the others of "
            f"{names(team)}.",
            file=sys.stderr,
        )
        team, restarts = fewer, 0


class Ended(NamedTuple):
    """How the processes ended.

    Attributes:
      status: of the first that failed, or 0.
      gone: those whose fault it was, where another start may help.
    """

    status: int
    gone: Sequence[int] = ()


def run(config: LaunchConfig, team: Team, env: Mapping[str, str]) -> Ended:
    """Runs the processes once."""
    with Processes(len(team.members)) as processes:
        for index, member in enumerate(team.members):
            own = {rendezvous.INDEX: str(index), "JAX_LOCAL_DEVICE_IDS": str(member)}
            processes.start(team.command, {**env, **own})
        status = processes.wait(config.grace)
        wrong = status == command.USAGE  # and will be the next time
        if not status or wrong or processes.interrupted:
            return Ended(status)
        missing = processes.missing()
        for index in missing:
            print(
                f"Process {index} was missing: it was halted, or not heard of for "
                f"{config.timeout} s.",
                file=sys.stderr,
            )
        return Ended(status, missing or processes.failed)


def search_path() -> str:
    """Where commands are: first beside the interpreter that runs this."""
    folders = [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
    return os.pathsep.join(folders)


def environment(config: LaunchConfig, team: Team, launch: str) -> dict[str, str]:
    """The variables that the processes have in common.

    Args:
      config: the command line.
      team: the processes.
      launch: names it; the same at every restart.
    """
    return {
        **os.environ,
        # Of an earlier start something may still hold the port.
        rendezvous.ADDRESS: f"127.0.0.1:{free_port()}",
        rendezvous.NUMBER: str(len(team.members)),
        rendezvous.TIMEOUT: str(config.timeout),
        rendezvous.LAUNCH: launch,
        "PATH": search_path(),
        "PYTHONUNBUFFERED": "1",
    }


if __name__ == "__main__":
    # Who reads the output may go, as `head` does; then this ends, and its children too.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    command.run(main, LaunchConfig, __doc__)
