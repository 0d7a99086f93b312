"""The clock: closed forms, order in time, stragglers, pictures, errors."""

import dataclasses
import itertools
import math
from typing import Any, cast

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cocod_jax.timeline import (
    SSGD,
    CoCoDSGD,
    Compute,
    Gossip,
    Link,
    LocalSGD,
    PipeSGD,
    Streamed,
    Streaming,
    Transfer,
    gantt,
    simulate,
)

matplotlib.use("Agg")

TC, TM, K = 0.1, 0.25, 4

ALGORITHMS = {
    "ssgd": SSGD(),
    "ssgd_overlapped": SSGD(sends_after=1 / 3),
    "pipe_sgd": PipeSGD(),
    "local_sgd": LocalSGD(K),
    "cocod": CoCoDSGD(K),
    "just_in_time": CoCoDSGD(K, 3),
    "gossip": Gossip(K),
    "streamed": Streamed(K),
    "streaming": Streaming(K, fragments=2, delay=3),
}

# What README's table says that K steps take.
CLOSED_FORMS = {
    "ssgd": lambda tc, tm: K * (tc + tm),
    "ssgd_overlapped": lambda tc, tm: K * max(tc, tc / 3 + tm),
    "pipe_sgd": lambda tc, tm: K * max(tc, tm),
    "local_sgd": lambda tc, tm: K * tc + tm,
    "cocod": lambda tc, tm: max(K * tc, tm),
    "just_in_time": lambda tc, tm: max(3 * tc, tm) + (K - 3) * tc,
    "gossip": lambda tc, tm: max(K * tc, tm),
    "streamed": lambda tc, tm: K * max(tc, tm / K),
}

examples = settings(max_examples=50, deadline=None)
times = st.floats(0.001, 10.0)
computes = st.builds(
    Compute,
    seconds=times,
    workers=st.integers(1, 5),
    jitter=st.floats(0, 1),
    pause=times,
    pause_probability=st.floats(0, 1),
)
algorithms = st.sampled_from(list(ALGORITHMS.values()))


def run(algorithm, tc=TC, tm=TM, workers=3, rounds=5, **kwargs):
    return simulate(algorithm, Compute(tc, workers), tm, steps=rounds * K, **kwargs)


# Closed forms


@pytest.mark.parametrize("tm", [0.0, 0.03, 0.25, 0.4, 1.7])
@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_constant_times_give_the_closed_forms(name, tm):
    timeline = run(ALGORITHMS[name], tm=tm)
    seconds = CLOSED_FORMS[name](TC, tm)
    assert timeline.seconds == pytest.approx(5 * seconds, rel=1e-12)
    assert timeline.seconds_per_step == pytest.approx(seconds / K, rel=1e-12)
    np.testing.assert_allclose(timeline.idle, 1 - K * TC / seconds, atol=1e-12)


@examples
@given(times, times, st.integers(1, 9), st.data())
def test_every_delay_has_its_closed_form(tc, tm, period, data):
    delay = data.draw(st.integers(0, period))
    busy = data.draw(st.floats(0, tm))
    timeline = simulate(
        CoCoDSGD(period, delay), Compute(tc, 2), tm, steps=3 * period, busy=busy
    )
    exchanging = max(delay * tc + busy, tm) if delay else tm
    expected = exchanging + (period - delay) * tc
    assert timeline.seconds == pytest.approx(3 * expected, rel=1e-9)


@examples
@given(times, times, st.floats(0.01, 1), st.floats(0, 1))
def test_backward_overlap_has_its_closed_form(tc, tm, fraction, part):
    timeline = simulate(SSGD(fraction), Compute(tc, 2), tm, steps=4, busy=part * tm)
    beside = max((1 - fraction) * tc + part * tm, tm) if fraction < 1 else tm
    assert timeline.seconds_per_step == pytest.approx(fraction * tc + beside, rel=1e-9)


def test_fragments_take_their_turns_on_the_link():
    timeline = run(Streaming(K, fragments=2, delay=2), rounds=2)
    half = TM / 2
    np.testing.assert_allclose(
        timeline.exchange_starts[0], [0, 2 * TC, 4 * TC, 6 * TC], atol=1e-12
    )
    np.testing.assert_allclose(
        timeline.exchange_ends - timeline.exchange_starts, half, atol=1e-12
    )
    np.testing.assert_array_equal(timeline.exchange_rounds, [0, 0, 1, 1])
    assert timeline.seconds == pytest.approx(2 * K * TC)  # all hidden
    # Longer than the steps between two of them, they queue.
    queued = run(Streaming(K, fragments=2, delay=4), tm=1.0, rounds=2)
    np.testing.assert_allclose(queued.exchange_starts[0], [0, 0.5, 1.0, 1.5])


