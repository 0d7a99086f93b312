"""Advice on period and delay: the smallest that hide, and when not to."""

import functools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cocod_jax as cj
from cocod_jax import theory

times = st.floats(0.01, 1.0)


@settings(max_examples=50, deadline=None)
@given(times, times, st.floats(0, 1))
def test_period_and_delay_are_the_smallest_that_hide(tc, tm, part):
    busy = part * tm
    hides = lambda steps: steps * tc + busy >= tm * (1 - 1e-8)
    advice = cj.advise(tc, tm, 8, busy=busy)
    assert hides(advice.period)
    assert advice.period == 1 or not hides(advice.period - 1)
    longer = cj.advise(tc, tm, 8, busy=busy, period=advice.period + 3)
    assert longer.period == advice.period + 3
    assert hides(longer.delay)
    assert longer.delay == 0 or not hides(longer.delay - 1)
    assert longer.cocod_seconds == pytest.approx(
        tc + (busy if longer.delay else tm) / longer.period
    )


@pytest.mark.parametrize("steps", range(1, 60))
def test_a_whole_number_of_steps_is_no_more_than_that(steps):
    assert cj.advise(0.1, steps * 0.1, 2).period == steps


def test_the_seconds_are_those_of_the_closed_forms():
    advice = cj.advise(0.1, 0.35, 16, period=8)
    assert (advice.period, advice.delay) == (8, 4)
    assert advice.ssgd_seconds == pytest.approx(0.45)
    assert advice.overlapped_ssgd_seconds == pytest.approx(0.1 / 3 + 0.35)
    assert advice.local_sgd_seconds == pytest.approx(0.1 + 0.35 / 8)
    assert advice.cocod_seconds == pytest.approx(0.1)
    assert advice.pays
    assert advice.largest_period is None


def test_the_sentence_about_the_delay_says_what_theory_says():
    def times(delay, **apart):
        problem = theory.Problem(smoothness=1, gap=1, workers=4, batch=4, **apart)
        deviation = lambda d: theory.expected_deviation(
            problem, learning_rate=0.1, period=8, delay=d
        )
        return f"{deviation(delay) / deviation(0):.2g}"

    text = str(cj.advise(0.1, 0.35, 16, period=8))
    assert "Delay 4 of period 8" in text
    noise, data = {"noise": 1.0}, {"noise": 0.0, "dissimilarity": 1.0}
    assert f"{times(4, **noise)} times Local SGD's where noise alone" in text
    assert f"{times(4, **data)} times where their data alone" in text
    assert f"makes that {times(8, **noise)} and {times(8, **data)} times" in text
    assert (times(4, **data), times(8, **data)) == ("3.5", "7.9")


@pytest.mark.parametrize(("exchange", "warns"), [(0.0, 0), (0.08, 1), (0.15, 0)])
def test_a_single_step_is_said_to_hide_a_part_on_gpus(exchange, warns):
    for period in (None, 8):
        text = str(cj.advise(0.1, exchange, 2, period=period))
        assert text.count("take a period and a delay of 2.") == warns


def test_jitter_costs_the_more_the_more_workers_wait():
    few, many = (cj.advise(0.1, 0.35, n, jitter=0.3) for n in (2, 200))
    assert 0.45 < few.ssgd_seconds < many.ssgd_seconds
    # The slowest of 200 steps takes twice the mean; over a round it evens out.
    assert many.ssgd_seconds - 0.35 > 2 * 0.1
    assert many.cocod_seconds < 0.16
    assert few == cj.advise(0.1, 0.35, 2, jitter=0.3)


def test_a_short_exchange_needs_no_overlap_with_steps():
    advice = cj.advise(0.1, 0.01, 16)
    assert not advice.pays
    assert advice.overlapped_ssgd_seconds == pytest.approx(advice.cocod_seconds)
    assert "S-SGD is as fast" in str(advice)
    assert "does not pay" in str(advice)


def test_a_long_period_needs_no_overlap():
    advice = cj.advise(0.1, 0.35, 16, period=100)
    assert not advice.pays
    assert "Local SGD is as fast" in str(advice)
    assert cj.advise(0.1, 0.35, 16, period=20).pays


def test_what_occupies_the_core_cannot_be_hidden():
    advice = cj.advise(0.1, 0.3, 4, busy=0.29, period=4)
    assert not advice.pays
    assert "occupies the processor for 0.29 s" in str(advice)
    assert cj.advise(0.1, 0.3, 4, busy=0.1, period=4).pays


