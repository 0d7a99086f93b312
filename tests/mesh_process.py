"""One of several processes with a part of a mesh of workers; prints what it trained."""

import json
import sys
from typing import Any

import jax
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import cocod_jax as cj
from tests.meshes import draw_batches, loss, params, sharded

ROUNDS, PERIOD = 2, 4


def train(streamed: bool) -> dict[str, Any]:
    """Two workers of four devices, wherever these are."""
    mesh = jax.make_mesh((2, 4), ("workers", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    inner = optax.sgd(0.05, momentum=0.9)
    rule = cj.rules.diloco("workers", weights=(1, 2))
    round_ = cj.make_round(loss, inner, rule, period=PERIOD, streamed=streamed)
    state = cj.replicate(round_.init(sharded(params(), mesh)), mesh=mesh)
    cj.workers.check_equal_start(state)
    refused = ""
    try:
        shifted = jax.jit(
            lambda leaf: leaf.at[1].add(1), out_shardings=state.params["in"].sharding
        )(state.params["in"])
        cj.workers.check_equal_start(
            state._replace(params=state.params | {"in": shifted})
        )
    except ValueError as error:
        refused = str(error)
    run = cj.distribute(round_, via="shard_map", mesh=mesh)
    spread = NamedSharding(mesh, PartitionSpec("workers", None, "fsdp"))
    metrics: Any = None
    for batches in draw_batches(2, ROUNDS):
        own = jax.make_array_from_callback(
            batches.shape, spread, lambda index, batches=batches: batches[index]
        )
        state, metrics = run(state, own)
    gather = lambda tree: multihost_utils.process_allgather(tree, tiled=True)
    numbers = lambda tree: [np.asarray(leaf).tolist() for leaf in jax.tree.leaves(tree)]
    own_device = jax.local_devices()[-1]
    whole = cj.consensus(state, device=own_device)
    return {
        "consensus": numbers(gather(cj.consensus(state))),
        "on_own_device": numbers(whole),
        "loss": numbers(gather(metrics.loss)),
        "weight": numbers(gather(cj.reweight(state, (3, 1)).weight)),
        "refused": refused,
    }


def main(rank: int, processes: int, address: str) -> None:
    jax.config.update("jax_num_cpu_devices", 8 // processes)
    jax.distributed.initialize(address, processes, rank)
    print(json.dumps({str(streamed): train(streamed) for streamed in (False, True)}))
    jax.distributed.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