@examples
@given(times, times, st.integers(1, 9), st.floats(0, 1))
def test_a_streamed_step_hides_a_piece_and_its_latency(tc, tm, period, part):
    latency, compute = part * tm, Compute(tc, 3)
    run = lambda algorithm: simulate(
        algorithm, compute, tm, latency=latency, steps=3 * period
    )
    streamed = run(Streamed(period))
    message = latency + (tm - latency) / period
    assert streamed.seconds_per_step == pytest.approx(max(tc, message), rel=1e-9)
    # One message pays the latency once, whatever it is.
    whole = run(CoCoDSGD(period))
    assert whole.seconds_per_step == pytest.approx(max(tc, tm / period), rel=1e-9)
    assert whole.seconds <= streamed.seconds * (1 + 1e-9)


def test_a_period_of_one_streams_the_whole():
    assert Streamed(1).transfers(3) == PipeSGD().transfers(3)


def test_exchanges_that_queue_slow_all_steps_down():
    plan = Streaming(K, fragments=2, delay=4)
    timeline = run(plan, tm=1.0, busy=0.5, rounds=2)
    np.testing.assert_allclose(timeline.exchange_starts[0], [0, 0.5, 1.0, 1.5])
    np.testing.assert_allclose(timeline.step_ends[0], 2 * TC * np.arange(1, 9))


def test_a_last_round_may_be_shorter():
    timeline = simulate(CoCoDSGD(4), Compute(TC, 2), TM, steps=6)
    assert timeline.seconds == pytest.approx(4 * TC + max(2 * TC, TM))
    np.testing.assert_array_equal(timeline.step_rounds, [0, 0, 0, 0, 1, 1])


# Properties


@examples
@given(times, times, st.integers(1, 8), st.integers(1, 3))
def test_cocod_is_never_slower_than_local_sgd_nor_that_than_ssgd(tc, tm, k, rounds):
    compute, steps = Compute(tc, 2), rounds * k
    cocod, local_sgd, ssgd = (
        simulate(algorithm, compute, tm, steps=steps).seconds
        for algorithm in (CoCoDSGD(k), LocalSGD(k), SSGD())
    )
    assert cocod <= local_sgd * (1 + 1e-12)
    assert local_sgd <= ssgd * (1 + 1e-12)


@examples
@given(algorithms, computes, times, st.floats(1, 4), st.integers(0, 99))
def test_a_longer_exchange_never_makes_it_faster(algorithm, compute, tm, factor, seed):
    short, long = (
        simulate(algorithm, compute, seconds, steps=8, seed=seed).step_ends
        for seconds in (tm, factor * tm)
    )
    assert (long >= short * (1 - 1e-12)).all()


@examples
@given(computes, times, st.integers(1, 6), st.integers(0, 99))
def test_a_longer_delay_never_makes_it_slower(compute, tm, period, seed):
    seconds = [
        simulate(
            CoCoDSGD(period, delay), compute, tm, steps=3 * period, seed=seed
        ).seconds
        for delay in range(period + 1)
    ]
    assert (np.diff(seconds) <= 1e-9 * seconds[0]).all()


@examples
@given(algorithms, computes, times, st.floats(0, 1), st.integers(0, 99))
def test_nothing_happens_before_its_time(algorithm, compute, tm, part, seed):
    timeline = simulate(algorithm, compute, tm, steps=10, busy=part * tm, seed=seed)
    starts, ends = timeline.step_starts, timeline.step_ends
    slack = 1e-9 * timeline.seconds
    # A worker computes one thing at a time, and no faster than it can.
    assert (starts[:, 1:] >= ends[:, :-1] - slack).all()
    assert (ends - starts >= compute.draw(10, seed) - slack).all()
    # So does the link: one exchange after the other, each with all of its time.
    sent, arrived = timeline.exchange_starts, timeline.exchange_ends
    assert (sent[:, 1:] >= arrived[:, :-1] - slack).all()
    shares = np.array([t.share for t in algorithm.transfers(10)])
    assert (arrived - sent >= shares * tm - slack).all()
    reached = np.column_stack([starts, np.full(len(starts), math.inf)])
    for index, transfer in enumerate(algorithm.transfers(10)):
        # Nobody sends what is not computed, and nobody merges what has not arrived.
        assert (arrived[:, index] <= reached[:, transfer.needed] + slack).all()
        whole = int(transfer.sent)
        if whole == 0 or transfer.sent % 1:
            continue
        ready = ends[:, whole - 1]
        assert (sent[:, index] >= ready - slack).all()
        if transfer.everyone:
            assert (sent[:, index] >= ready.max() - slack).all()


