"""A Slurm of one node, while a command runs: ``python -m tests.slurm srun -n 2 ...``.

It needs root and the packages of Debian 12: ``apt-get install --no-install-recommends
munge slurm-client slurmctld slurmd``. All it writes is in a temporary folder, its ports
are free ones of 127.0.0.1, and nothing of it stays, whatever but SIGKILL ends it.
"""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from experiments import children
from experiments.cluster.network import free_port
from experiments.signals import exit_status, like_ctrl_c

CONFIGURATION = """
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmdPort={node_port}
SlurmUser=root
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SlurmdParameters=config_overrides
NodeName=localhost NodeHostname={host} NodeAddr=127.0.0.1 CPUs=4
PartitionName=all Nodes=ALL Default=YES
"""


def why_not() -> str | None:
    """Why Slurm cannot run here."""
    for program in ("munged", "slurmctld", "slurmd", "srun"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    return "Slurm's daemons need root" if os.geteuid() else None


@contextmanager
def one_node() -> Iterator[dict[str, str]]:
    """Slurm on this machine; yields the environment for its commands.

    Raises:
      RuntimeError: when it does not start, with what its daemons said.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.chmod(0o755)  # MUNGE wants its socket to be there for everyone
        (folder / "state").mkdir()
        key = folder / "munge.key"
        key.touch(0o600)
        key.write_bytes(secrets.token_bytes(128))
        conf = folder / "slurm.conf"
        conf.write_text(
            CONFIGURATION.format(
                folder=folder,
                host=socket.gethostname().partition(".")[0],
                port=free_port(),
                node_port=free_port(),
            )
        )
        environment = os.environ | {"SLURM_CONF": str(conf)}
        log = stack.enter_context((folder / "log").open("w+"))
        daemons: list[subprocess.Popen] = []
        stack.callback(children.end, daemons)
        for argv in (
            f"munged --foreground --key-file {key} --socket {folder}/munge.socket "
            f"--pid-file {folder}/munge.pid --seed-file {folder}/munge.seed",
            "slurmctld -D",
            "slurmd -D -N localhost",
        ):
            daemons.append(
                children.start(argv.split(), env=environment, stdout=log, stderr=log)
            )
        if not _within(20, lambda: _ask("sinfo -h -o %T", environment) == "idle"):
            log.seek(0)
            raise RuntimeError(f"Slurm has no idle node:\n{log.read()}")
        stack.callback(_cancel_all, environment)
        yield environment


def _cancel_all(environment: dict[str, str]) -> None:
    """Ends the jobs: their processes are no children of ours."""
    _ask("scancel --me --full", environment)
    _within(20, lambda: not _ask("squeue -h", environment))


def _ask(command: str, environment: dict[str, str]) -> str:
    asked = subprocess.run(
        command.split(), env=environment, capture_output=True, text=True
    )
    return asked.stdout.strip()


def _within(seconds: float, holds) -> bool:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def main(argv: Sequence[str]) -> int:
    """Runs a command in Slurm; returns its status."""
    if reason := why_not():
        print(reason, file=sys.stderr)
        return 2
    try:
        with like_ctrl_c(), one_node() as environment:
            return subprocess.run(argv, env=environment).returncode
    except KeyboardInterrupt as stop:
        return exit_status(stop)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
