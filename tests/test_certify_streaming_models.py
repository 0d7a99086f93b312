"""Streamed exchanges of whole models: the table of ``docs/overlap.md``."""

import pytest

import cocod_jax as cj
from cocod_jax.certify import certify
from experiments.streaming_certificate import PROGRAMS, SGD, image_step, streamed
from tests.marks import needs_compiler

pytestmark = [needs_compiler, pytest.mark.matrix]
OPTIONS = cj.compiler_options("gpu")


@pytest.mark.parametrize("target", ["h100", "a100"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_the_whole_backward_pass_is_beside_the_exchange(name, target):
    fn, args = PROGRAMS[name]()
    certificate = certify(
        fn, *args, target=target, devices=8, compiler_options=OPTIONS
    ).check(at_least=0.6)
    (exchange,) = certificate.schedule.collectives
    # Every product: a single convolution of ResNet-18 is more than a hundredth.
    assert exchange.beside.missed_before + exchange.beside.missed_after < 0.01
    certificate.check()


@pytest.mark.parametrize(
    ("target", "expected"), [("h100", "starts-late"), ("a100", "scheduler-off")]
)
def test_without_the_options_a_part_is(target, expected):
    fn, args = image_step(streamed(SGD))
    certificate = certify(fn, *args, target=target, devices=8)
    assert [reason.id for reason in certificate.reasons] == [expected]


def test_without_its_barrier_the_exchange_ends_early(monkeypatch):
    monkeypatch.setattr("cocod_jax.per_step._streamed.barrier", lambda tree: tree)
    fn, args = image_step(streamed(SGD))
    certificate = certify(fn, *args, target="h100", devices=8, compiler_options=OPTIONS)
    assert [reason.id for reason in certificate.reasons] == ["ends-early"]
