"""The exchanges of the study, and what of them should pass a link."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

import cocod_jax as cj
from cocod_jax.certify import dataflow
from experiments.algorithms import AXIS

EXCHANGES: dict[str, Callable[[], cj.Exchange]] = {
    "mean": lambda: cj.mean(AXIS),
    "narrow bf16": lambda: cj.exchanges.narrow(AXIS, "bf16"),
    "narrow fp8": lambda: cj.exchanges.narrow(AXIS, "fp8"),
    "narrow int8": lambda: cj.exchanges.narrow(AXIS, "int8"),
    "narrow int4": lambda: cj.exchanges.narrow(AXIS, "int4"),
    "top_k": lambda: cj.exchanges.top_k(AXIS),
}

# The share of its buffer that each worker sends over its link, in rings.
_ON_THE_LINK: dict[str, Callable[[int], float]] = {
    "psum": lambda workers: 2 * (workers - 1) / workers,
    "all_to_all": lambda workers: (workers - 1) / workers,
    "all_gather": lambda workers: workers - 1,
}


def link_bytes(exchange: cj.Exchange, workers: int, parameters: int) -> float:
    """What a worker sends over its link in an exchange, by the data flow.

    Examples:
      >>> link_bytes(EXCHANGES["mean"](), 2, 1000)
      4000.0
      >>> link_bytes(EXCHANGES["narrow int8"](), 2, 1024)
      1040.0
    """
    tree = jax.ShapeDtypeStruct((workers, parameters), jnp.float32)
    state = jax.eval_shape(jax.vmap(exchange.init), tree)
    send = lambda state, tree: exchange.send(state, tree, None)
    flows = dataflow(send, state, tree, axis_name=AXIS)
    return sum(_ON_THE_LINK[f.name](workers) * f.bytes for f in flows)
