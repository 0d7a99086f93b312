"""Merge rules: the two halves, the optax face, the invariants, the errors."""

import contextlib
import copy
import inspect
import re
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cocod_jax as cj
from cocod_jax import testing
from tests import problems
from tests.methods import EXCHANGING
from tests.problems import N

SILENT = {"independent", "nothing"}  # no worker hears of another
GROUPS = {"within"}  # a single worker is none
MAKERS = {"fragments"}  # of rules: tests/test_fragments.py
INVARIANTS = [made for name, made in vars(testing).items() if name[:7] == "assert_"]
MOVING = {testing.assert_mean_preserved}
ANCHORED = (
    *("diloco", "diloco_mixed", "slowmo", "slowmo_scheduled", "bmuf", "co2"),
    *("delay_compensated", "sparse_loco", "overlap_local_sgd"),
)
LACKING = dict.fromkeys(ANCHORED, MOVING) | {
    "overwriting": MOVING,
    # Pulled by beta / N; and its own progress counts by 1 / N until all have heard.
    "easgd": MOVING | {testing.assert_identical_workers_agree},
    "eager_diloco": MOVING | {testing.assert_identical_workers_agree},
    # All workers count the same, and each has its place.
    "gossip": MOVING | {testing.assert_order_irrelevant},
    # Sums are rounded, and the worker that rounds a sum keeps what is left out.
    "int8": MOVING | {testing.assert_order_irrelevant},
    "narrow": MOVING | {testing.assert_order_irrelevant},
}


@pytest.mark.parametrize("package", [cj.rules, cj.exchanges])
def test_every_rule_and_every_exchange_has_a_row(package):
    names = {name for name, made in vars(package).items() if inspect.isfunction(made)}
    assert names
    assert names - SILENT - GROUPS - MAKERS <= set(EXCHANGING)


@pytest.mark.parametrize("name", EXCHANGING)
def test_rules_keep_the_invariants(name):
    for invariant in INVARIANTS:
        lacking = invariant in LACKING.get(name, ())
        with pytest.raises(AssertionError) if lacking else contextlib.nullcontext():
            invariant(EXCHANGING[name])


@pytest.mark.parametrize("name", EXCHANGING)
def test_update_is_merge_after_send(name):
    rule = EXCHANGING[name]
    snapshot = problems.stacked([problems.params()] * N)
    progress = jax.tree.map(
        lambda x: 0.1 * np.arange(N).reshape(-1, *[1] * (x.ndim - 1)) + x, snapshot
    )

    def halves(progress, snapshot):
        state: Any = rule.init(snapshot)
        sent, _ = rule.send(state, snapshot)
        arriving = rule.receive(sent, rule.outgoing(state.rule_state, snapshot))
        params = jax.tree.map(jnp.add, snapshot, progress)
        merged, _ = rule.merge(arriving, params, state.rule_state, snapshot)
        return jax.tree.map(jnp.subtract, merged, snapshot)

    def whole(progress, snapshot):
        return rule.update(progress, rule.init(snapshot), snapshot)[0]

    results = [
        jax.pmap(function, axis_name="workers")(progress, snapshot)
        for function in (halves, whole)
    ]
    jax.tree.map(np.testing.assert_array_equal, *results)


def test_a_rule_is_an_optax_transform():
    rule = cj.cocod("workers")
    assert isinstance(rule, optax.GradientTransformationExtraArgs)
    init, update = rule
    assert (rule.init, rule.update) == (init, update)
    parts = lambda rule: (rule.exchange, rule.merge, rule.outgoing, rule.correct)
    assert parts(copy.deepcopy(rule)) == parts(copy.copy(rule)) == parts(rule)
    other = rule._replace(exchange=cj.mean("workers", (1, 3)))
    assert (other.weights, other.merge) == ((0.25, 0.75), rule.merge)
    other = rule._replace(init=lambda params: {"count": jnp.zeros([])})
    state: Any = other.init(jnp.zeros(2))
    assert set(state.rule_state) == {"count"}


def test_chained_behind_an_optimizer_it_is_cocod_with_period_one():
    """The optimizer's update is the progress of one step from the snapshot."""
    targets = jnp.arange(N, dtype=jnp.float32)
    optimizer = optax.chain(optax.sgd(0.1, momentum=0.9), cj.cocod("workers"))
    round_ = cj.make_round(
        lambda x, target: 0.5 * (x - target) ** 2,
        optax.sgd(0.1, momentum=0.9),
        cj.cocod("workers"),
        period=1,
    )
    params = jnp.full(N, 9.0)
    state = jax.vmap(optimizer.init)(params)
    round_state = cj.replicate(round_.init(params[0]), N)
    step = jax.vmap(optimizer.update, axis_name="workers")
    run = cj.distribute(round_, via="vmap")
    for _ in range(5):
        updates, state = step(params - targets, state, params)
        params = cast(Any, optax.apply_updates(params, updates))
        round_state, _ = run(round_state, targets[:, None])
        np.testing.assert_allclose(params, round_state.params, rtol=1e-6)


