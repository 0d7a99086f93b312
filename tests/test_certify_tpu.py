"""Rounds compiled for TPUs that are not there, and the flags that hide them."""

import jax
import jax.numpy as jnp
import optax
import pytest

import cocod_jax as cj
from cocod_jax.certify import ExposedError, certify
from cocod_jax.execution._flags import TPU_FLAGS, as_xla_flags
from tests.marks import needs_tpu_compiler

WORKERS, PERIOD, BATCH, WIDTH = 4, 4, 512, 128
RULE = cj.cocod("workers")
matrix = pytest.mark.matrix


def loss_fn(params, batch):
    """Of two residual blocks of two layers, as in a transformer."""
    x = batch
    for block in params:
        x = x + jnp.tanh(x @ block["in"]) @ block["out"]
    return jnp.mean((x - batch) ** 2)


PARAMS = [{"in": (WIDTH, 4 * WIDTH), "out": (4 * WIDTH, WIDTH)}] * 2


def round_of(*, streamed=False, delay=None):
    """A round of a small network, and its shapes."""
    inner = optax.sgd(0.1, momentum=0.9)
    round_ = cj.make_round(
        loss_fn, inner, RULE, period=PERIOD, streamed=streamed, delay=delay
    )

    def start():
        is_shape = lambda x: isinstance(x, tuple)
        params = jax.tree.map(jnp.zeros, PARAMS, is_leaf=is_shape)
        return cj.replicate(round_.init(params), WORKERS)

    batches = jax.ShapeDtypeStruct((WORKERS, PERIOD, BATCH, WIDTH), jnp.float32)
    return round_, jax.eval_shape(start), batches


def reasons(certificate):
    return [reason.id for reason in certificate.reasons]


@needs_tpu_compiler
@pytest.mark.parametrize(
    ("target", "streamed"),
    [
        ("v5e", False),
        ("v6e", True),
        pytest.param("v5e", True, marks=matrix),
        pytest.param("v6e", False, marks=matrix),
        pytest.param("v5p", True, marks=matrix),
        pytest.param("v5p", False, marks=matrix),
    ],
)
def test_a_round_is_hidden_with_the_flags_and_exposed_without(target, streamed):
    program = round_of(streamed=streamed)
    exposed = certify(*program, target=target)
    assert reasons(exposed) == ["tpu-flags"]
    assert as_xla_flags(TPU_FLAGS[target]) in str(exposed)
    with pytest.raises(ExposedError, match="tpu-flags"):
        exposed.check()

    options = cj.compiler_options(target)
    hidden = certify(*program, target=target, compiler_options=options).check()
    (exchange,) = hidden.schedule.collectives
    assert exchange.kind == "all-reduce"
    assert exchange.beside.products == 1
    if not streamed:
        assert hidden.verdict == f"hidden behind {PERIOD} of {PERIOD} local steps"
