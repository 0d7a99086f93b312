"""The round: send the snapshot, take local steps, merge what arrives."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from cocod_jax._text import shown
from cocod_jax._trees import at, barrier
from cocod_jax._typing import AxisName, Batches, ExchangeState, Params, Sent
from cocod_jax.rounds._checks import check_batches
from cocod_jax.rounds._convolutions import fast_in_loops
from cocod_jax.rounds._metrics import merge_metrics
from cocod_jax.rounds._step import StepFn
from cocod_jax.rounds._types import (
    MergeMetrics,
    RoundMetrics,
    RoundState,
    StepMetrics,
)
from cocod_jax.rules import MergeRule, RuleState


class Round(NamedTuple):
    """One round as pure functions of one worker; made by :func:`make_round`.

    ``run`` is ``send``, then ``delay`` times ``step``, then ``merge``, then the
    remaining steps, as one program. The split execution of
    :func:`cocod_jax.distribute` runs the same parts as separate programs.

    Attributes:
      init: ``(params, model_state=None, *, key=None) -> RoundState``, outside of the
        mapping transform, without a worker axis. Without a key all runs draw the same
        numbers, those of ``jax.random.key(0)``. A model state belongs to a stateful
        round only, and one key to a run (ValueError).
      step: ``(state, batch) -> (state, StepMetrics)``, one local step.
      rule: the merge rule; its exchange holds every collective of the round's own.
      period: k, local steps in a round.
      delay: d, local steps between the snapshot and the merge.
    """

    init: Callable[..., RoundState]
    step: StepFn
    rule: MergeRule
    period: int
    delay: int

    @property
    def axis_name(self) -> AxisName | None:
        """The axis of the workers, the rule's; None when it sends nothing."""
        return self.rule.axis_name

    def run(
        self, state: RoundState, batches: Batches
    ) -> tuple[RoundState, RoundMetrics]:
        """The whole round of one worker, as one program.

        Args:
          state: of one worker.
          batches: leaves of shape [period, ...], one batch for each local step.

        Returns:
          The state after the round, and what it reports.
        """
        check_batches(batches, self.period)
        return compose(self, self.send, _scan(self.step), self.merge)(state, batches)

    def send(self, state: RoundState) -> tuple[Sent, ExchangeState]:
        """Starts the exchange of the snapshot; holds every collective of the rule.

        Args:
          state: of one worker; its parameters are the snapshot.

        Returns:
          What is in flight, in the form in which it travels, and the next state of the
          exchange, to be installed after the merge (both per worker).
        """
        rule_state = RuleState(state.rule_state, state.exchange_state)
        return self.rule.send(rule_state, state.params, state.weight)

    def merge(
        self, state: RoundState, snapshot: Params, sent: Sent
    ) -> tuple[RoundState, MergeMetrics]:
        """Ends the exchange, and merges what arrives; no collective.

        Args:
          state: of one worker, after the steps that the exchange had.
          snapshot: its parameters when it sent.
          sent: what ``send`` returned first.

        Returns:
          The state with new parameters and the rule's new state, and what the merge
          reports.

        Raises:
          ValueError: when the exchange brings another tree than was sent, or the rule
            returns another tree than the parameters.
        """
        # What needs the mean alone, such as its distance, could run before the steps,
        # and the exchange would then have to end before them. And what needs the steps
        # alone, such as the momentum in another layout, could run between them and the
        # merge: a compiler may find that enough to hide the exchange behind.
        state, sent = barrier((state, sent))
        rule, params = self.rule, state.params
        outgoing = rule.outgoing(state.rule_state, snapshot)
        arriving = rule.receive(sent, outgoing)
        merged, rule_state = rule.apply(arriving, params, state.rule_state, snapshot)
        metrics = merge_metrics(params, snapshot, arriving, outgoing)
        state = state._replace(params=merged, rule_state=rule_state)
        # Metrics that run after the late steps would keep snapshot and mean till then.
        return barrier((state, metrics))


LocalSteps = Callable[
    [RoundState, Batches, int, int], tuple[RoundState, list[StepMetrics]]
]
"""``(state, batches, start, stop)``: the local steps from one to another. Their metrics
come in parts to be joined, none where there are no steps."""


def compose(
    round_: Round,
    send: Callable[[RoundState], tuple[Sent, ExchangeState]],
    local_steps: LocalSteps,
    merge: Callable[[RoundState, Params, Sent], tuple[RoundState, MergeMetrics]],
    *,
    step_axis: int = 0,
) -> Callable[[RoundState, Batches], tuple[RoundState, RoundMetrics]]:
    """A round of these parts, which may be pieces of one program or programs.

    Args:
      round_: the rule, the period and the delay.
      send: as ``Round.send``.
      local_steps: several times ``Round.step``.
      merge: as ``Round.merge``.
      step_axis: the axis of the local steps in their metrics.
    """

    def take(
        state: RoundState, batches: Batches, start: int, stop: int
    ) -> tuple[RoundState, list[StepMetrics]]:
        # Local steps carry what they read alone: the rest would travel through a loop,
        # or in and out of every program, for nothing.
        rule_state, exchange_state = state.rule_state, state.exchange_state
        reads_rule = round_.rule.correct is not None
        state = state._replace(
            rule_state=rule_state if reads_rule else (), exchange_state=()
        )
        state, metrics = local_steps(state, batches, start, stop)
        state = state._replace(rule_state=rule_state, exchange_state=exchange_state)
        return state, metrics

    def report(taken: list[StepMetrics], merged: MergeMetrics | None) -> RoundMetrics:
        join = lambda *parts: jnp.concatenate(parts, axis=step_axis)
        steps = jax.tree.map(join, *taken)
        if merged is None:
            zero = jnp.zeros_like(steps.grad_norm.take(0, step_axis))
            merged = MergeMetrics(zero, zero, zero)
        return RoundMetrics(**steps._asdict(), **merged._asdict())

    def run(state: RoundState, batches: Batches) -> tuple[RoundState, RoundMetrics]:
        if round_.axis_name is None:  # nothing is sent, and nothing arrives
            state, taken = take(state, batches, 0, round_.period)
            return state, report(taken, None)
        snapshot = state.params
        sent, exchange_state = send(state)  # first: the steps do not depend on it
        state, early = take(state, batches, 0, round_.delay)
        state, merged = merge(state, snapshot, sent)
        # Installed here: steps that carried it would wait for the exchange.
        state = state._replace(exchange_state=exchange_state)
        state, late = take(state, batches, round_.delay, round_.period)
        return state, report(early + late, merged)

    return run


def _scan(step: StepFn) -> LocalSteps:
    """The local steps as one loop, for one program."""

    def local_steps(
        state: RoundState, batches: Batches, start: int, stop: int
    ) -> tuple[RoundState, list[StepMetrics]]:
        if start == stop:  # an empty loop would be traced all the same
            return state, []

        take = fast_in_loops(step)

        def one(state: RoundState, t: jax.Array) -> tuple[RoundState, StepMetrics]:
            return take(state, at(batches, t))

        state, taken = lax.scan(one, state, jnp.arange(start, stop))
        return state, [taken]

    return local_steps


def check_round(round_: Any) -> None:
    """Raises TypeError unless this is a round."""
    if not isinstance(round_, Round):
        raise TypeError(
            f"round_={shown(round_)} must be a Round, as make_round returns it."
        )