def test_nothing_to_hide():
    advice = cj.advise(0.1, 0.0, 4)
    assert (advice.period, advice.delay, advice.pays) == (1, 0, False)
    assert "nothing that steps could hide" in str(advice)


def test_a_period_that_is_too_short_hides_a_part():
    advice = cj.advise(0.1, 0.35, 4, period=2)
    assert advice.delay == 2
    assert advice.cocod_seconds == pytest.approx(0.35 / 2)
    assert "Period 2 hides a part of the exchange; 4 would hide all." in str(advice)


# Whole or streamed


def test_the_seconds_of_streamed_rounds_are_those_of_the_closed_form():
    advice = cj.advise(0.1, 0.35, 16, period=8, latency=0.03)
    assert advice.streamed_seconds == pytest.approx(0.1)
    advice = cj.advise(0.1, 0.35, 16, period=8, latency=0.15)
    assert advice.streamed_seconds == pytest.approx(0.15 + 0.2 / 8)
    assert advice.cocod_seconds == pytest.approx(0.1)


@settings(max_examples=50, deadline=None)
@given(times, times, st.floats(0, 1), st.sampled_from([0.0, 0.3]))
def test_streaming_is_advised_only_where_it_is_as_fast(tc, tm, part, jitter):
    advice = cj.advise(tc, tm, 4, latency=part * tm, jitter=jitter)
    assert str(advice).count("tream: ") == advice.pays
    if advice.streamed:
        assert advice.pays
        assert advice.streamed_seconds <= 1.05 * advice.cocod_seconds


@pytest.mark.parametrize(
    ("options", "streamed", "reason"),
    [
        ({}, True, "Stream: it is as fast"),
        ({"latency": 0.01}, True, "Stream: it is as fast"),
        ({"latency": 0.2}, False, "each of 8 messages pays the latency"),
        # Both hold; what jitter costs cannot be told from what the latency costs.
        ({"latency": 0.2, "jitter": 0.3}, False, "pays the latency"),
        ({"jitter": 0.3}, False, "steps vary in time"),
        ({"devices": 8}, True, "workers of several devices"),
        ({"devices": 8, "latency": 0.2}, False, "pays the latency"),
        ({"devices": 8, "jitter": 0.3}, False, "steps vary in time"),
    ],
)
def test_whole_or_streamed_has_a_reason(options, streamed, reason):
    advice = cj.advise(0.1, 0.35, 64, period=8, **options)
    assert advice.streamed == streamed
    assert reason in str(advice)


@settings(max_examples=50, deadline=None)
@given(times, st.floats(1.1, 9.0), st.floats(0.1, 0.95))
def test_a_longer_period_makes_up_for_the_latency(tc, exchanges, part):
    advise = functools.partial(
        cj.advise, tc, tc * (exchanges + part), 4, latency=part * tc
    )
    text = str(advise())
    if "messages pays the latency" not in text:
        return
    period = int(text.split(" From period ")[1].split()[0])
    assert advise(period=period).streamed_seconds == pytest.approx(tc)
    assert advise(period=period - 1).streamed_seconds > tc
    # Where a step is shorter than the latency alone, nothing does.
    assert "From period" not in str(advise(latency=1.01 * tc, period=period))


def test_the_sentence_about_streaming_says_what_theory_says():
    text = str(cj.advise(0.1, 0.35, 16, period=8))
    # Unseen steps of period 8: 28 + 8 d of noise, so 36 and 60 with delays 1 and 4;
    # their squares 140 + 64 and, with 8 to 11 in place of 0 to 3, 492.
    said = f"is {36 / 60:.2g} times as large where noise alone drives them apart, and "
    assert f"{said}{204 / 492:.2g} times where their data alone do." in text


@pytest.mark.parametrize(
    ("exchange", "period", "reason"),
    [
        (0.09, 2, "one step hides the whole exchange"),
        (0.35, 1, "with period 1 a piece is the whole"),
    ],
)
def test_nothing_is_gained_by_streaming_what_one_step_hides(exchange, period, reason):
    advice = cj.advise(0.1, exchange, 16, period=period)
    assert not advice.streamed
    assert reason in str(advice)


