"""Which period and delay hide an exchange, whole or streamed, and whether that pays."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import NamedTuple

from cocod_jax import theory
from cocod_jax._checks import (
    check_counts,
    check_non_negative,
    check_period,
    check_positive,
)
from cocod_jax.measurement import Measurement
from cocod_jax.timeline import (
    SSGD,
    Algorithm,
    CoCoDSGD,
    Compute,
    LocalSGD,
    Streamed,
    simulate,
)

_CLOSE = 0.05  # a difference that a measurement would hardly show
_ENDLESS = 100_000  # local steps
# What drives workers apart; the other constants cancel in ratios of deviations.
_NOISE = theory.Problem(smoothness=1.0, noise=1.0, gap=0.0, workers=2, batch=2)
_DATA = dataclasses.replace(_NOISE, noise=0.0, dissimilarity=1.0)
_ONE_STEP = (
    "On GPUs a single step may hide a part only; take a period and a delay of 2."
)


class Advice(NamedTuple):
    """What :func:`advise` found; ``print`` it for the sentences.

    All seconds are predictions for one local step, waiting included.

    Attributes:
      period: k, the smallest that hides the exchange, or the one that was asked for.
      delay: d, the smallest that hides as much as the period can.
      ssgd_seconds: synchronous SGD.
      overlapped_ssgd_seconds: synchronous SGD that sends during the backward pass.
      local_sgd_seconds: Local SGD with this period.
      cocod_seconds: CoCoD-SGD with this period and delay.
      streamed_seconds: the same, streamed: a piece in every step.
      streamed: whether to stream: it is as fast, and its workers deviate less, or they
        have several devices.
      largest_period: the largest that Theorem 1 allows, whole or streamed as advised,
        0 when it allows none; None when there was no learning rate to tell.
      pays: whether CoCoD-SGD is clearly the fastest, within what the theory allows.
      sentences: all this in words.
    """

    period: int
    delay: int
    ssgd_seconds: float
    overlapped_ssgd_seconds: float
    local_sgd_seconds: float
    cocod_seconds: float
    streamed_seconds: float
    streamed: bool
    largest_period: int | None
    pays: bool
    sentences: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(self.sentences)


def advise(
    step_seconds: float | Measurement,
    exchange_seconds: float | None = None,
    workers: int | None = None,
    *,
    latency: float | None = None,
    busy: float = 0.0,
    jitter: float = 0.0,
    devices: int = 1,
    period: int | None = None,
    learning_rate: float | None = None,
    smoothness: float | None = None,
) -> Advice:
    r"""The smallest period and delay that hide an exchange, and what they bring.

    .. math:: k \, T_c + \text{busy} \ge T_m, \qquad d \, T_c + \text{busy} \ge T_m

    The seconds come from :func:`cocod_jax.timeline.simulate`. A delay below the period
    is for workers that keep step: after the merge nothing absorbs a straggler's pause.
    Streamed rounds, too, are for workers that keep step, and for messages whose latency
    is short beside a step: they send one in every step.

    Args:
      step_seconds: Tc, one local step, above 0; or what :func:`cocod_jax.measure`
        returned, which has ``exchange_seconds``, ``workers`` and ``latency`` as well.
      exchange_seconds: Tm, one exchange of all parameters, 0 or more; from a
        :class:`cocod_jax.timeline.Link`, say.
      workers: N, at least 2.
      latency: the part of Tm that does not depend on the bytes, 0 to Tm: the seconds
        of an exchange of a single number. None is 0, or what was measured.
      busy: seconds for which an exchange occupies the processor, 0 to Tm; see
        :func:`cocod_jax.timeline.simulate`.
      jitter: the coefficient of variation of a step's time, 0 or more. With it the
        seconds come from one random timeline, always the same.
      devices: F, of each worker, at least 1. Those of one worker communicate within
        its steps.
      period: k, when it is given already; None is the smallest that hides.
      learning_rate: of plain SGD; with momentum b, give learning rate / (1 - b).
      smoothness: L, the Lipschitz constant of the gradient; with the learning rate
        it says how long a period may be.

    Returns:
      An :class:`Advice`.

    Raises:
      ValueError: when a value is out of its range, when there is a single worker,
        when a measurement comes with what it has already, or numbers come without,
        when only one of ``learning_rate`` and ``smoothness`` is given, and when an
        exchange takes longer than 100,000 local steps.

    Examples:
      >>> advice = cj.advise(step_seconds=0.4, exchange_seconds=1.9, workers=2)
      >>> advice.period
      5
      >>> print(advice)
      A local step takes 0.4 s and an exchange among 2 workers 1.9 s.
      Period 5 hides the exchange behind the steps.
      Seconds per step: 0.4 CoCoD-SGD, 0.4 streamed, 0.78 Local SGD, 2.3 S-SGD, 2.03
      S-SGD that sends during the backward pass.
      Stream: it is as fast, or slower by 5% at most, and the workers' squared
      deviation is 0.43 times as large where noise alone drives them apart, and 0.22
      times where their data alone do. Where the workers' data have little in common,
      little deviation does not help: compare with Local SGD.
    """
    step_seconds, exchange_seconds, workers, latency = _given(
        step_seconds, exchange_seconds, workers, latency
    )
    _check_times(step_seconds, exchange_seconds, busy, workers)
    check_non_negative(latency=latency, jitter=jitter)
    check_counts(devices=devices)
    if (learning_rate is None) != (smoothness is None):
        raise ValueError(
            f"learning_rate={learning_rate!r} and smoothness={smoothness!r} bound the "
            "period together; give both, or neither."
        )
    # A division's rounding error must not add a step.
    hiding = max(0, math.ceil((exchange_seconds - busy) / step_seconds - 1e-9))
    period, _ = check_period(max(1, hiding) if period is None else period, None)
    delay = min(hiding, period)
    # Without jitter the workers keep step, and one stands for all.
    compute = Compute(step_seconds, workers if jitter else 1, jitter)
    clock = functools.partial(
        _seconds, exchange_seconds=exchange_seconds, latency=latency, busy=busy
    )
    seconds = functools.partial(clock, compute=compute)
    ssgd, overlapped = seconds(SSGD()), seconds(SSGD(sends_after=1 / 3))
    local_sgd, cocod = seconds(LocalSGD(period)), seconds(CoCoDSGD(period, delay))
    streamed = seconds(Streamed(period))
    sentences = [
        f"A local step takes {step_seconds:.3g} s and an exchange among {workers} "
        f"workers {exchange_seconds:.3g} s.",
        _hidden(period, delay, hiding),
        *([_ONE_STEP] if hiding == 1 else []),
        f"Seconds per step: {cocod:.3g} CoCoD-SGD, {streamed:.3g} streamed, "
        f"{local_sgd:.3g} Local SGD, {ssgd:.3g} S-SGD, {overlapped:.3g} S-SGD that "
        "sends during the backward pass.",
    ]
    objections = _as_fast(cocod, local_sgd, min(ssgd, overlapped))
    streams = False
    if objections and busy > exchange_seconds / 2:
        objections.append(
            f"Each exchange occupies the processor for {busy:.3g} s, which no overlap "
            "hides; a longer period has fewer exchanges."
        )
    elif not objections:
        steady = functools.partial(clock, compute=Compute(step_seconds, 1))
        enough = _hides_pieces(step_seconds, exchange_seconds, latency, busy)
        streams, reason = _whole_or_streamed(
            period, delay, seconds, steady, devices, enough
        )
        sentences.append(reason)
    largest = None
    if learning_rate is not None and smoothness is not None:
        constants = learning_rate, smoothness
        # Of whole rounds: a shorter one may need a delay of all of its steps.
        largest = theory.largest_period(*constants, delay=1 if streams else None)
        if period <= largest:
            sentences.append(
                f"Theory allows {_at_most(largest)} at this learning rate."
            )
        else:
            objections.append(_too_long(period, largest, smoothness, streams))
        if 0 < largest < period:
            shorter = CoCoDSGD(largest, min(hiding, largest))
            exposed = seconds(Streamed(largest) if streams else shorter)
            objections.append(
                f"With period {largest} CoCoD-SGD takes {exposed:.3g} seconds per step."
            )
    return Advice(
        period=period,
        delay=delay,
        ssgd_seconds=ssgd,
        overlapped_ssgd_seconds=overlapped,
        local_sgd_seconds=local_sgd,
        cocod_seconds=cocod,
        streamed_seconds=streamed,
        streamed=streams,
        largest_period=largest,
        pays=not objections,
        sentences=(*sentences, *objections),
    )


def _given(
    step_seconds: float | Measurement,
    exchange_seconds: float | None,
    workers: int | None,
    latency: float | None,
) -> tuple[float, float, int, float]:
    """Tc, Tm, N and the latency, as numbers or as they were measured."""
    if isinstance(step_seconds, Measurement):
        if exchange_seconds is not None or workers is not None:
            raise ValueError(
                f"exchange_seconds={exchange_seconds} and workers={workers} are in the "
                "measurement already; leave them out."
            )
        measured = step_seconds
        latency = measured.latency if latency is None else latency
        return measured.tc, measured.tm, measured.workers, latency
    if exchange_seconds is None or workers is None:
        raise ValueError(
            f"exchange_seconds={exchange_seconds} and workers={workers} must be "
            "numbers, unless the first argument is what cj.measure returned."
        )
    return step_seconds, exchange_seconds, workers, 0.0 if latency is None else latency


def _check_times(
    step_seconds: float, exchange_seconds: float, busy: float, workers: int
) -> None:
    check_positive(step_seconds=step_seconds)
    check_non_negative(exchange_seconds=exchange_seconds, busy=busy)
    check_counts(workers=workers)
    if workers == 1:
        raise ValueError("workers=1 has nothing to exchange; give at least 2.")
    if exchange_seconds > _ENDLESS * step_seconds:
        raise ValueError(
            f"exchange_seconds={exchange_seconds} is more than {_ENDLESS:,} local "
            f"steps of step_seconds={step_seconds}; are both in seconds?"
        )


def _seconds(
    algorithm: Algorithm,
    compute: Compute,
    exchange_seconds: float,
    latency: float,
    busy: float,
) -> float:
    """Seconds per step, from a single round when all rounds are the same."""
    rounds = max(2, math.ceil(200 / algorithm.period)) if compute.jitter else 1
    steps = rounds * algorithm.period
    timeline = simulate(
        algorithm, compute, exchange_seconds, latency=latency, steps=steps, busy=busy
    )
    return timeline.seconds_per_step


def _hidden(period: int, delay: int, hiding: int) -> str:
    if hiding == 0:
        return "The exchange leaves nothing that steps could hide."
    if hiding > period:
        return f"Period {period} hides a part of the exchange; {hiding} would hide all."
    if delay == period:
        return f"Period {period} hides the exchange behind the steps."
    times = lambda problem, delay: f"{_times(problem, period, delay, 0):.2g}"
    return (
        f"Delay {delay} of period {period} hides the exchange. The workers' squared "
        f"deviation is {times(_NOISE, delay)} times Local SGD's where noise alone "
        f"drives them apart, and {times(_DATA, delay)} times where their data alone "
        f"do; the whole period makes that {times(_NOISE, period)} and "
        f"{times(_DATA, period)} times."
    )


def _whole_or_streamed(
    period: int,
    delay: int,
    seconds: Callable[[Algorithm], float],
    steady: Callable[[Algorithm], float],
    devices: int,
    enough: int | None,
) -> tuple[bool, str]:
    """Whether to stream, and why.

    Args:
      period: k.
      delay: d of the whole exchange.
      seconds: of a step of an algorithm.
      steady: the same without jitter.
      devices: of each worker.
      enough: the period from which on a step hides a piece, if that is known.
    """
    whole, streamed = CoCoDSGD(period, delay), Streamed(period)
    if period == 1:
        return False, "Do not stream: with period 1 a piece is the whole."
    slower = seconds(streamed) > (1 + _CLOSE) * seconds(whole)
    times = lambda problem: f"{_times(problem, period, 1, delay):.2g}"
    if slower and steady(streamed) > (1 + _CLOSE) * steady(whole):
        return False, (
            f"Do not stream: each of {period} messages pays the latency, which a whole "
            "exchange pays once."
            + (f" From period {enough} on a step would hide it." if enough else "")
        )
    if slower:
        return False, (
            "Do not stream: steps vary in time, and streamed workers wait for each "
            "other in every step."
        )
    if devices > 1:
        return True, (
            "Stream: workers of several devices communicate within their steps, and "
            "compilers were seen to hide a piece beside such a step, but not a whole "
            "exchange behind several."
        )
    if delay == 1:
        return False, (
            "Do not stream: one step hides the whole exchange, and the workers deviate "
            "no more."
        )
    return True, (
        f"Stream: it is as fast, or slower by {_CLOSE:.0%} at most, and the workers' "
        f"squared deviation is {times(_NOISE)} times as large where noise alone drives "
        f"them apart, and {times(_DATA)} times where their data alone do. Where the "
        "workers' data have little in common, little deviation does not help: compare "
        "with Local SGD."
    )


def _hides_pieces(
    step: float, exchange: float, latency: float, busy: float
) -> int | None:
    """The smallest period whose pieces a step hides, where they do not slow it."""
    if busy or latency >= step:
        return None
    return math.ceil((exchange - latency) / (step - latency) - 1e-9)


def _times(problem: theory.Problem, period: int, delay: int, other: int) -> float:
    """The workers' squared deviation with a delay, divided by that with another."""
    deviation = lambda delay: theory.expected_deviation(
        problem, learning_rate=1.0, period=period, delay=delay
    )
    return deviation(delay) / deviation(other)


def _as_fast(cocod: float, local_sgd: float, synchronous: float) -> list[str]:
    """What is simpler and, to a few per cent, as fast as CoCoD-SGD."""
    as_fast = f"is as fast, or slower by {_CLOSE:.0%} at most, and its workers"
    if synchronous <= (1 + _CLOSE) * cocod:
        return [f"S-SGD {as_fast} never differ: overlap with local steps does not pay."]
    if local_sgd <= (1 + _CLOSE) * cocod:
        return [f"Local SGD {as_fast} differ less: overlap does not pay."]
    return []


def _too_long(period: int, largest: int, smoothness: float, streams: bool) -> str:
    unseen = period + (1 if streams else period)
    within = 1 / (2 * math.sqrt(2) * unseen * smoothness)
    return (
        f"Theory, which is cautious, allows {_at_most(largest)} at this learning rate; "
        f"period {period} needs a learning rate below about {within:.3g}."
    )


def _at_most(largest: int) -> str:
    return f"period {largest} at most" if largest else "no period"
