"""What the environment says of other processes; tests/test_processes.py meets them."""

import os

import pytest

from experiments.command import UsageError
from experiments.processes.rendezvous import join_processes

BY_HAND = {
    "JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234",
    "JAX_NUM_PROCESSES": "2",
    "JAX_PROCESS_ID": "1",
}


def join(monkeypatch, variables: dict[str, str]) -> int:
    for name in os.environ:
        if name.startswith(("JAX_", "OMPI_", "SLURM_")):
            monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return join_processes()


@pytest.mark.parametrize(
    "variables",
    [
        {},
        BY_HAND | {"JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"},
        {"OMPI_COMM_WORLD_SIZE": "1"},
        {"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "1"},
        # The shell of `sbatch --ntasks=4`.
        {"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},
    ],
)
def test_a_process_on_its_own(monkeypatch, variables):
    assert join(monkeypatch, variables) == 1


@pytest.mark.parametrize("missing", BY_HAND)
def test_a_variable_is_missing(monkeypatch, missing):
    others = {name: value for name, value in BY_HAND.items() if name != missing}
    with pytest.raises(UsageError, match=f"^{missing} is not set"):
        join(monkeypatch, others)


@pytest.mark.parametrize(
    ("name", "value", "wrong"),
    [
        ("JAX_PROCESS_ID", "2", "JAX_PROCESS_ID=2 must be below JAX_NUM_PROCESSES=2"),
        ("JAX_PROCESS_ID", "-1", "JAX_PROCESS_ID=-1 must be"),
        ("JAX_PROCESS_ID", "", "JAX_PROCESS_ID='' is not an integer"),
        ("JAX_NUM_PROCESSES", "two", "JAX_NUM_PROCESSES='two' is not an integer"),
        ("JAX_NUM_PROCESSES", "0", "JAX_NUM_PROCESSES=0 must be at least 1"),
        ("JAX_COORDINATOR_ADDRESS", "host", "'host' is not HOST:PORT"),
        ("JAX_COORDINATOR_ADDRESS", ":1234", "':1234' is not HOST:PORT"),
    ],
)
def test_a_variable_is_impossible(monkeypatch, name, value, wrong):
    with pytest.raises(UsageError, match=wrong):
        join(monkeypatch, BY_HAND | {name: value})


def test_an_open_mpi_that_jax_does_not_know(monkeypatch):
    variables = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"}
    with pytest.raises(UsageError, match="OMPI_MCA_orte_hnp_uri is not set"):
        join(monkeypatch, variables)
