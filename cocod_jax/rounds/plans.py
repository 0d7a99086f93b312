"""Plans: which round comes next. ``cj.plans``.

A plan is a pure function of the local step at which a round begins, so that a run that
goes on from a checkpoint goes on with its plan. Periods change after a merge alone.
All rounds of a plan take the same state. Each period is one compilation::

    distribute = functools.cache(cj.distribute)
    step = 0
    while step < steps:
        round_ = plan(step)
        batches = next_batches(round_.period)
        state, metrics = distribute(round_)(state, batches)
        step += round_.period
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import optax

from cocod_jax._checks import (
    check_counts,
    check_non_negative,
    check_positive,
    check_takes,
    check_whole,
)
from cocod_jax._text import shown
from cocod_jax.rounds._round import Round, check_round


class Plan(Protocol):
    """``plan(step, loss=None) -> Round``, the round that begins at this local step."""

    def __call__(self, step: int, loss: float | None = None) -> Round:
        """The round.

        Args:
          step: local steps of a worker so far.
          loss: the workers' mean loss lately; plans other than :func:`adacomm` do not
            need it. To read it from the metrics of a round is to wait for that round.
        """
        ...


def with_period(round_: Round, period: int) -> Round:
    """The same round with another number of local steps, for the same state.

    A delay of the whole period stays so; another delay stays the number of steps that
    it is, as far as the period allows.

    Args:
      round_: what :func:`cocod_jax.make_round` returned. A rule that was made for its
        period, such as :func:`cocod_jax.rules.vrl_sgd`, is not made for another one.
      period: k, local steps in a round, at least 1 (shared).

    Raises:
      TypeError: when ``round_`` is not a Round.
      ValueError: when ``period`` is not an integer of at least 1, or the round is
        streamed: its state has a row for each of k pieces.

    Examples:
      >>> loss = lambda w, batch: 0.5 * (w - batch) ** 2
      >>> rule = cj.cocod("workers")
      >>> round_ = cj.make_round(loss, optax.sgd(0.1), rule, period=4, delay=2)
      >>> longer = cj.plans.with_period(round_, 16)
      >>> longer.period, longer.delay
      (16, 2)
    """
    check_round(round_)
    check_counts(period=period)
    if round_.streamed:
        raise ValueError(
            f"period={period} for a streamed round of {round_.period} pieces, which "
            "its state has rows for; make another round, and another state."
        )
    is_whole = round_.delay == round_.period
    delay = period if is_whole else min(round_.delay, period)
    return round_._replace(period=period, delay=delay)


def stages(rounds: Mapping[int, Round]) -> Plan:
    """One round after another: a warm-up, or post-local SGD.

    A round of period 1 and delay 0 with :func:`cocod_jax.cocod` averages the parameters
    in every step. With an optimizer that is linear in the gradients, such as SGD with
    momentum, the workers' mean then follows synchronous SGD.

    Args:
      rounds: the round of each stage, by the local step with which the stage begins;
        the first begins with 0. A stage begins after the first merge at or behind its
        step.

    Returns:
      A :class:`Plan`.

    Raises:
      TypeError: when ``rounds`` is no mapping, or a value no Round.
      ValueError: when a step is not an integer of 0 or more, or none is 0.

    Examples:
      >>> loss = lambda w, batch: 0.5 * (w - batch) ** 2
      >>> inner, rule = optax.sgd(0.1), cj.cocod("workers")
      >>> warm_up = cj.make_round(loss, inner, rule, period=1, delay=0)
      >>> main = cj.make_round(loss, inner, rule, period=8)
      >>> plan = cj.plans.stages({0: warm_up, 100: main})
      >>> plan(99).period, plan(100).period
      (1, 8)

    References:
      Lin et al., `Don't Use Large Mini-Batches, Use Local SGD
      <https://arxiv.org/abs/1808.07217>`_, ICLR 2020 (post-local SGD).
    """
    if not isinstance(rounds, Mapping):
        raise TypeError(
            f"rounds={shown(rounds)} must be a mapping of first steps to rounds."
        )
    for step, round_ in rounds.items():
        check_whole(step=step)
        check_round(round_, f"rounds[{step}]")
    if 0 not in rounds:
        raise ValueError(f"rounds begins with step {min(rounds, default=None)}, not 0.")
    # A mapping may change later.
    first_steps, by_step = sorted(rounds), dict(rounds)

    def plan(step: int, loss: float | None = None) -> Round:
        del loss
        check_whole(step=step)
        return by_step[max(first for first in first_steps if first <= step)]

    return plan


def stagewise(round_: Round, steps: int, longest: int) -> Plan:
    r"""STL-SGD: every stage is twice as long as the last, and so is its period.

    .. math:: k_s = 2^s k_0, \qquad T_s = 2^s T_0, \qquad s = 0, 1, 2, ...

    The learning rate, which the paper halves with each stage, is the optimizer's.

    Args:
      round_: that of the first stage, with the period k_0.
      steps: T_0, the local steps of the first stage, at least 1 (shared).
      longest: the period not to exceed (shared).

    Returns:
      A :class:`Plan`.

    Raises:
      TypeError, ValueError: as :func:`with_period`; ValueError when ``steps`` is not
        an integer of at least 1, or ``longest`` not one of at least k_0.

    Examples:
      >>> loss = lambda w, batch: 0.5 * (w - batch) ** 2
      >>> round_ = cj.make_round(loss, optax.sgd(0.1), cj.cocod("workers"), period=2)
      >>> plan = cj.plans.stagewise(round_, steps=100, longest=16)
      >>> [plan(step).period for step in (0, 99, 100, 300, 700, 1500)]
      [2, 2, 4, 8, 16, 16]

    References:
      Shen, Cheng, Liu, Xu, `STL-SGD: Speeding Up Local SGD with Stagewise Communication
      Period <https://arxiv.org/abs/2006.06377>`_, AAAI 2021.

    .. note::
       This is the variant for identically distributed data; for others the paper
       multiplies the period by the root of 2.
    """
    check_counts(steps=steps)
    # After s stages, (2^s - 1) T_0 steps have been taken.
    stage = lambda step: (step // steps + 1).bit_length() - 1
    return _by_factor(round_, longest, lambda step, loss: 2 ** stage(step))


def qsr(
    round_: Round,
    learning_rate: optax.Schedule,
    alpha: float,
    longest: int,
    *,
    warmup_steps: int = 0,
) -> Plan:
    r"""The quadratic synchronisation rule: the smaller the rate, the longer the period.

    .. math:: k = \max\bigl(k_0, \lfloor (\alpha / \gamma_t)^2 \rfloor\bigr)

    Args:
      round_: that of large learning rates, with the period k_0.
      learning_rate: the schedule of the inner optimizer, ``(step) -> rate``.
      alpha: in the units of the learning rate: the period grows where the rate is below
        alpha over the root of k_0.
      longest: the period not to exceed: at the end of most schedules the rate is 0
        (shared).
      warmup_steps: until this step the rate is that of this step (shared).

    Returns:
      A :class:`Plan`.

    Raises:
      TypeError, ValueError: as :func:`with_period`; TypeError when ``learning_rate`` is
        not a function of a step; ValueError when ``alpha`` is not above 0,
        ``warmup_steps`` not an integer of 0 or more, or ``longest`` not one of at least
        k_0.

    Examples:
      >>> loss = lambda w, batch: 0.5 * (w - batch) ** 2
      >>> schedule = optax.cosine_decay_schedule(0.4, 1000)
      >>> rule = cj.cocod("workers")
      >>> round_ = cj.make_round(loss, optax.sgd(schedule), rule, period=4)
      >>> plan = cj.plans.qsr(round_, schedule, alpha=0.5, longest=64)
      >>> [plan(step).period for step in (0, 500, 700, 800, 900, 1000)]
      [4, 4, 32, 64, 64, 64]

    References:
      Gu et al., `A Quadratic Synchronization Rule for Distributed Deep Learning
      <https://arxiv.org/abs/2310.14423>`_, ICLR 2024.

    .. note::
       k is rounded down to k_0 times a power of two. Each period is a compilation, and
       the paper's would be another in almost every round.
    """
    check_takes(("step",), learning_rate=learning_rate)
    check_positive(alpha=alpha)
    check_whole(warmup_steps=warmup_steps)

    def factor(step: int, loss: float | None) -> float:
        at_step = max(step, warmup_steps)
        rate = _on_host(learning_rate(at_step))
        check_non_negative(**{f"learning_rate({at_step})": rate})
        return (alpha / rate) ** 2 / round_.period if rate > 0 else math.inf

    return _by_factor(round_, longest, factor)


def adacomm(round_: Round, first_loss: float) -> Plan:
    r"""AdaComm: workers exchange seldom at first, and more often as the loss falls.

    .. math:: k = \Bigl\lceil k_0 \sqrt{F_t / F_0} \Bigr\rceil

    Far from a minimum the time of an exchange is better spent on steps. Near it the
    workers' drift is what is left of the error.

    Args:
      round_: that of the beginning, with the longest period k_0.
      first_loss: F_0, the workers' mean loss at the beginning, above 0.

    Returns:
      A :class:`Plan` that needs ``loss``, F_t; without one, before the first is known,
      it is F_0.

    Raises:
      TypeError, ValueError: as :func:`with_period`; ValueError when ``first_loss`` is
        not above 0; in use, when ``loss`` is negative or not finite.

    Examples:
      >>> loss = lambda w, batch: 0.5 * (w - batch) ** 2
      >>> round_ = cj.make_round(loss, optax.sgd(0.1), cj.cocod("workers"), period=16)
      >>> plan = cj.plans.adacomm(round_, first_loss=4.0)
      >>> [plan(0, loss).period for loss in (4.0, 3.0, 1.0, 0.2, 0.0)]
      [16, 16, 8, 4, 1]

    References:
      Wang, Joshi, `Adaptive Communication Strategies to Achieve the Best Error-Runtime
      Trade-off in Local-Update SGD <https://arxiv.org/abs/1810.08313>`_, MLSys 2019.

    .. note::
       k is k_0 over a power of two, the smallest that is not below the rule's: each
       period is a compilation. The paper decides anew after a fixed time, and halves a
       period that would not fall; here the loss alone decides, whenever it is given.
    """
    check_positive(first_loss=first_loss)
    _check_flexible(round_)

    def plan(step: int, loss: float | None = None) -> Round:
        check_whole(step=step)
        loss = first_loss if loss is None else _on_host(loss)
        check_non_negative(loss=loss)
        share = loss / first_loss
        wanted, period = math.ceil(math.sqrt(share) * round_.period), round_.period
        while period > 1 and (period + 1) // 2 >= wanted:
            period = (period + 1) // 2
        return with_period(round_, period)

    return plan


def two_level(near: Round, far: Round, times: int) -> Plan:
    """Two rounds that take turns: often within a group of workers, seldom across.

    Args:
      near: with an exchange such as :func:`cocod_jax.exchanges.within`.
      far: with an exchange of all workers, for the same state.
      times: every how many rounds is ``far``, at least 1 (shared).

    Returns:
      A :class:`Plan`: ``times`` - 1 rounds of ``near``, then one of ``far``.

    Raises:
      TypeError: when ``near`` or ``far`` is not a Round.
      ValueError: when ``times`` is not an integer of at least 1.

    Examples:
      >>> loss = lambda w, batch: 0.5 * (w - batch) ** 2
      >>> inner, host = optax.sgd(0.1), cj.exchanges.within("workers", 2)
      >>> near = cj.make_round(loss, inner, cj.cocod(host), period=2)
      >>> far = cj.make_round(loss, inner, cj.cocod("workers"), period=4)
      >>> plan = cj.plans.two_level(near, far, times=3)
      >>> [plan(step) is far for step in (0, 2, 4, 8, 10, 12)]
      [False, False, True, False, False, True]

    References:
      Lin et al., `Don't Use Large Mini-Batches, Use Local SGD
      <https://arxiv.org/abs/1808.07217>`_, ICLR 2020 (hierarchical local SGD).
    """
    check_round(near, "near")
    check_round(far, "far")
    check_counts(times=times)
    steps_of_near = (times - 1) * near.period

    def plan(step: int, loss: float | None = None) -> Round:
        del loss
        check_whole(step=step)
        return near if step % (steps_of_near + far.period) < steps_of_near else far

    return plan


def _by_factor(
    round_: Round,
    longest: int,
    factor: Callable[[int, float | None], float],
) -> Plan:
    """The round with its period times a power of two: the largest up to the factor."""
    _check_flexible(round_)
    check_counts(longest=longest)
    if longest < round_.period:
        raise ValueError(
            f"longest={longest} is shorter than the round's period={round_.period}."
        )

    def plan(step: int, loss: float | None = None) -> Round:
        check_whole(step=step)
        most = min(factor(step, loss), longest / round_.period)
        power = math.floor(math.log2(max(most, 1)))
        return with_period(round_, 2**power * round_.period)

    return plan


def _check_flexible(round_: Round) -> None:
    """Raises as :func:`with_period` unless this is a round of any period."""
    check_round(round_)
    with_period(round_, round_.period)


def _on_host(loss: Any) -> Any:
    """A loss as the metrics of a round have it, or what is none as it is."""
    return loss.item() if getattr(loss, "ndim", None) == 0 else loss
