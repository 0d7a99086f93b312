"""Fragments: one is the rule itself, and two have torchft's numbers."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import cocod_jax as cj
from cocod_jax.certify import certify
from tests import problems
from tests.marks import needs_compiler
from tests.problems import N
from tests.test_conformance import FIXTURES

RATE = 0.05
fragments = cj.rules.fragments
vrl_sgd = lambda exchange: cj.rules.vrl_sgd(exchange, learning_rate=RATE, period=4)


def train(rounds, **way):
    """The parameters after the rounds, in turn, and the first and the last loss."""
    state = cj.replicate(rounds[0].init(problems.params()), N)
    batches, losses = problems.batches(), []
    for r in range(problems.ROUNDS):
        run = cj.distribute(rounds[r % len(rounds)], **way)
        state, metrics = run(state, problems.round_batches(batches, r))
        losses.append(float(np.mean(metrics.loss)))
    return state.params, losses


def make_rounds(rules, **options):
    make = lambda rule: cj.make_round(
        problems.loss, optax.sgd(RATE), rule, period=problems.PERIOD, **options
    )
    return [make(rule) for rule in rules]


@pytest.mark.parametrize("make", [cj.rules.diloco, vrl_sgd], ids=["diloco", "vrl_sgd"])
def test_one_fragment_is_the_rule(make):
    (whole,) = fragments(make, "workers", [True])
    found, _ = train(make_rounds([whole]), via="vmap")
    expected, _ = train(make_rounds([make(cj.mean("workers"))]), via="vmap")
    chex.assert_trees_all_equal(found, expected)


WAYS: dict[str, dict[str, Any]] = {
    "pmap": {},
    "split": {"execution": "split"},
    "shard_map": {"via": "shard_map"},
    "vmap": {"via": "vmap"},
}
TOP = [lambda path, leaf: path[0].key == "w", lambda path, leaf: path[0].key != "w"]


def test_they_take_turns_in_every_way():
    ends = []
    for way in WAYS.values():
        rules = fragments(vrl_sgd, "workers", TOP)
        params, losses = train(make_rounds(rules, delay=2), **way)
        assert losses[-1] < losses[0]
        ends.append(params)
    for other in ends[1:]:
        # Compilers order sums differently.
        chex.assert_trees_all_close(ends[0], other, rtol=1e-5, atol=1e-6)


def test_a_round_leaves_the_other_fragment_alone():
    rules = fragments(cj.rules.diloco, "workers", TOP)
    still = cj.make_round(problems.loss, optax.set_to_zero(), rules[0], period=1)
    state = cj.replicate(still.init(problems.params()), N)
    apart = lambda x: x + jnp.arange(N).reshape(-1, *[1] * (x.ndim - 1)) / 3
    before = jax.tree.map(apart, state.params)
    state, _ = cj.distribute(still)(
        state._replace(params=before),
        problems.round_batches(problems.batches(), 0, period=1),
    )
    assert not np.array_equal(state.params["w"], before["w"])
    for name in before.keys() - {"w"}:
        chex.assert_trees_all_equal(state.params[name], before[name])


@pytest.mark.parametrize(("delay", "alpha"), FIXTURES)
def test_two_fragments_have_torchfts_numbers(delay, alpha):
    """Rounds of 3 steps that begin ``delay`` steps before their merge."""
    make = lambda exchange: cj.rules.diloco(exchange, optax.sgd(2.0), alpha=alpha)
    rules = fragments(
        make, "replicas", [{"a": yes, "b": not yes} for yes in (True, False)]
    )
    loss = lambda params, batch: 2 * (params["a"] + params["b"])
    rounds = [
        cj.make_round(loss, optax.sgd(1.0), rule, period=3, delay=delay)
        for rule in rules
    ]
    # A merge of workers that are still equal changes nothing.
    first = cj.make_round(loss, optax.sgd(1.0), rules[1], period=3 - delay, delay=0)
    state = cj.replicate(first.init({"a": jnp.array(1.0), "b": jnp.array(1.0)}), 2)
    step = 0
    for turn, round_ in enumerate([first, *rounds, *rounds]):
        run = cj.distribute(round_, via="vmap")
        state, _ = run(state, np.zeros([2, round_.period]))
        step += round_.period
        for p, name in enumerate("ab"):
            # With delay 0 the next merge is due, and in the fixture it is done.
            if delay or turn % 2 != p:
                local, _, second, _ = FIXTURES[delay, alpha]
                expected = (local, second)[p][step]
                np.testing.assert_array_equal(state.params[name], [expected] * 2)


@needs_compiler
def test_a_fragment_is_hidden():
    rules = fragments(cj.rules.diloco, "workers", TOP)
    round_ = make_rounds(rules)[0]
    state = jax.eval_shape(lambda: cj.replicate(round_.init(problems.params()), N))
    batches = problems.round_batches(problems.batches(), 0)
    certificate = certify(round_, state, batches, target="h100").check()
    sent = 4 * problems.params()["w"].size
    assert [c.bytes for c in certificate.schedule.collectives] == [sent]


@pytest.mark.parametrize(
    ("make", "masks", "error", "message"),
    [
        (cj.rules.diloco, [], ValueError, "masks is empty"),
        (lambda exchange: exchange, [True], TypeError, "make returned <Exchange>"),
        (
            cj.rules.diloco,
            [(True, False)],
            ValueError,
            r"params\[1\] belongs to no",
        ),
        (cj.rules.diloco, [True, (True, False)], ValueError, r"fragments \[0, 1\]"),
        (cj.rules.diloco, [(True, 1)], TypeError, r"masks\[0\] must say True or False"),
        (cj.rules.diloco, [True, False], ValueError, r"masks\[1\]=False selects none"),
        (lambda: None, [True], TypeError, "make"),
    ],
)
def test_what_it_refuses_is_named(make, masks, error, message):
    with pytest.raises(error, match=message):
        fragments(make, "workers", masks)[0].init((jnp.ones(2), jnp.ones(3)))


def test_an_exchange_with_a_state_is_refused():
    rules = fragments(cj.cocod, cj.exchanges.narrow("workers", "int8"), [True])
    with pytest.raises(ValueError, match="which fragments cannot share"):
        rules[0].init(jnp.ones(3))