@examples
@given(computes, times, st.floats(0, 1))
def test_contention_adds_at_most_what_an_exchange_occupies(compute, tm, part):
    algorithm, busy = CoCoDSGD(K), part * tm
    free, contended = (
        simulate(algorithm, compute, tm, steps=4 * K, busy=seconds)
        for seconds in (0.0, busy)
    )
    stretched = (contended.step_ends - contended.step_starts).sum(axis=1)
    work = (free.step_ends - free.step_starts).sum(axis=1)
    slack = 1e-9 * contended.seconds
    assert (stretched >= work - slack).all()
    assert (stretched <= work + 4 * busy + slack).all()
    # Local SGD has nothing to slow down.
    exposed = simulate(LocalSGD(K), compute, tm, steps=4 * K, busy=busy)
    np.testing.assert_allclose(
        exposed.step_ends - exposed.step_starts, compute.draw(4 * K), atol=slack
    )


# Workers that differ


def test_ssgd_waits_for_the_slowest_worker_of_every_step():
    compute = Compute(TC, 8, jitter=0.5)
    timeline = simulate(SSGD(), compute, TM, steps=20, seed=3)
    slowest = compute.draw(20, seed=3).max(axis=0)
    assert timeline.seconds == pytest.approx((slowest + TM).sum())


def test_buckets_wait_for_the_last_gradient_of_the_slowest_worker():
    compute = Compute(TC, 8, jitter=0.5)
    slowest = compute.draw(20, seed=3).max(axis=0)
    for tm in 0.001, 0.1, TM:
        timeline = simulate(SSGD(1 / 3), compute, tm, steps=20, seed=3)
        expected = np.maximum(slowest, slowest / 3 + tm).sum()
        assert timeline.seconds == pytest.approx(expected)


def test_local_sgd_waits_for_the_slowest_worker_of_every_round():
    compute = Compute(TC, 8, jitter=0.5)
    timeline = simulate(LocalSGD(5), compute, TM, steps=20, seed=3)
    slowest = compute.draw(20, seed=3).reshape(8, 4, 5).sum(axis=2).max(axis=0)
    assert timeline.seconds == pytest.approx((slowest + TM).sum())


def test_cocod_catches_up_with_a_straggler_and_gossip_holds_up_the_neighbours():
    """One worker pauses once; with slack in the round nobody else waits at all."""
    work = np.full([8, 3 * K], TC)
    work[0, 0] += 1.0

    class Paused(Compute):
        def draw(self, steps, seed=0):
            return work

    cocod, gossip, local_sgd = (
        simulate(algorithm, Paused(TC, 8), 0.05, steps=3 * K)
        for algorithm in (CoCoDSGD(K), Gossip(K), LocalSGD(K))
    )
    # The second exchange starts when worker 0 is there, 1 s late. Alone, the others
    # would send for the third time at 2 K TC.
    third = lambda timeline: timeline.step_starts[:, 2 * K]
    np.testing.assert_allclose(third(cocod)[1:], 1.0 + K * TC + 0.05)
    on_time = np.full(8, 2 * K * TC)
    # Two exchanges after a pause it is felt by neighbours, not by those further away.
    on_time[[0, 1, 7]] = [1.0 + 2 * K * TC, *[1.0 + K * TC + 0.05] * 2]
    np.testing.assert_allclose(third(gossip), on_time)
    assert cocod.seconds < local_sgd.seconds


