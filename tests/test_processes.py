"""Several processes with one worker each give the numbers of one process."""

import sys

import jax
import numpy as np
import pytest

import cocod_jax as cj
from experiments.overlap.network import Network, free_port
from experiments.overlap.processes import run_workers
from tests import one_process, problems


@pytest.mark.parametrize("processes", [1, 2])
def test_processes_agree_with_one_process_to_the_bit(processes):
    """A sum of two has one order only, whoever computes it."""
    address = f"127.0.0.1:{free_port()}"
    records = run_workers(
        Network(processes, None),
        lambda rank: [
            *(sys.executable, "-m", "tests.one_process"),
            *(str(rank), str(processes), address),
        ],
        timeout=300,
    )

    round_ = one_process.make_round(processes)
    run = cj.distribute(round_, execution="split")
    state = cj.replicate(round_.init(problems.params()), processes)
    batches = problems.batches(workers=processes)
    losses = []
    for r in range(problems.ROUNDS):
        state, metrics = run(state, problems.round_batches(batches, r))
        losses.append(metrics.loss)

    assert [record["worker"] for record in records] == list(range(processes))
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves((state.params, losses))]
    for rank, record in enumerate(records):
        assert record["bits"] == [leaf[rank].tobytes().hex() for leaf in leaves]
        for leaf, own in zip(
            jax.tree.leaves(cj.consensus(state)), record["consensus"], strict=True
        ):
            np.testing.assert_allclose(own, leaf, rtol=1e-6)  # a sum in another order
    # Only the second process has another start; both must say so.
    refused = [record["refused"] for record in records]
    if processes == 1:
        assert refused == [""]
    else:
        assert "see process 1" in refused[0]
        assert "differs from the first worker's" in refused[1]
