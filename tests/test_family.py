"""What is particular to one rule of the family."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import cocod_jax as cj
from tests import problems, reference
from tests.problems import PERIOD, ROUNDS, WEIGHTS, N


def rounds(rule, delay=PERIOD, inner=None, workers=N, batches=None):
    """The states after each round, in float64."""
    inner = optax.sgd(0.05) if inner is None else inner
    round_ = cj.make_round(problems.loss, inner, rule, period=PERIOD, delay=delay)
    run = cj.distribute(round_, via="vmap", execution="fused")
    state = cj.replicate(round_.init(problems.params(np.float64)), workers)
    batches = problems.batches(np.float64, workers) if batches is None else batches
    for r in range(ROUNDS):
        state, _ = run(
            jax.tree.map(jnp.array, state), problems.round_batches(batches, r)
        )
        yield state


def test_equal_weights_are_none():
    with jax.enable_x64(True):
        *_, equal = rounds(cj.cocod("workers", (3,) * N))
        *_, none = rounds(cj.cocod("workers"))
        chex.assert_trees_all_close(equal.params, none.params, rtol=1e-12)


def test_eager_diloco_and_co2_are_the_papers_rounds():
    """At the papers' delay of a round, without what other delays need."""
    x0, p = problems.params(np.float64), problems.shares(None)
    outer = {"learning_rate": 0.7, "momentum": 0.9, "nesterov": True}
    of_co2 = {"beta": 0.6, "alpha": 0.9, "penalty": 1.5, "clip": 0.05}
    outers = [reference.MomentumSGD(x0, **outer) for _ in range(N)]
    with jax.enable_x64(True):
        *_, eager = rounds(cj.rules.eager_diloco("workers", optax.sgd(**outer)))
        *_, co2 = rounds(cj.rules.co2("workers", **of_co2))
        data = problems.per_worker(problems.batches(np.float64))
    given = (problems.numpy_gradient, x0, data, p, PERIOD, 0.05)
    for state, loop in (
        (eager, reference.eager_diloco(*given, outers)),
        (co2, reference.co2(*given, **of_co2)),
    ):
        params = jax.tree.map(np.asarray, state.params)
        chex.assert_trees_all_close(params, problems.stacked(loop), rtol=1e-10)


@pytest.mark.parametrize("delay", range(PERIOD + 1))
def test_eager_progress_of_one_worker_is_all_of_it(delay):
    """Nothing is stale: with outer SGD of rate 1 it is the inner optimizer alone."""
    with jax.enable_x64(True):
        rule = cj.rules.eager_diloco("workers", optax.sgd(1.0))
        *_, eager = rounds(rule, delay, optax.sgd(0.05, 0.9), workers=1)
        *_, alone = rounds(cj.independent(), delay, optax.sgd(0.05, 0.9), workers=1)
        chex.assert_trees_all_close(eager.params, alone.params, rtol=1e-10)


def test_eager_shares_are_the_exchanges():
    rule = cj.rules.eager_diloco("workers", optax.sgd(1.0), weights=(1, 3))
    snapshot = jnp.zeros(2)
    state: Any = jax.vmap(rule.init)(snapshot)
    merge = jax.vmap(rule.merge_now, axis_name="workers")
    params, _ = merge(jnp.array([4.0, 4.0]), state, snapshot)
    np.testing.assert_allclose(params, [1.0, 3.0])


def test_workers_of_co2_are_equal_after_a_merge():
    """However late it comes: none keeps what the others have not heard of."""
    with jax.enable_x64(True):
        for state in rounds(cj.rules.co2("workers")):
            cj.workers.check_equal_start(state)


def test_co2_clips_its_momentum():
    """Its authors' code computes the clip, and goes on without it."""
    with jax.enable_x64(True):
        rule = cj.rules.co2("workers", clip=0.02)
        largest = []
        for state in rounds(rule):
            of_rule: Any = state.rule_state
            leaves = jax.tree.leaves(of_rule.momentum)
            largest.append(max(np.abs(leaf).max() for leaf in leaves))
    assert largest[0] == 0  # the first exchange carries no progress yet
    np.testing.assert_allclose(largest[1:], 0.02)


def test_the_correction_is_a_share_of_the_progress():
    """By its norm, whatever the scale of parameters and progress."""
    rng = np.random.default_rng(0)
    snapshot, progress = rng.normal(size=(2, N, 7)).astype(np.float32)

    def merged(rule):
        state: Any = rule.init(jnp.zeros(7))
        merge = lambda x, s: rule.merge_now(x, state, s)[0]
        return jax.vmap(merge, axis_name="workers")(snapshot + progress, snapshot)

    plain = merged(cj.rules.diloco("workers", optax.sgd(1.0)))
    rule = cj.rules.delay_compensated("workers", optax.sgd(1.0), strength=0.3)
    correction = np.linalg.norm(merged(rule) - plain, axis=1)
    np.testing.assert_allclose(
        correction, 0.3 * np.linalg.norm(progress, axis=1), rtol=1e-4
    )


