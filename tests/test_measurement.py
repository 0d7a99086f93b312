"""What a round costs here: what is timed, and that nothing of the caller's is taken."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import cocod_jax as cj
from cocod_jax import measurement
from cocod_jax.measurement import Measurement
from tests import problems
from tests.problems import PERIOD, N

SGD = optax.sgd(0.05)


def round_of(rule, **options):
    return cj.make_round(problems.loss, SGD, rule, period=PERIOD, **options)


def measured(round_, repeats=2, **options: Any):
    state = cj.replicate(round_.init(problems.params()), N)
    before = jax.tree.map(np.array, jax.tree.leaves(state.params))
    batches = problems.round_batches(problems.batches(), 0)
    times = cj.measure(round_, state, batches, repeats=repeats, **options)
    for leaf, was in zip(jax.tree.leaves(state.params), before, strict=True):
        np.testing.assert_array_equal(leaf, was)  # a donated one cannot be read
    return times


WAYS = {
    "whole": ({}, {"via": "vmap"}),
    "streamed": ({"streamed": True}, {"via": "vmap"}),
    "a part": ({"trainable": lambda leaf: leaf.ndim > 1}, {"via": "vmap"}),
    "pmap": ({}, {}),
}


@pytest.mark.parametrize("way", WAYS)
def test_it_times_what_the_round_trains(way):
    options, mapping = WAYS[way]
    times = measured(round_of(cj.cocod("workers"), **options), **mapping)
    assert (times.repeats, times.workers, times.period) == (2, N, PERIOD)
    sizes = [np.size(leaf) for leaf in jax.tree.leaves(problems.params())]
    counted = 6 if way == "a part" else sum(sizes)
    assert times.sent_bytes == 4 * counted
    for name in ("tc", "tm"):
        least, greatest = getattr(times, f"{name}_range")
        assert 0 < least <= getattr(times, name) <= greatest
    assert 0 < times.latency <= times.tm
    assert f"Tm/Tc = {times.tm / times.tc:.3g}" in str(times)


def test_on_exchange_devices_as_distribute_does():
    devices, exchange_devices = cj.execution.device_pairs()
    round_ = round_of(cj.cocod("workers"), streamed=True)
    where = {"devices": devices, "exchange_devices": exchange_devices}
    assert measured(round_, **where).workers == N


def test_rules_and_exchanges_with_states_and_corrections():
    """The steps keep the correction; the exchange alone is the rule's first."""
    rule = cj.rules.vrl_sgd(
        cj.exchanges.narrow("workers", "int8"), learning_rate=0.05, period=PERIOD
    )
    assert measured(round_of(rule), via="vmap").tm > 0


def test_the_local_steps_send_nothing(monkeypatch):
    """A step that held a collective would wait for the others, and Tc with it."""
    programs = []
    distribute = measurement.distribute
    monkeypatch.setattr(
        measurement,
        "distribute",
        lambda round_, *a, **k: programs.append(round_) or distribute(round_, *a, **k),
    )
    measured(round_of(cj.cocod("workers")), via="vmap")
    assert [round_.axis_name for round_ in programs] == [None]


def test_the_advice_is_that_of_the_numbers():
    times = Measurement(
        tc=0.1,
        tm=0.35,
        latency=0.02,
        tc_range=(0.1, 0.1),
        tm_range=(0.3, 0.4),
        latency_range=(0.02, 0.02),
        repeats=3,
        workers=16,
        period=8,
        sent_bytes=4,
        device="cpu",
    )
    assert cj.advise(times) == cj.advise(0.1, 0.35, 16, latency=0.02)
    assert cj.advise(times, latency=0.0) == cj.advise(0.1, 0.35, 16)
    with pytest.raises(ValueError, match="in the measurement already"):
        cj.advise(times, 0.35)
    with pytest.raises(ValueError, match="exchange_seconds=None and workers=None"):
        cj.advise(0.1)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"repeats": 0}, "repeats=0"),
        ({"via": "loop"}, "via='loop'"),
    ],
)
def test_what_cannot_be_measured_is_refused(options, match):
    round_ = round_of(cj.cocod("workers"))
    with pytest.raises(ValueError, match=match):
        measured(round_, **{"via": "vmap", **options})


def test_a_rule_that_sends_nothing_has_no_exchange_to_time():
    round_ = round_of(cj.independent())
    state = cj.replicate(round_.init(problems.params()), N)
    with pytest.raises(ValueError, match="sends nothing"):
        cj.measure(round_, state, jnp.zeros([N, PERIOD]))
