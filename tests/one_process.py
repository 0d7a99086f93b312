"""One of several processes that train together; writes its worker as JSON."""

import json
import sys
from pathlib import Path

import jax
import numpy as np
import optax

import cocod_jax as cj
from experiments.processes.rendezvous import join_processes
from tests import problems


def make_round(workers: int) -> cj.Round:
    """A round of workers that count 1, 2, ... in the mean."""
    return cj.make_round(
        problems.loss,
        optax.sgd(0.05, momentum=0.9),
        cj.cocod("workers", weights=range(1, workers + 1)),
        period=problems.PERIOD,
        delay=2,
    )


def main(folder: Path) -> None:
    jax.config.update("jax_num_cpu_devices", 2)
    processes = join_processes()
    rank = jax.process_index()
    devices, exchange_devices = cj.execution.device_pairs()
    round_ = make_round(processes)
    run = cj.distribute(round_, devices=devices, exchange_devices=exchange_devices)
    state = cj.replicate(round_.init(problems.params()), 1)
    cj.workers.check_equal_start(state)
    # Equal workers, whose shares are too long for a float.
    start = jax.tree.leaves(cj.consensus(state, device=devices[rank]))
    shifted = jax.tree.map(lambda leaf: leaf + rank, state.params)
    refused = ""
    try:
        cj.workers.check_equal_start(state._replace(params=shifted))
    except ValueError as error:
        refused = str(error)
    disagreed = ""
    settings = {"seed": 0, "optimizer": {"rate": 0.1 * rank, "name": "sgd"}}
    cj.workers.check_agreement({"seed": 0})
    try:
        cj.workers.check_agreement(settings | ({"width": 3} if rank else {}))
    except ValueError as error:
        disagreed = str(error)
    own = jax.tree.map(
        lambda leaf: leaf[rank : rank + 1], problems.batches(workers=processes)
    )
    losses = []
    for r in range(problems.ROUNDS):
        state, metrics = run(state, problems.round_batches(own, r))
        losses.append(metrics.loss)
    bits = lambda leaf: np.asarray(leaf.addressable_shards[0].data).tobytes().hex()
    leaves = jax.tree.leaves((state.params, losses))
    numbers = lambda tree: [np.asarray(leaf).tolist() for leaf in jax.tree.leaves(tree)]
    own_device = exchange_devices[rank]
    on_own_device = cj.consensus(state, device=own_device)
    record = {
        "start": [bits(leaf) for leaf in start],
        "bits": [bits(leaf) for leaf in leaves],
        "consensus": numbers(cj.consensus(state)),
        "on_own_device": numbers(on_own_device),
        "devices": [
            leaf.devices() == {own_device} for leaf in jax.tree.leaves(on_own_device)
        ],
    }
    # As they come back from a file.
    loaded = lambda leaf: np.asarray(leaf.addressable_shards[0].data)
    params, weight = jax.tree.map(loaded, (state.params, state.weight))
    own = state._replace(params=params, weight=weight)
    record["loaded"] = numbers(cj.consensus(own))
    record |= {"refused": refused, "disagreed": disagreed}
    (folder / f"{rank}.json").write_text(json.dumps(record))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