def test_where_overlap_does_not_pay_nothing_is_said_of_streaming():
    advice = cj.advise(0.1, 0.01, 16, devices=4)
    assert not advice.pays
    assert not advice.streamed
    assert "tream:" not in str(advice)


def test_theory_allows_longer_streamed_periods():
    # 1 / (2 sqrt(2) · 0.05) - 1 = 6.07
    advice = cj.advise(0.1, 1.0, 16, learning_rate=0.05, smoothness=1.0)
    assert (advice.largest_period, advice.streamed, advice.pays) == (6, True, False)
    assert "allows period 6 at most" in str(advice)
    assert "With period 6 CoCoD-SGD takes 0.167 seconds" in str(advice)
    named = float(
        str(advice).split("needs a learning rate below about ")[1].split(".\n")[0]
    )
    assert theory.largest_period(0.99 * named, 1.0, delay=1) >= 10
    assert theory.largest_period(1.01 * named, 1.0, delay=1) < 10
    assert cj.advise(0.1, 1.0, 16, learning_rate=0.03, smoothness=1.0).pays


def test_theory_bounds_the_period():
    # 1 / (4 sqrt(2) · 0.05) = 3.54
    whole = functools.partial(cj.advise, 0.1, 1.0, 16, latency=0.5)
    advice = whole(learning_rate=0.05, smoothness=1.0)
    assert (advice.period, advice.largest_period, advice.pays) == (10, 3, False)
    assert "allows period 3 at most" in str(advice)
    assert "With period 3 CoCoD-SGD takes 0.333 seconds" in str(advice)
    # The learning rate that it names is one that will do.
    named = float(
        str(advice).split("needs a learning rate below about ")[1].split(".\n")[0]
    )
    assert theory.largest_period(0.99 * named, 1.0) >= 10
    assert theory.largest_period(1.01 * named, 1.0) < 10
    fine = whole(learning_rate=0.01, smoothness=1.0)
    assert (fine.largest_period, fine.pays) == (17, True)
    assert "allows period 17 at most" in str(fine)
    none = cj.advise(0.1, 1.0, 16, learning_rate=1.0, smoothness=1.0)
    assert (none.largest_period, none.pays) == (0, False)
    assert "allows no period" in str(none)


@pytest.mark.parametrize(
    ("arguments", "options", "match"),
    [
        ((0.0, 1.0, 2), {}, "step_seconds=0.0"),
        ((0.1, -1.0, 2), {}, "exchange_seconds=-1.0"),
        ((0.1, math.inf, 2), {}, "exchange_seconds=inf"),
        ((0.1, 1.0, 0), {}, "workers=0"),
        ((0.1, 1.0, 1), {}, "workers=1 has nothing to exchange"),
        ((0.1, 1e5, 2), {}, "are both in seconds"),
        ((0.1, 1.0, 2), {"busy": 1.1}, "busy=1.1"),
        ((0.1, 1.0, 2), {"latency": 1.1}, "latency=1.1 is a part of"),
        ((0.1, 1.0, 2), {"latency": -1.0}, "latency=-1.0"),
        ((0.1, 1.0, 2), {"devices": 0}, "devices=0"),
        ((0.1, 1.0, 2), {"jitter": -1.0}, "jitter=-1.0"),
        ((0.1, 1.0, 2), {"period": 0}, "period=0"),
        ((0.1, 1.0, 2), {"learning_rate": 0.1}, "give both, or neither"),
        ((0.1, 1.0, 2), {"smoothness": 1.0}, "give both, or neither"),
        ((0.1, 1.0, 2), {"learning_rate": 0.0, "smoothness": 1.0}, "learning_rate=0.0"),
    ],
)
def test_errors_name_the_argument(arguments, options, match):
    with pytest.raises(ValueError, match=match):
        cj.advise(*arguments, **options)


@pytest.mark.parametrize(
    ("exchange", "simpler"),
    [
        (2.149 / 3, "S-SGD"),
        (2.151 / 3, "Local SGD"),
        (0.799, "Local SGD"),
        (0.801, None),
    ],
)
def test_as_fast_is_slower_by_five_percent_at_most(exchange, simpler):
    """S-SGD that overlaps takes 1 / 3 + Tm, Local SGD 1 + Tm / 16, CoCoD-SGD 1."""
    text = str(cj.advise(1.0, exchange, 2, period=16))
    said = text.split("\n")[-1].partition(" is as fast")[0]
    assert said == simpler if simpler else "as fast" not in text
