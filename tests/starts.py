"""The ways to start a program as several processes, on this machine."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import yaml

from docs import generate
from experiments.cluster.network import Network, free_port
from experiments.cluster.processes import run_workers
from tests import slurm

Start = Callable[[Sequence[str], int], None]
"""Runs a command as so many processes, and fails when one of them does."""


def by_hand(argv: Sequence[str], processes: int) -> None:
    address = f"127.0.0.1:{free_port()}"
    with_variables(
        lambda index: {
            "JAX_COORDINATOR_ADDRESS": address,
            "JAX_NUM_PROCESSES": processes,
            "JAX_PROCESS_ID": index,
        },
        argv,
        processes,
    )


def kubernetes(argv: Sequence[str], processes: int) -> None:
    """With the variables that the documentation's job sets, on another address."""
    _, job = manifest()
    (container,) = job["spec"]["template"]["spec"]["containers"]
    address = f"127.0.0.1:{free_port()}"

    def variables(index: int) -> Mapping[str, Any]:
        own = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}  # as in every container
        for each in container["env"]:
            own[each["name"]] = each.get("value", index)
        return own | {"JAX_COORDINATOR_ADDRESS": address}

    assert int(variables(0)["JAX_NUM_PROCESSES"]) == processes
    with_variables(variables, argv, processes)


def launcher(argv: Sequence[str], processes: int) -> None:
    own = [sys.executable, "-m", "experiments.launch", "-n", str(processes), "--"]
    subprocess.run([*own, *argv], check=True)


def mpirun(argv: Sequence[str], processes: int) -> None:
    if shutil.which("mpirun") is None:
        pytest.skip("mpirun is not installed")
    as_root = ("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM")
    subprocess.run(
        ["mpirun", "--oversubscribe", "-n", str(processes), *argv],
        env=os.environ | dict.fromkeys(as_root, "1"),
        check=True,
    )


def srun(argv: Sequence[str], processes: int) -> None:
    if reason := slurm.why_not():
        pytest.skip(reason)
    with slurm.one_node() as environment:
        command = ["srun", "-n", str(processes), *argv]
        subprocess.run(command, env=environment, check=True)


def with_variables(
    variables: Callable[[int], Mapping[str, Any]], argv: Sequence[str], processes: int
) -> None:
    """Runs a command with variables of its own in every process."""
    run_workers(
        Network(processes, None),
        lambda index: [
            "env",
            *(f"{name}={value}" for name, value in variables(index).items()),
            *argv,
        ],
        timeout=300,
    )


def manifest() -> tuple[dict[str, Any], dict[str, Any]]:
    """The service and the job on the documentation's page."""
    page = (generate.DOCS / "how-to" / "processes.md").read_text()
    (text,) = page.split("```yaml\n")[1:]
    service, job = yaml.safe_load_all(text.partition("```")[0])
    return service, job