def test_streamed_workers_absorb_a_pause_for_one_step():
    """One worker pauses once, in a round in which CoCoD-SGD's workers have slack."""
    pause, period = 2.5 * TC, 8
    work = np.full([4, 2 * period], TC)
    work[0, 0] += pause

    class Paused(Compute):
        def draw(self, steps, seed=0):
            return work

    run = lambda algorithm: simulate(
        algorithm, Paused(TC, 4), 0.5 * TC, steps=2 * period
    )
    streamed, cocod = run(Streamed(period)), run(CoCoDSGD(period))
    message = 0.5 * TC / period
    # The others take one more step, and then need a piece that waits for worker 0.
    expected = [0, TC, TC + pause + message]
    np.testing.assert_allclose(streamed.step_starts[1, :3], expected)
    # CoCoD-SGD's take all steps of the round, and all but the slack of the next.
    np.testing.assert_allclose(cocod.step_starts[1, :period], TC * np.arange(period))
    wait = lambda timeline: timeline.idle[1] * timeline.seconds
    assert wait(streamed) == pytest.approx(pause)
    assert streamed.seconds == pytest.approx(cocod.seconds)


@pytest.mark.parametrize("jitter", [0.1, 0.5])
def test_jitter_costs_streamed_workers_more_than_rounds_and_less_than_ssgd(jitter):
    compute = Compute(TC, 64, jitter=jitter)
    cocod, streamed, ssgd = (
        simulate(algorithm, compute, 0.1 * TC, steps=160).seconds
        for algorithm in (CoCoDSGD(16), Streamed(16), SSGD())
    )
    assert cocod < streamed < ssgd


def test_computation_times_have_the_distribution_asked_for():
    work = Compute(2.0, 4, jitter=0.3).draw(20_000)
    assert work.mean() == pytest.approx(2.0, rel=0.01)
    assert work.std() / work.mean() == pytest.approx(0.3, rel=0.02)
    paused = Compute(2.0, 4, pause=5.0, pause_probability=0.1).draw(20_000)
    assert set(np.unique(paused)) == {2.0, 7.0}
    assert (paused == 7.0).mean() == pytest.approx(0.1, rel=0.05)
    unequal = Compute(2.0, 2, speeds=(1, 4)).draw(3)
    np.testing.assert_array_equal(unequal, [[2.0] * 3, [0.5] * 3])


def test_a_seed_says_everything():
    compute = Compute(TC, 4, jitter=0.2, pause=1.0, pause_probability=0.2)
    draw = compute.draw
    np.testing.assert_array_equal(draw(9, seed=1), draw(9, seed=1))
    np.testing.assert_array_equal(draw(9, seed=1)[:, :5], draw(5, seed=1))
    assert (draw(9, seed=1) != draw(9, seed=2)).any()
    # Workers have times of their own.
    assert len(np.unique(draw(1, seed=1))) == 4
    # What is paused does not depend on the jitter.
    steady = dataclasses.replace(compute, jitter=0.0)
    np.testing.assert_array_equal(steady.draw(9) > TC, draw(9) > 1.0)
    ends = lambda: simulate(SSGD(), compute, TM, steps=9, seed=1).step_ends
    np.testing.assert_array_equal(ends(), ends())


@pytest.mark.parametrize("name", ALGORITHMS)
def test_thousands_of_workers(name):
    compute = Compute(TC, 4096, jitter=0.2, pause=1.0, pause_probability=1e-3)
    timeline = simulate(ALGORITHMS[name], compute, TM, steps=100, busy=0.1)
    assert timeline.step_ends.shape == (4096, 100)
    assert ((timeline.idle >= 0) & (timeline.idle < 1)).all()


# Links


def test_link_times():
    link = Link(latency=1e-3, bandwidth=1e6)
    assert link.seconds(4e6, workers=4) == pytest.approx(6 * (1e-3 + 1.0))
    assert link.seconds(4e6, workers=1) == 0
    tree = dataclasses.replace(link, topology="tree")
    for workers, levels in [(1, 0), (2, 1), (4, 2), (5, 3), (4096, 12), (4097, 13)]:
        expected = 2 * levels * (1e-3 + 4.0)
        assert tree.seconds(4e6, workers) == pytest.approx(expected)
    fastest = dataclasses.replace(link, topology="fastest")
    assert fastest.seconds(4e6, 100) == link.seconds(4e6, 100)  # the bytes decide
    assert fastest.seconds(40, 100) == tree.seconds(40, 100)  # the latency does
    gossip = dataclasses.replace(link, topology="neighbours")
    for workers, neighbours in [(1, 0), (2, 1), (3, 2), (100, 2)]:
        expected = neighbours * (1e-3 + 4.0)
        assert gossip.seconds(4e6, workers) == pytest.approx(expected)


