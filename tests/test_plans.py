"""Which round comes next: the periods of each plan, and runs that follow it."""

import functools
import operator
from typing import Any

import chex
import jax
import numpy as np
import optax
import pytest

import cocod_jax as cj
from cocod_jax import plans
from tests import problems, reference
from tests.problems import N

LONGEST = 48  # of the runs here, their last round included
RULE, SGD = cj.cocod("workers"), optax.sgd(0.05, momentum=0.5)


def make(period, delay=None, rule=RULE, **options):
    return cj.make_round(
        problems.loss, SGD, rule, period=period, delay=delay, **options
    )


def follow(plan, steps, loss=None):
    """The periods of a run, one after the other."""
    step, periods = 0, []
    while step < steps:
        round_ = plan(step, loss)
        periods.append(round_.period)
        step += round_.period
    return periods


def train(plan, steps, dtype=np.float32):
    """The loop of the module's docstring."""
    distribute = functools.cache(functools.partial(cj.distribute, via="vmap"))
    data = problems.batches(dtype, steps=LONGEST)
    state = cj.replicate(plan(0).init(problems.params(dtype)), N)
    step, loss, taken = 0, None, []
    while step < steps:
        round_ = plan(step, loss)
        steps_now = slice(step, step + round_.period)
        batches = jax.tree.map(operator.itemgetter((slice(None), steps_now)), data)
        state, metrics = distribute(round_)(state, batches)
        loss = float(metrics.loss.mean())
        taken.append(round_)
        step += round_.period
    return state, taken, distribute.cache_info().misses


def test_a_period_keeps_the_delay_that_hides_the_exchange():
    lengths = lambda round_: (round_.period, round_.delay)
    assert lengths(plans.with_period(make(4), 9)) == (9, 9)
    assert lengths(plans.with_period(make(4, 2), 9)) == (9, 2)
    assert lengths(plans.with_period(make(4, 3), 2)) == (2, 2)
    assert lengths(plans.with_period(make(4, 0), 2)) == (2, 0)


def test_other_periods_run_as_rounds_that_were_made_so():
    batches = problems.round_batches(problems.batches(), 0, 6)
    runs = []
    for round_ in (plans.with_period(make(4, 2), 6), make(6, 2)):
        state = cj.replicate(round_.init(problems.params()), N)
        runs.append(cj.distribute(round_, via="vmap")(state, batches))
    without_key = lambda run: (run[0]._replace(key=()), run[1])
    chex.assert_trees_all_equal(*map(without_key, runs))


def test_equal_periods_are_one_program():
    plan = plans.stagewise(make(2), steps=4, longest=8)
    assert plan(13) == plan(14)
    assert hash(plan(13)) == hash(plan(14))
    _, taken, compiled = train(plan, 28)
    assert [round_.period for round_ in taken] == [2, 2, 4, 4, 8, 8]
    assert compiled == 3


def test_a_run_with_growing_periods_is_that_of_the_loop():
    """Momentum, snapshots and counts go on from stage to stage."""
    with jax.enable_x64(True):
        stages = {0: make(1, 0), 3: make(3, 1), 9: make(6)}
        state, taken, _ = train(plans.stages(stages), 21, np.float64)
        assert [round_.period for round_ in taken] == [1, 1, 1, 3, 3, 6, 6]
        data = problems.per_worker(problems.batches(np.float64, steps=LONGEST))
        x0 = problems.params(np.float64)
        workers = [x0] * N
        optimizers = [reference.MomentumSGD(x0, 0.05, 0.5) for _ in range(N)]
        step = 0
        for round_ in taken:
            snapshot = list(workers)
            mean = reference.weighted_mean(snapshot, [1 / N] * N)
            for tau in range(round_.period + 1):
                if tau == round_.delay:
                    moved = zip(workers, snapshot, strict=True)
                    workers = [reference.merged(mean, x, s) for x, s in moved]
                if tau < round_.period:
                    for i in range(N):
                        g = problems.numpy_gradient(workers[i], data[i][step])
                        workers[i] = optimizers[i].step(workers[i], g)
                    step += 1
        chex.assert_trees_all_close(
            jax.tree.map(np.asarray, state.params),
            problems.stacked(workers),
            rtol=1e-10,
        )


def test_a_stage_of_period_one_is_synchronous_sgd():
    """Post-local SGD begins as S-SGD does: the workers' mean follows it."""
    with jax.enable_x64(True):
        state, _, _ = train(plans.stages({0: make(1, 0)}), 8, np.float64)
        data = problems.per_worker(problems.batches(np.float64, steps=LONGEST))
        _, expected = reference.synchronous_sgd(
            problems.numpy_gradient,
            problems.params(np.float64),
            [own[:8] for own in data],
            [1 / N] * N,
            learning_rate=0.05,
            momentum=0.5,
        )
        chex.assert_trees_all_close(
            jax.tree.map(np.asarray, cj.consensus(state)), expected[0], rtol=1e-10
        )


