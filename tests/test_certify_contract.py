"""Whatever an exchange sends and a rule keeps, it is hidden at delay k."""

import jax
import jax.numpy as jnp
import optax
import pytest

import cocod_jax as cj
from cocod_jax.certify import certify
from tests import contract
from tests.marks import needs_compiler
from tests.problems import N
from tests.test_rules import EXCHANGING

PERIOD, WIDTH = 4, 32
MEAN = cj.mean("workers")
RULES = EXCHANGING | {
    "int8": cj.cocod(contract.int8_with_feedback("workers")),
    "finite": contract.healing(contract.finite_workers("workers")),
    "vrl_sgd": cj.rules.vrl_sgd(MEAN, learning_rate=0.1, period=PERIOD),
    # Plain SGD has no state, and what its steps reach is overwritten: nothing but the
    # metrics is left for the exchange to be held behind.
    "overwriting": contract.overwriting(MEAN),
}


WIRE = {"int8": "s8", "sparse_loco": "u16", "top_k": "u16"}


def loss(params, batch):
    hidden = jnp.tanh(batch @ params["a"])
    return jnp.mean((hidden @ params["b"] - batch) ** 2)


@needs_compiler
@pytest.mark.parametrize("name", RULES)
def test_hidden_on_h100(name):
    round_ = cj.make_round(loss, optax.sgd(0.1), RULES[name], period=PERIOD)
    params = {"a": jnp.ones([WIDTH, WIDTH]), "b": jnp.ones([WIDTH, WIDTH])}
    state = jax.eval_shape(lambda: cj.replicate(round_.init(params), N))
    batches = jax.ShapeDtypeStruct((N, PERIOD, 16, WIDTH), jnp.float32)
    certificate = certify(round_, state, batches, target="h100").check()
    (collective,) = certificate.schedule.collectives
    assert collective.steps == PERIOD
    assert collective.dtype == WIRE.get(name, "f32")