def test_a_link_is_as_good_as_its_seconds():
    link, compute = Link(1e-3, 1e8), Compute(TC, 8)
    seconds = link.seconds(4e7, 8)
    by_link = simulate(LocalSGD(K), compute, link=link, size=4e7, steps=8)
    assert by_link.seconds == simulate(LocalSGD(K), compute, seconds, steps=8).seconds
    # Fragments share the bytes, and each has all messages' latency.
    parts = simulate(Streaming(K, 2), compute, link=link, size=4e7, steps=8)
    np.testing.assert_allclose(
        parts.exchange_ends - parts.exchange_starts, link.seconds(2e7, 8)
    )


# Pictures


def test_intervals_list_everything():
    timeline = run(ALGORITHMS["cocod"], workers=2, rounds=3)
    intervals = timeline.intervals
    assert intervals.dtype.names == ("worker", "lane", "round", "start", "end")
    assert len(intervals) == 2 * (3 * K + 3)
    mine = intervals[intervals["worker"] == 1]
    steps = mine[mine["lane"] == "compute"]
    np.testing.assert_array_equal(steps["end"], timeline.step_ends[1])
    np.testing.assert_array_equal(steps["round"], np.repeat([0, 1, 2], K))
    exchanges = mine[mine["lane"] == "exchange"]
    np.testing.assert_array_equal(exchanges["start"], timeline.exchange_starts[1])
    np.testing.assert_array_equal(exchanges["round"], [0, 1, 2])


def test_text():
    timeline = simulate(LocalSGD(2), Compute(1.0, 6, speeds=(1, 2) * 3), 1.0, steps=4)
    assert timeline.text(width=34).splitlines() == [
        "worker 0  ....########....++++++++",
        "worker 1  ....####........++++....",
        "worker 2  ....########....++++++++",
        "worker 3  ....####........++++....",
        "exchange  ====        ----",
        "          0                    6 s",
        "... and 2 more workers",
    ]


def test_gossip_has_a_row_of_exchanges_for_every_worker():
    compute = Compute(1.0, 4, speeds=(1, 2, 2, 2))
    timeline = simulate(Gossip(2), compute, 1.0, steps=4)
    rows = timeline.text().splitlines()
    assert [row.split()[0] for row in rows[:-1]] == ["worker", "exchange"] * 4
    assert rows[1] == rows[3] != rows[5]


def test_what_is_short_is_still_seen():
    timeline = simulate(LocalSGD(50), Compute(1.0, 2), 1e-6, steps=100)
    assert timeline.text(width=60).splitlines()[2].count("=") == 1


class Independent:
    """Not an algorithm of ours, and it never exchanges."""

    period = 1

    def transfers(self, steps: int) -> list[Transfer]:
        return []


def test_an_algorithm_of_your_own():
    timeline = simulate(Independent(), Compute(TC, 2), TM, steps=5)
    assert timeline.seconds == pytest.approx(5 * TC)
    assert "exchange" not in timeline.text()
    assert timeline.exchange_ends.shape == (2, 0)


@pytest.mark.parametrize(
    ("transfer", "match"),
    [
        (
            Transfer(0, sent=2, needed=1),
            "sent=2, needed=1, .* no earlier than it is sent",
        ),
        (Transfer(0, sent=-1, needed=1), "sent=-1 must be .* 0 or more"),
        (Transfer(0, sent=1, needed=9), "no later than steps=5"),
        (
            Transfer(0, sent=1, needed=2, share=1.5),
            "share=1.5 must be above 0",
        ),
    ],
)
def test_a_plan_that_cannot_be_is_refused(transfer, match):
    algorithm = Independent()
    algorithm.transfers = lambda steps: [transfer]
    with pytest.raises(ValueError, match=match):
        simulate(algorithm, Compute(TC, 2), TM, steps=5)


