"""How the processes of a run meet, whatever started them."""

import os
from typing import Any

import jax

from experiments.command import UsageError

ADDRESS = "JAX_COORDINATOR_ADDRESS"
NUMBER = "JAX_NUM_PROCESSES"
INDEX = "JAX_PROCESS_ID"
LAUNCH = "COCOD_LAUNCH"
"""Names the launch that started this process, the same after a restart."""
TIMEOUT = "COCOD_TIMEOUT"
MISSED = 60
"""Seconds after which a process that is not heard of any more ends the others, where
the variable above says nothing else."""


def join_processes() -> int:
    """Meets the other processes of this run. Call it before anything else uses JAX.

    The environment says whether there are any, by the first of these that it has:

    * ``JAX_COORDINATOR_ADDRESS``, ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID``: where
      process 0 listens, HOST:PORT; their number; and which of them this one is;
    * the variables of a task of Open MPI's ``mpirun``;
    * those of a task of Slurm's ``srun``; the shell of ``sbatch`` is none.

    A task of Open MPI or Slurm gets one GPU of its node. ``JAX_LOCAL_DEVICE_IDS``
    chooses others.

    ``COCOD_TIMEOUT`` is how many seconds a process may not be heard of before the
    others end, 60 by default. To come to the meeting it has five times as long.

    Returns:
      The number of processes, 1 for a process on its own.

    Raises:
      UsageError: when one of these variables is missing or impossible.
    """
    if any(name in os.environ for name in (ADDRESS, NUMBER, INDEX)):
        return _join_by_hand()
    if "OMPI_COMM_WORLD_SIZE" in os.environ:  # first: its daemons are tasks of Slurm
        return _join_open_mpi()
    if "SLURM_STEP_NUM_TASKS" in os.environ:
        return _join_slurm()
    return 1


def _join_by_hand() -> int:
    address, number, index = _value(ADDRESS), _integer(NUMBER), _integer(INDEX)
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal()):
        raise UsageError(f"{ADDRESS}={address!r} is not HOST:PORT, as 10.0.0.1:1234.")
    if number < 1:
        raise UsageError(f"{NUMBER}={number} must be at least 1.")
    if not 0 <= index < number:
        raise UsageError(f"{INDEX}={index} must be below {NUMBER}={number}, from 0 on.")
    if number > 1:
        # JAX would look for a Slurm job, or for Kubernetes' server, around the process.
        _meet("deactivate", address, number, index)
    return number


def _join_open_mpi() -> int:
    number = _integer("OMPI_COMM_WORLD_SIZE")
    if number > 1:
        if "OMPI_MCA_orte_hnp_uri" not in os.environ:
            raise UsageError(
                "OMPI_MCA_orte_hnp_uri is not set: JAX finds the processes of Open MPI "
                f"4 only. Set {ADDRESS}, {NUMBER} and {INDEX}."
            )
        _meet("ompi")
    return number


def _join_slurm() -> int:
    number = _integer("SLURM_STEP_NUM_TASKS")
    if number > 1:
        _meet("slurm")
    return number


def _meet(detection: str, *how: Any) -> None:
    timeout = _integer(TIMEOUT) if TIMEOUT in os.environ else MISSED
    if timeout < 1:
        raise UsageError(f"{TIMEOUT}={timeout} must be at least 1, in seconds.")
    jax.distributed.initialize(
        *how,
        cluster_detection_method=detection,
        heartbeat_timeout_seconds=timeout,
        initialization_timeout=5 * timeout,  # processes do not start at one moment
    )


def _integer(name: str) -> int:
    try:
        return int(_value(name))
    except ValueError:
        raise UsageError(f"{name}={_value(name)!r} is not an integer.") from None


def _value(name: str) -> str:
    if name not in os.environ:
        raise UsageError(f"{name} is not set: set {ADDRESS}, {NUMBER} and {INDEX}.")
    return os.environ[name]
