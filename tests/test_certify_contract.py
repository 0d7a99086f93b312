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
WIRE = dict.fromkeys(("sparse_loco", "top_k"), ("all-gather", "u16"))


def loss(params, batch):
    hidden = jnp.tanh(batch @ params["a"])
    return jnp.mean((hidden @ params["b"] - batch) ** 2)


@needs_compiler
@pytest.mark.parametrize("name", EXCHANGING)
def test_hidden_on_h100(name):
    """Also where plain SGD has no state, and what its steps reach is overwritten.

    Nothing but the metrics is left then for the exchange to be held behind.
    """
    round_ = cj.make_round(loss, optax.sgd(0.1), EXCHANGING[name], period=PERIOD)
    params = {"a": jnp.ones([WIDTH, WIDTH]), "b": jnp.ones([WIDTH, WIDTH])}
    state = jax.eval_shape(lambda: cj.replicate(round_.init(params), N))
    batches = jax.ShapeDtypeStruct((N, PERIOD, 16, WIDTH), jnp.float32)
    certificate = certify(round_, state, batches, target="h100").check()
    found = [(c.kind, c.dtype, c.steps) for c in certificate.schedule.collectives]
    half = PERIOD / 2  # one after the other, each behind half of the steps
    in_turn = [("all-to-all", "u8", half), ("all-gather", "u8", half)]
    several = dict.fromkeys(("int8", "narrow"), in_turn)
    kind, dtype = WIRE.get(name, ("all-reduce", "f32"))
    assert found == several.get(name, [(kind, dtype, PERIOD)])