def test_gantt_draws_every_algorithm_on_one_axis_of_time():
    timelines = {name: run(ALGORITHMS[name]) for name in ALGORITHMS}
    figure = gantt(timelines)
    figure.canvas.draw()
    axes = figure.axes
    assert [axis.get_title("left") for axis in axes] == list(ALGORITHMS)
    longest = max(timeline.seconds for timeline in timelines.values())
    for axis in axes:
        low, high = axis.get_xlim()
        assert low == 0
        assert longest <= high < 1.1 * longest
    # Titles and rows of one panel do not reach into the next.
    renderer = figure.canvas.get_renderer()
    boxes = [axis.get_tightbbox(renderer) for axis in axes]
    for upper, lower in itertools.pairwise(boxes):
        assert upper.y0 >= lower.y1
    plt.close(figure)


def test_plot_draws_each_interval_where_it_is():
    timeline = run(CoCoDSGD(K), workers=6, rounds=2)
    axis = timeline.plot()
    labels = [label.get_text() for label in axis.get_yticklabels()]
    assert labels == [*(f"worker {i}" for i in range(4)), "exchange"]
    bars = [path for bars in axis.collections for path in bars.get_paths()]
    assert len(bars) == 4 * 2 * K + 2
    ends = sorted(path.get_extents().x1 for path in bars)
    assert ends[-1] == pytest.approx(timeline.seconds)
    assert timeline.plot(axis) is axis
    plt.close(axis.figure)


# Errors

LINK = Link(0.0, 1e9)
AMONG_NEIGHBOURS = dataclasses.replace(LINK, topology="neighbours")


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Link(-1, 1e9), "latency=-1 must be a finite number, 0 or more"),
        (lambda: Link(0, 0), "bandwidth=0 must be a finite number above 0"),
        (lambda: Link(0, 1, cast(Any, "star")), "topology='star' must be one of"),
        (lambda: LINK.seconds(-1, 2), "size=-1"),
        (lambda: LINK.seconds(1, 0), "workers=0 must be an integer of at least 1"),
        (lambda: Compute(0.0, 2), "seconds=0.0"),
        (lambda: Compute(math.nan, 2), "seconds=nan"),
        (lambda: Compute(cast(Any, "fast"), 2), "seconds='fast'"),
        (lambda: Compute(1.0, True), "workers=True"),
        (lambda: Compute(1.0, 2, jitter=-0.1), "jitter=-0.1"),
        (lambda: Compute(1.0, 2, pause=math.inf), "pause=inf"),
        (lambda: Compute(1.0, 2, pause_probability=1.1), "pause_probability=1.1"),
        (lambda: Compute(1.0, 2, speeds=(1,)), "speeds has 1 entries, but workers=2"),
        (lambda: Compute(1.0, 2, speeds=(1, 0)), r"speeds\[1\]=0 must be"),
        (lambda: SSGD(0.0), "sends_after=0.0"),
        (lambda: LocalSGD(0), "period=0"),
        (lambda: CoCoDSGD(4, 5), "delay=5"),
        (lambda: Gossip(4, -1), "delay=-1"),
        (lambda: Streamed(0), "period=0"),
        (lambda: run(SSGD(), latency=-1.0), "latency=-1.0"),
        (lambda: run(SSGD(), latency=0.3), "latency=0.3 is a part of exchange_seconds"),
        (
            lambda: run(SSGD(), tm=None, link=LINK, size=1.0, latency=0.1),
            "latency=0.1 is a part of exchange_seconds; .* has its own",
        ),
        (lambda: Streaming(4, 5), "fragments=5 must be at most period=4"),
        (lambda: Streaming(4, 0), "fragments=0"),
        (lambda: run(SSGD(), rounds=0), "steps=0"),
        (lambda: run(SSGD(), tm=-1.0), "exchange_seconds=-1.0"),
        (lambda: run(SSGD(), busy=0.3), "busy=0.3 must be at most the exchange's 0.25"),
        (lambda: run(SSGD(), link=LINK, size=1.0), "give either exchange_seconds"),
        (lambda: run(SSGD(), tm=None), "give either exchange_seconds"),
        (lambda: run(SSGD(), tm=None, link=LINK), "give either exchange_seconds"),
        (
            lambda: run(Gossip(4), tm=None, link=LINK, size=1.0),
            "topology='ring' is not how Gossip.*gossip needs 'neighbours'",
        ),
        (
            lambda: run(SSGD(), tm=None, link=AMONG_NEIGHBOURS, size=1.0),
            "topology='neighbours' is not how SSGD",
        ),
        (lambda: gantt({}), "timelines is empty"),
    ],
)
def test_errors_name_the_argument_and_what_would_do(make, match):
    with pytest.raises(ValueError, match=match):
        make()
