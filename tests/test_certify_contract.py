"""Whatever an exchange sends and a rule keeps, it is hidden at delay k."""

import jax
import jax.numpy as jnp
import optax
import pytest

import cocod_jax as cj
from cocod_jax.certify import certify
from tests.marks import needs_compiler
from tests.methods import EXCHANGING
from tests.problems import N

PERIOD, WIDTH = 4, 32
RULES = EXCHANGING | {"within": cj.cocod(cj.exchanges.within("workers", 2))}
HALF = PERIOD / 2  # one after the other, each behind half of the steps
IN_TURN = [("all-to-all", "u8", HALF), ("all-gather", "u8", HALF)]
WIRE = {
    "int8": IN_TURN,
    "narrow": IN_TURN,
    "gossip": [("collective-permute", "f32", PERIOD)] * 2,
    "sparse_loco": [("all-gather", "u16", PERIOD)],
    "top_k": [("all-gather", "u16", PERIOD)],
}


def loss(params, batch):
    hidden = jnp.tanh(batch @ params["a"])
    return jnp.mean((hidden @ params["b"] - batch) ** 2)


@needs_compiler
@pytest.mark.parametrize("name", RULES)
def test_hidden_on_h100(name):
    """Also where plain SGD has no state, and what its steps reach is overwritten.

    Nothing but the metrics is left then for the exchange to be held behind.
    """
    round_ = cj.make_round(loss, optax.sgd(0.1), RULES[name], period=PERIOD)
    params = {"a": jnp.ones([WIDTH, WIDTH]), "b": jnp.ones([WIDTH, WIDTH])}
    state = jax.eval_shape(lambda: cj.replicate(round_.init(params), N))
    batches = jax.ShapeDtypeStruct((N, PERIOD, 16, WIDTH), jnp.float32)
    # By them, several may be in flight.
    options = cj.compiler_options("gpu") if name == "gossip" else None
    certificate = certify(
        round_, state, batches, target="h100", compiler_options=options
    ).check()
    found = [(c.kind, c.dtype, c.steps) for c in certificate.schedule.collectives]
    assert found == WIRE.get(name, [("all-reduce", "f32", PERIOD)])