def test_stages_begin_with_the_merge_behind_their_step():
    plan = plans.stages({0: make(4), 6: make(2), 9: make(5)})
    assert follow(plan, 20) == [4, 4, 2, 5, 5]


def test_stagewise_doubles_both():
    plan = plans.stagewise(make(2), steps=4, longest=9)
    assert follow(plan, 44) == [2, 2, 4, 4, 8, 8, 8, 8]


def test_qsr_follows_the_rate():
    """(0.41 / rate)^2 is a little above 4, 16 and 64; a warm-up comes first."""
    rate = optax.join_schedules(
        [optax.linear_schedule(0, 0.2, 6), *map(optax.constant_schedule, (0.1, 0.05))],
        [8, 20],
    )
    for longest, last in ((64, [64, 64]), (50, [32, 32, 32])):
        plan = plans.qsr(make(4), rate, 0.41, longest, warmup_steps=6)
        assert follow(plan, 100) == [4, 4, 16, *last]
    never = plans.qsr(make(4), lambda step: 0.0, 0.4, 16)
    assert never(0).period == 16
    large = plans.qsr(make(4), lambda step: 10.0, 0.4, 16)
    assert large(0).period == 4


def test_qsr_and_adacomm_train():
    rate = optax.cosine_decay_schedule(0.05, 32)
    for plan in (
        plans.qsr(make(2), rate, 0.05, 8),
        plans.adacomm(make(8), first_loss=10 * first_loss()),
    ):
        state, taken, compiled = train(plan, 40)
        assert len({round_.period for round_ in taken}) == compiled > 1
        assert np.isfinite(state.params["b"]).all()


def first_loss():
    first = jax.tree.map(lambda x: x[:, 0], problems.batches())
    losses = [
        problems.loss(problems.params(), (x, y)) for x, y in zip(*first, strict=True)
    ]
    return float(np.mean(losses))


def test_adacomm_follows_the_loss():
    plan = plans.adacomm(make(12), first_loss=2.0)
    assert plan(0).period == 12
    wanted = {2.0: 12, 8.0: 12, 0.5: 6, 0.3: 6, 0.12: 3, 0.1: 3, 0.05: 2, 0.001: 1}
    for loss, period in wanted.items():
        rule = np.ceil(12 * np.sqrt(loss / 2))
        assert plan(0, loss).period == period
        assert period >= min(rule, 12)
    for loss in (np.nan, np.inf, -1.0):
        with pytest.raises(ValueError, match="must be a finite number, 0 or more"):
            plan(0, loss)


def test_two_levels_take_turns():
    within = cj.cocod(cj.exchanges.within("workers", 2))
    near, far = make(2, rule=within), make(4)
    assert follow(plans.two_level(near, far, 3), 16) == [2, 2, 4, 2, 2, 4]
    assert follow(plans.two_level(near, far, 1), 8) == [4, 4]
    plan = plans.two_level(make(1, 0, within), make(1, 0), 2)
    state, taken, _ = train(plan, 6)
    assert [r.rule is RULE for r in taken] == [False, True] * 3
    # Until the last step all were equal; with a round of groups alone they are not.
    groups, _, _ = train(plans.two_level(make(1, 0, within), make(1, 0), 100), 6)
    spread = lambda state: np.ptp(state.params["w"], axis=0).max()
    assert spread(state) < spread(groups) / 2


def test_what_is_refused():
    any_: Any = plans
    with pytest.raises(TypeError, match="round_=3 must be a Round"):
        any_.with_period(3, 2)
    with pytest.raises(ValueError, match="period=0 must be an integer of at least 1"):
        plans.with_period(make(2), 0)
    streamed = make(4, streamed=True)
    for refused in (
        lambda: plans.with_period(streamed, 2),
        lambda: plans.stagewise(streamed, 4, 8),
        lambda: plans.adacomm(streamed, 1.0),
    ):
        with pytest.raises(ValueError, match="streamed round of 4 pieces"):
            refused()
    with pytest.raises(TypeError, match="must be a mapping of first steps to rounds"):
        any_.stages([make(2)])
    with pytest.raises(ValueError, match="rounds begins with step 3, not 0"):
        plans.stages({3: make(2)})
    with pytest.raises(ValueError, match="step=-1 must be an integer, 0 or more"):
        plans.stages({-1: make(2)})
    with pytest.raises(TypeError, match="=2 must be a Round"):
        any_.stages({0: 2})
    with pytest.raises(ValueError, match="longest=3 is shorter than the round"):
        plans.stagewise(make(4), 10, 3)
    with pytest.raises(TypeError, match=r"learning_rate=0\.1 must be a function"):
        any_.qsr(make(4), 0.1, 1.0, 8)
    with pytest.raises(ValueError, match="alpha=0 must be a finite number above 0"):
        plans.qsr(make(4), lambda step: 0.1, 0, 8)
    with pytest.raises(ValueError, match="first_loss=0 must be a finite number above"):
        plans.adacomm(make(4), 0)
    with pytest.raises(ValueError, match="times=0 must be an integer of at least 1"):
        plans.two_level(make(2), make(2), 0)