def test_loscar_sends_what_it_says():
    round_ = cj.make_round(
        lambda w, batch: jnp.sum(w), optax.sgd(0.1), cj.cocod("workers"), period=2
    )
    state = cj.replicate(round_.init(jnp.zeros([30, 40])), N)
    whole = cj.summary(round_, state).sent_bytes["float32"]
    for fraction in (1, 0.5, 0.1, 0.001):
        rule = cj.rules.loscar("workers", fraction)
        of_rule = cj.make_round(
            lambda w, batch: jnp.sum(w), optax.sgd(0.1), rule, period=2
        )
        state = cj.replicate(of_rule.init(jnp.zeros([30, 40])), N)
        sent = cj.summary(of_rule, state).sent_bytes["float32"]
        assert sent == np.ceil(whole / 4 * fraction) * 4


def test_loscar_draws_one_of_each_run_at_random():
    places = jnp.arange(103.0)
    rule = cj.rules.loscar("workers", 0.1)
    draws = np.stack(
        [rule.outgoing(np.int32(r), places)["float32"] for r in range(500)]
    )
    np.testing.assert_array_equal(draws // 10, np.tile(np.arange(11.0), (500, 1)))
    counts = np.bincount(draws[:, :10].astype(int).ravel() % 10, minlength=10)
    # 5,000 draws of 10 values: 500 each, with a standard deviation of 21.
    assert np.abs(counts - 500).max() < 5 * 21
    assert draws[:, 10].max() == 102  # the last run is shorter
    # Neighbouring runs, and rounds, are drawn apart.
    for one, other in ((draws[:, 0], draws[:, 1]), (draws[1:, 0], draws[:-1, 0])):
        assert abs(np.mean(one % 10 == other % 10) - 0.1) < 0.06
    other = cj.rules.loscar("workers", 0.1, seed=1).outgoing(np.int32(0), places)
    assert np.any(other["float32"] != draws[0])


def test_no_merge_of_loscar_moves_the_mean():
    """And what is not sent stays with its worker."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        snapshot, progress = rng.normal(size=(2, N, 40))
        rule = cj.rules.loscar(cj.mean("workers", WEIGHTS), 0.25)

        def merge(x, s):
            state: Any = rule.init(s)
            return rule.merge_now(x, state, s)[0]

        merged = jax.vmap(merge, axis_name="workers")(snapshot + progress, snapshot)
        merged = np.asarray(merged)
    p, moved = problems.shares(WEIGHTS), merged != snapshot + progress
    np.testing.assert_allclose(p @ merged, p @ (snapshot + progress), atol=1e-14)
    assert np.all(moved.any(axis=0).reshape(10, 4).sum(axis=1) == 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: cj.rules.loscar("workers", 0), r"fraction=0 must be above 0, up to 1"),
        (
            lambda: cj.rules.loscar("workers", 0.5, seed=-1),
            "seed=-1 must be an integer",
        ),
        (
            lambda: cj.rules.co2("workers", clip=0.0),
            r"clip=0\.0 must be a finite number",
        ),
        (lambda: cj.rules.co2("workers", beta=2), r"beta=2 must be a number in 0\.\.1"),
        (lambda: cj.rules.slowmo("workers", alpha=-1), "alpha=-1 must be a finite"),
        (
            lambda: cj.rules.delay_compensated("workers", strength=-1.0),
            r"strength=-1\.0 must be a finite number, 0 or more",
        ),
    ],
)
def test_numbers_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "rule",
    [
        cj.rules.diloco,
        cj.rules.eager_diloco,
        cj.rules.delay_compensated,
        cj.rules.sparse_loco,
    ],
)
def test_outer_optimizers_are_checked(rule):
    with pytest.raises(TypeError, match=r"outer=0\.7 must be an optax transform"):
        rule("workers", 0.7)


def test_a_schedule_of_rates_is_a_function_of_the_round():
    with pytest.raises(TypeError, match=r"learning_rate=0\.1 must be a function"):
        cj.rules.slowmo("workers", learning_rate=0.1)  # pyrefly: ignore


@pytest.mark.parametrize("delay", [0, 2, PERIOD])
def test_corrections_settle_at_every_delay(delay):
    """Workers whose gradients differ for good: corrections go there."""
    pull = jnp.array([-1.0, 0.0, 3.0])
    rule = cj.rules.vrl_sgd("workers", learning_rate=0.1, period=PERIOD, delay=delay)
    loss = lambda w, own: w * own
    round_ = cj.make_round(loss, optax.sgd(0.1), rule, period=PERIOD, delay=delay)
    run = cj.distribute(round_, via="vmap")
    state = cj.replicate(round_.init(jnp.array(0.0)), 3)
    for _ in range(40):
        state, metrics = run(state, jnp.tile(pull[:, None], PERIOD))
    # The error falls by 1 / sqrt(2) in a round or faster, and what is left is rounding.
    correction: Any = state.rule_state
    np.testing.assert_allclose(correction, pull - pull.mean(), atol=1e-4)
    np.testing.assert_allclose(metrics.distance, 0, atol=1e-4)


@pytest.mark.parametrize("delay", [0, PERIOD])
@pytest.mark.parametrize(
    "schedule",
    [
        optax.cosine_decay_schedule(0.1, 10 * PERIOD),
        optax.warmup_cosine_decay_schedule(0.0, 0.1, 4 * PERIOD, 10 * PERIOD),
    ],
    ids=["to 0", "from 0"],
)
def test_slow_momentum_lives_through_a_rate_of_0(schedule, delay):
    rate = lambda r: schedule(PERIOD * r)
    rule = cj.rules.slowmo("workers", learning_rate=rate)
    loss = lambda w, b: 0.5 * (w - b) ** 2
    round_ = cj.make_round(loss, optax.sgd(schedule), rule, period=PERIOD, delay=delay)
    run = cj.distribute(round_, via="vmap")
    state = cj.replicate(round_.init(jnp.array(0.0)), 2)
    for _ in range(14):
        state, _ = run(state, np.full([2, PERIOD], 1.0, np.float32))
    assert 0.8 < state.params[0] < 1.5
    before = np.asarray(state.params)
    state, _ = run(state, np.full([2, PERIOD], 1.0, np.float32))
    np.testing.assert_array_equal(state.params, before)


def test_corrections_begin_anew_with_other_weights():
    pulls = np.repeat([[0.0], [4.0]], PERIOD, axis=1).astype(np.float32)
    rule = cj.rules.vrl_sgd("workers", learning_rate=0.1, period=PERIOD)
    loss = lambda w, b: 0.5 * (w - b) ** 2
    round_ = cj.make_round(loss, optax.sgd(0.1), rule, period=PERIOD, delay=0)
    run = cj.distribute(round_, via="vmap")
    state = cj.replicate(round_.init(jnp.array(0.0)), 2)
    for _ in range(40):
        state, _ = run(state, pulls)
    np.testing.assert_allclose(state.params, 2, atol=1e-3)
    state = cj.reweight(state, (3, 1))
    state = state._replace(rule_state=jax.tree.map(jnp.zeros_like, state.rule_state))
    for _ in range(60):
        state, _ = run(state, pulls)
    np.testing.assert_allclose(state.params, 1, atol=1e-3)


DIFFERENCES = {
    "sparse_loco": cj.rules.sparse_loco,
    "eager_diloco": cj.rules.eager_diloco,
    "co2": cj.rules.co2,
}


@pytest.mark.parametrize("name", DIFFERENCES)
@pytest.mark.parametrize(
    ("exchange", "words"),
    [
        (cj.exchanges.gossip("workers", "ring"), "brings each worker others"),
        (cj.exchanges.within("workers", 2), "brings each worker others"),
        (cj.exchanges.finite("workers"), "heals a worker by making what arrives"),
    ],
    ids=["gossip", "within", "finite"],
)
def test_an_anchor_of_all_moves_by_what_all_receive(name, exchange, words):
    with pytest.raises(ValueError, match=rf"^{name} .*{words}.*such as cj\.mean"):
        DIFFERENCES[name](exchange)


def test_a_part_of_the_model_heals_nobody():
    finite = cj.exchanges.finite("workers")
    with pytest.raises(ValueError, match=r"loscar brings a part .* heals a worker"):
        cj.rules.loscar(finite, 0.5)
    with pytest.raises(ValueError, match=r"fragment's merge .* heals a worker"):
        cj.rules.fragments(cj.cocod, finite, [lambda leaf: True])


@pytest.mark.parametrize(
    "exchange",
    [cj.exchanges.narrow("workers", "int4"), cj.exchanges.top_k("workers")],
    ids=["narrow", "top_k"],
)
def test_other_coordinates_in_each_round_are_not_remembered(exchange):
    rule = cj.rules.loscar(exchange, 0.5)
    with pytest.raises(ValueError, match="loscar sends other coordinates in every"):
        rule.init(jnp.zeros(64))


def aligned(rule):
    """Distance and alignment of every round of two workers that are pulled apart."""
    loss = lambda w, pull: 0.5 * (w - pull) ** 2
    round_ = cj.make_round(loss, optax.sgd(0.1), rule, period=PERIOD)
    run = cj.distribute(round_, via="vmap")
    state = cj.replicate(round_.init(jnp.array(0.0)), 2)
    pulls = np.repeat([[-1.0], [2.0]], PERIOD, axis=1).astype(np.float32)
    for _ in range(ROUNDS):
        state, metrics = run(state, pulls)
        yield np.stack([metrics.distance, metrics.alignment])


@pytest.mark.parametrize("name", DIFFERENCES)
def test_differences_have_the_sign_of_the_way_gone(name):
    """Steps away from the mean are against the merge, whatever a rule sends."""
    first, *later = aligned(DIFFERENCES[name](cj.mean("workers")))
    np.testing.assert_allclose(first, 0, atol=1e-6)
    for _, alignment in later:
        np.testing.assert_allclose(alignment, -1, rtol=1e-5)


def test_sparse_loco_that_sends_all_reports_what_cocod_does():
    sent = aligned(cj.rules.sparse_loco(cj.mean("workers")))
    np.testing.assert_allclose([*sent], [*aligned(cj.cocod("workers"))], rtol=1e-5)
