"""Rounds compiled for TPUs that are not there, and the flags that hide them."""

import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import optax
import pytest

import cocod_jax as cj
from cocod_jax.certify import ExposedError, certify
from cocod_jax.certify.__main__ import main
from cocod_jax.certify._tpu import TPU, tpus
from cocod_jax.execution._flags import NAN_ON_V6E, TPU_FLAGS, as_xla_flags, xla_flag
from tests.marks import needs_tpu_compiler
from tests.test_certify_dataflow import (
    in_a_conditional,
    local_sgd,
    several_rounds,
    synchronous_sgd,
    with_reduced_loss,
)

WORKERS, PERIOD, BATCH, WIDTH = 4, 4, 512, 128
RULE = cj.cocod("workers")
W = jax.ShapeDtypeStruct((WORKERS, WIDTH, WIDTH), jnp.float32)
BATCHES = jax.ShapeDtypeStruct((WORKERS, PERIOD, 32, WIDTH), jnp.float32)
matrix = pytest.mark.matrix
every_tpu = pytest.mark.parametrize("target", TPU_FLAGS)


def loss_fn(params, batch):
    """Of two residual blocks of two layers, as in a transformer."""
    x = batch
    for block in params:
        x = x + jnp.tanh(jax.nn.standardize(x) @ block["in"]) @ block["out"]
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


@needs_tpu_compiler
@matrix
@every_tpu
def test_no_flag_is_one_too_many(target):
    """The exchange of a single step needs all of them."""
    options = cj.compiler_options(target)
    for name in options:
        others = {n: value for n, value in options.items() if n != name}
        certificate = certify(
            *round_of(streamed=True), target=target, compiler_options=others
        )
        assert reasons(certificate) == ["tpu-flags"]
        assert str(certificate).count("--xla") == 1
        assert f"--{name}=" in str(certificate)


@needs_tpu_compiler
@matrix
@every_tpu
def test_a_round_is_hidden_behind_its_delay(target):
    options = cj.compiler_options(target)
    for delay in (1, 2):
        certificate = certify(
            *round_of(delay=delay), target=target, compiler_options=options
        ).check()
        assert certificate.verdict == f"hidden behind {delay} of {PERIOD} local steps"


@needs_tpu_compiler
@matrix
@every_tpu
@pytest.mark.parametrize(
    ("program", "expected"),
    [
        (several_rounds, []),
        (local_sgd, ["steps-wait"]),
        (synchronous_sgd, ["in-loop"]),
        (with_reduced_loss, ["reduced-metric"]),
        (in_a_conditional, ["conditional"]),
    ],
)
def test_what_no_flag_cures_is_reported_with_its_reason(program, expected, target):
    options = cj.compiler_options(target)
    certificate = certify(program, W, BATCHES, target=target, compiler_options=options)
    assert reasons(certificate) == expected


@needs_tpu_compiler
def test_slices_of_any_power_of_two_on_any_number_of_hosts():
    for target in TPU_FLAGS:
        for devices, hosts in ((1, 1), (2, 1), (8, 1), (8, 2), (16, 4), (64, 8)):
            found = tpus(target, devices, hosts)
            assert len(found) == devices
            assert len({device.process_index for device in found}) == hosts
        with pytest.raises(ValueError, match="devices=6 must be a power of 2"):
            tpus(target, 6, 1)


@needs_tpu_compiler
def test_a_device_tells_its_generation():
    for target in TPU_FLAGS:
        (device,) = tpus(target, 1, 1)
        assert cj.compiler_options(device) == TPU_FLAGS[target] != {}


def test_what_gave_nan_on_v6e_is_warned_of(monkeypatch):
    """By the report of another program; on other TPUs nothing is known."""
    both = dict.fromkeys(NAN_ON_V6E, True)
    warn = TPU.settings
    with pytest.warns(UserWarning, match=r"NaN on v6e.*maxdiffusion/issues/429"):
        assert warn("v6e", both) == both
    for target, options in (("v5e", both), ("v6e", {NAN_ON_V6E[1]: True})):
        warn(target, options)  # warnings are errors here
    for options in TPU_FLAGS.values():
        warn("v6e", options)
    monkeypatch.setenv("LIBTPU_INIT_ARGS", as_xla_flags(both))
    with pytest.warns(UserWarning, match="NaN on v6e"):
        warn("v6e", {})


def test_flags_of_the_environment_count(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_a=true")
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_b=0.01 --xla_c")
    assert [xla_flag(f"xla_{name}") for name in "abcd"] == [1, 0.01, 1, None]


@needs_tpu_compiler
def test_the_command_line_certifies_for_tpus(monkeypatch, capsys):
    study = types.SimpleNamespace(certifiable=lambda argv, devices: round_of())
    monkeypatch.setitem(sys.modules, "a_study", study)
    argv = ["a_study", "--target", "v6e", "--devices", str(WORKERS)]
    assert main([*argv, "--compiler-options"]) == 0
    assert main(argv) == 1
    hidden, exposed = capsys.readouterr().out.split("exposed: ")
    assert hidden.startswith("hidden behind 4 of 4 local steps  (4 x v6e, hosts: 1)")
    assert exposed.startswith("tpu-flags  (4 x v6e, hosts: 1)")


@needs_tpu_compiler
def test_the_compiler_stays_out_of_sight():
    """Two at once, as in tests: no lock, no word, and no other devices afterwards."""
    program = (
        "import jax, jax.numpy as jnp; before = jax.devices();"
        "from cocod_jax.certify import certify;"
        "x = jax.ShapeDtypeStruct((2, 3), jnp.float32);"
        "certify(lambda x: jax.lax.psum(x, 'workers'), x, target='v5e');"
        "assert jax.devices() == before and jax.default_backend() == 'cpu';"
        "print(jax.jit(lambda x: x + 1)(1))"
    )
    run = [sys.executable, "-c", program]
    pipe = subprocess.PIPE
    both = [subprocess.Popen(run, stdout=pipe, stderr=pipe, text=True) for _ in "ab"]
    for process in both:
        assert process.communicate() == ("2\n", "")