def test_masked_leaves_stay_with_their_worker():
    mask = {"shared": True, "own": False}
    rule = optax.masked(cj.cocod("workers"), mask)
    snapshot = {"shared": jnp.arange(4.0), "own": jnp.arange(4.0)}
    zero = jax.tree.map(jnp.zeros_like, snapshot)

    def merge(progress, snapshot):
        return rule.update(progress, rule.init(snapshot), snapshot)[0]

    updates = jax.vmap(merge, axis_name="workers")(zero, snapshot)
    np.testing.assert_allclose(snapshot["shared"] + updates["shared"], 1.5)
    np.testing.assert_array_equal(updates["own"], 0)


def test_extra_arguments_are_accepted():
    rule = cj.cocod("workers")
    merge = lambda p, s: rule.update(p, rule.init(s), s, value=1.0, unknown="x")[0]
    jax.vmap(merge, axis_name="workers")(jnp.zeros(N), jnp.zeros(N))


@pytest.mark.parametrize("part", ["init", "merge", "outgoing", "correct"])
def test_a_rule_is_made_of_functions(part):
    with pytest.raises(TypeError, match=f"{part}=3 must be a function"):
        cj.cocod("workers")._replace(**{part: 3})
    with pytest.raises(TypeError, match=rf"{part}\(\) must take \(.*: too many"):
        cj.cocod("workers")._replace(**{part: lambda: None})


def test_a_rule_has_an_exchange():
    with pytest.raises(TypeError, match="exchange='workers' must be an Exchange"):
        cj.cocod("workers")._replace(exchange="workers")


def test_params_are_needed():
    rule = cj.cocod("workers")
    with pytest.raises(ValueError, match="params was None"):
        rule.update(jnp.zeros(()), optax.EmptyState())


def test_progress_and_snapshot_must_match():
    rule = cj.cocod("workers")
    snapshot = {"w": jnp.zeros(3), "b": jnp.zeros(2)}
    with pytest.raises(ValueError, match=r"progress and snapshot.* tree structure"):
        rule.update({"w": jnp.zeros(3)}, rule.init(snapshot), snapshot)
    wrong = {"w": jnp.zeros(3), "b": jnp.zeros(3)}
    with pytest.raises(ValueError, match=r"at \['b'\] they are \(3,\) and \(2,\)"):
        rule.update(wrong, rule.init(snapshot), snapshot)


finite = st.floats(-100, 100, width=32)
weight = st.floats(2**-6, 64, width=32)


@settings(max_examples=50, deadline=None)
@given(
    data=st.lists(st.tuples(finite, finite, weight), min_size=N, max_size=N),
    order=st.permutations(range(N)),
)
def test_any_merge_preserves_the_mean_and_ignores_the_order(data, order):
    snapshot, progress, weights = np.array(data).T
    weights = weights / weights.sum()
    with jax.enable_x64(True):
        rule = cj.cocod("workers")
        merge = jax.vmap(
            lambda s, p, w: s + rule.update(p, rule.init(s), s, weight=w)[0],
            axis_name="workers",
        )
        merged = merge(snapshot, progress, weights)
        permuted = merge(snapshot[order,], progress[order,], weights[order,])
    mean = lambda x: np.average(x, weights=weights)
    # float64 with values up to 200.
    np.testing.assert_allclose(mean(merged), mean(snapshot + progress), atol=1e-11)
    np.testing.assert_allclose(permuted, merged[order,], atol=1e-11)


PAIRS = [(0, 1), (1, 0), (2, 3), (3, 2)]
BROKEN = {
    "overwrites": (lambda m, x, s: m, testing.assert_mean_preserved),
    "moves by itself": (lambda m, x, s: m + x - s + 0.1, testing.assert_fixed_point),
    "wrong sign": (lambda m, x, s: s - m + x, testing.assert_workers_approach),
    "knows its place": (
        lambda m, x, s: m + x - s + jax.lax.axis_index("workers"),
        testing.assert_identical_workers_agree,
    ),
    "plays favourites": (
        lambda m, x, s: m + (x - s) * (1 + jax.lax.axis_index("workers")),
        testing.assert_order_irrelevant,
    ),
    "has a partner": (
        lambda m, x, s: x + (jax.lax.ppermute(s, "workers", PAIRS) - s) / 2,
        testing.assert_order_irrelevant,
    ),
}


@pytest.mark.parametrize(
    ("in_rule", "in_exchange"), [((0.25, 0.75), None), (None, (1, 2, 3, 4))]
)
def test_weights_that_an_exchange_declares_and_does_not_send_are_found(
    in_rule, in_exchange
):
    """A round would count the workers otherwise than cj.every."""
    exchange = cj.mean("workers", in_exchange)
    other = cj.cocod(exchange._replace(weights=in_rule))
    for workers_differ in (testing.assert_own_weights, testing.check_rule):
        with pytest.raises(AssertionError, match="exchange has other weights"):
            workers_differ(other)


@pytest.mark.parametrize("name", BROKEN)
def test_the_invariants_find_broken_rules(name):
    merge, check = BROKEN[name]
    rule = cj.MergeRule(
        cj.mean("workers"),
        lambda m, x, state, s: (jax.tree.map(merge, m, x, s), state),
    )
    with pytest.raises(AssertionError) as error:
        check(rule)
    # A sentence comes first; the numbers that differ follow it.
    assert re.match(r"[a-z ]*(merges?|workers?) [a-z ]+", str(error.value)), error.value
    with pytest.raises(AssertionError):
        testing.check_rule(rule)
