"""The round: send the snapshot, take local steps, merge what arrives."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from cocod_jax._checks import check_pair
from cocod_jax._text import shown
from cocod_jax._trees import at, barrier
from cocod_jax._typing import AxisName, Batches, ExchangeState, Sent, Tree
from cocod_jax.exchanges._base import Exchange
from cocod_jax.exchanges._shards import Shards
from cocod_jax.rounds._checks import check_batches
from cocod_jax.rounds._convolutions import fast_in_loops
from cocod_jax.rounds._metrics import merge_metrics
from cocod_jax.rounds._pipeline import or_nothing
from cocod_jax.rounds._portion import Pieces, Portion
from cocod_jax.rounds._step import StepFn
from cocod_jax.rounds._types import (
    MergeMetrics,
    RoundMetrics,
    RoundState,
    StepMetrics,
)
from cocod_jax.rules import MergeRule


class Round(NamedTuple):
    """One round as pure functions of one worker; made by :func:`make_round`.

    ``run`` is ``send``, then ``delay`` times ``step``, then ``merge``, then the
    remaining steps, as one program; in a streamed round it is ``period`` times
    ``send``, ``step`` and ``merge``, each time of another piece. The split execution of
    :func:`cocod_jax.distribute` runs the same parts as separate programs.

    Attributes:
      init: ``(params, model_state=None, *, key=None) -> RoundState``, outside of the
        mapping transform, without a worker axis. Without a key all runs draw the same
        numbers, those of ``jax.random.key(0)``. A model state belongs to a stateful
        round only, and one key to a run (ValueError).
      step: ``(state, batch) -> (state, StepMetrics)``, one local step.
      portion: what of the parameters each exchange is of.
      rule: the merge rule; its exchange holds every collective of the round's own.
      period: k, local steps in a round.
      delay: d, local steps between the snapshot and the merge.
      remake: ``(shards, rule) -> Round``, for ``over``.
    """

    init: Callable[..., RoundState]
    step: StepFn
    portion: Portion
    rule: MergeRule
    period: int
    delay: int
    remake: Callable[[Shards | None, MergeRule], "Round"]

    @property
    def streamed(self) -> bool:
        """Whether every local step has an exchange, of a piece."""
        return isinstance(self.portion, Pieces)

    @property
    def axis_name(self) -> AxisName | None:
        """The axis of the workers, the rule's; None when it sends nothing."""
        return self.rule.axis_name

    def over(self, shards: Shards | None) -> "Round":
        """The same for workers whose devices share the parameters so; None do not."""
        if shards is None:
            return self
        own = self.remake(shards, self.rule)
        return own._replace(period=self.period, delay=self.delay)

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
        fast = fast_in_loops(self.step)
        step = lambda state, batches, t: fast(state, at(batches, t))
        exchange, relay, land = self.rule.exchange, None, None
        if exchange.phases is not None and self.streamed:
            land = functools.partial(_land, self)
        elif exchange.phases is not None:
            first, turn, second = exchange.phases
            exchange = exchange._replace(send=first)
            relay = functools.partial(_relay, turn, second)
        send = lambda state, snapshot: self._depart(exchange, state, snapshot)
        parts = Parts(
            self.snapshot, send, step, self.merge, _scan, relay=relay, land=land
        )
        return compose(self, parts)(state, batches)

    def snapshot(self, state: RoundState) -> Tree:
        """What of a worker's parameters the exchange that begins now is of.

        Args:
          state: of one worker.

        Returns:
          s_i, its parameters, or those that are trained; in a streamed round the piece
          of them whose turn it is, ``{dtype: [piece]}``.
        """
        return self.portion.take(state.params, state.count)

    def send(self, state: RoundState) -> tuple[Sent, ExchangeState]:
        """Starts the exchange of the snapshot; holds every collective of the rule.

        Args:
          state: of one worker; its parameters are the snapshot.

        Returns:
          What is in flight, in the form in which it travels, and the next state of the
          exchange, to be installed after the merge (both per worker).
        """
        exchange = self.rule.exchange
        sent, flying = self._depart(exchange, state, self.snapshot(state))
        return sent, self.portion.land(exchange, flying, state.count)

    def _depart(
        self, exchange: Exchange, state: RoundState, snapshot: Tree
    ) -> tuple[Sent, Any]:
        """``send`` by this exchange, before what it brings is made a state of."""
        own = self.portion.take_state(state.rule_state, state.count)
        outgoing = self.rule.outgoing(own, snapshot)
        return self.portion.depart(
            exchange,
            state.exchange_state,
            state.count,
            outgoing,
            snapshot,
            state.weight,
        )

    def merge(
        self, state: RoundState, snapshot: Tree, sent: Sent
    ) -> tuple[RoundState, MergeMetrics]:
        """Ends the exchange, and merges what arrives; no collective.

        Args:
          state: of one worker, after the steps that the exchange had.
          snapshot: what ``snapshot`` returned when it sent.
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
        state, sent, snapshot = barrier((state, sent, snapshot))
        rule, portion, since = self.rule, self.portion, state.count - self.delay
        arrival = portion.arrived(sent, snapshot)
        snapshot = arrival.snapshot
        params = portion.take(state.params, since)
        own = portion.take_state(state.rule_state, since)
        outgoing = rule.outgoing(own, snapshot)
        arriving = rule.receive(arrival.sent, outgoing)
        applied = rule.apply(arriving, params, own, snapshot)
        merged, after = or_nothing(arrival, applied, (params, own))
        metrics = merge_metrics(params, snapshot, arriving, outgoing)
        metrics = or_nothing(arrival, metrics, optax.tree.zeros_like(metrics))
        state = state._replace(
            params=portion.put(state.params, since, merged),
            rule_state=portion.put_state(state.rule_state, since, after),
        )
        # Metrics that run after the late steps would keep snapshot and mean till then.
        return barrier((state, metrics))


class Parts(NamedTuple):
    """What a round is made of: parts of one program, or programs of their own.

    Attributes:
      snapshot: as ``Round.snapshot``.
      send: ``(state, snapshot)``, as ``Round.send``.
      step: ``(state, batches, t)``, ``Round.step`` with batch t of the round's.
      merge: as ``Round.merge``.
      repeat: ``(one, state, start, stop)``, where ``one(state, t)`` returns a state and
        metrics, for every t. The metrics come back stacked, in a list of one tree; in
        an empty list where there are none.
      step_axis: the axis along which ``repeat`` stacks.
      relay: ``(state, sent, exchange_state)``, the second half of a ``send`` that is
        the first half, when half of the ``delay`` steps are done; the state comes back
        as it was. None where ``send`` is all of it.
      land: ``(state, flying)``, what ``send`` of a streamed round returned second, as
        the exchange's state after the merge; the state comes back as it was. None where
        that is one already.
    """

    snapshot: Callable[[RoundState], Tree]
    send: Callable[[RoundState, Tree], tuple[Sent, ExchangeState]]
    step: Callable[[RoundState, Batches, Any], tuple[RoundState, StepMetrics]]
    merge: Callable[[RoundState, Tree, Sent], tuple[RoundState, MergeMetrics]]
    repeat: Callable[..., tuple[RoundState, list[Any]]]
    step_axis: int = 0
    relay: Callable[..., tuple[RoundState, Sent, ExchangeState]] | None = None
    land: Callable[[RoundState, Any], tuple[RoundState, ExchangeState]] | None = None


def compose(
    round_: Round, parts: Parts
) -> Callable[[RoundState, Batches], tuple[RoundState, RoundMetrics]]:
    """A round of these parts; the rule, the period and the delay are ``round_``'s."""
    Taken = tuple[RoundState, list[StepMetrics]]

    def take(state: RoundState, batches: Batches, start: int, stop: int) -> Taken:
        one = lambda state, t: parts.step(state, batches, t)
        # Local steps carry what they read alone: the rest would travel through a loop,
        # or in and out of every program, for nothing.
        light = _light(state, round_.rule)
        light, metrics = parts.repeat(one, light, start, stop)
        return _heavy(light, state), metrics

    def whole(
        state: RoundState, batches: Batches
    ) -> tuple[RoundState, StepMetrics, MergeMetrics]:
        snapshot = parts.snapshot(state)
        sent, exchange_state = parts.send(
            state, snapshot
        )  # first: no step depends on it
        early, turn = [], 0
        if parts.relay is not None:
            turn = round_.delay // 2
            state, early = take(state, batches, 0, turn)
            state, sent, exchange_state = parts.relay(state, sent, exchange_state)
        state, beside = take(state, batches, turn, round_.delay)
        state, merged = parts.merge(state, snapshot, sent)
        # Installed here: steps that carried it would wait for the exchange.
        state = state._replace(exchange_state=exchange_state)
        state, late = take(state, batches, round_.delay, round_.period)
        return state, joined(early + beside + late), merged

    def piece(
        state: RoundState, batches: Batches, t: Any
    ) -> tuple[RoundState, tuple[StepMetrics, MergeMetrics]]:
        snapshot = parts.snapshot(state)
        sent, exchange_state = parts.send(state, snapshot)
        light, step = parts.step(_light(state, round_.rule), batches, t)
        state, merged = parts.merge(_heavy(light, state), snapshot, sent)
        if parts.land is not None:
            state, exchange_state = parts.land(state, exchange_state)
        return state._replace(exchange_state=exchange_state), (step, merged)

    def joined(taken: list[StepMetrics]) -> StepMetrics:
        join = lambda *parts_: jnp.concatenate(parts_, axis=parts.step_axis)
        return jax.tree.map(join, *taken)

    def run(state: RoundState, batches: Batches) -> tuple[RoundState, RoundMetrics]:
        if round_.axis_name is None:  # nothing is sent, and nothing arrives
            state, taken = take(state, batches, 0, round_.period)
            steps = joined(taken)
            zero = jnp.zeros_like(steps.grad_norm.take(0, parts.step_axis))
            merged = MergeMetrics(zero, zero, zero)
        elif round_.streamed:
            one = lambda state, t: piece(state, batches, t)
            state, ((steps, merged),) = parts.repeat(one, state, 0, round_.period)
        else:
            state, steps, merged = whole(state, batches)
        return state, RoundMetrics(**steps._asdict(), **merged._asdict())

    return run


def _relay(
    turn: Callable[..., ExchangeState],
    second: Callable[..., tuple[Sent, ExchangeState]],
    state: RoundState,
    sent: Sent,
    exchange_state: ExchangeState,
) -> tuple[RoundState, Sent, ExchangeState]:
    """The second collective of an exchange, between two loops of steps."""
    # Neither loop could run beside both: one has to wait for the first collective.
    state, sent, exchange_state = barrier((state, sent, exchange_state))
    sent, exchange_state = check_pair(
        second(turn(exchange_state, sent)), "the second half of send", "sent, state"
    )
    return state, sent, exchange_state


def _land(
    round_: Round, state: RoundState, flying: Any
) -> tuple[RoundState, ExchangeState]:
    """The exchange's state after a step that a collective was in flight beside."""
    # What needs that collective alone would end it before the step does.
    params, flying = barrier((state.params, flying))
    after = round_.portion.land(round_.rule.exchange, flying, state.count - 1)
    return state._replace(params=params), after


def _light(state: RoundState, rule: MergeRule) -> RoundState:
    """What a local step reads and writes."""
    rule_state = () if rule.correct is None else state.rule_state
    return state._replace(rule_state=rule_state, exchange_state=())


def _heavy(light: RoundState, state: RoundState) -> RoundState:
    """The whole state after local steps."""
    return light._replace(
        rule_state=state.rule_state, exchange_state=state.exchange_state
    )


def _scan(
    one: Callable[[RoundState, jax.Array], tuple[RoundState, Any]],
    state: RoundState,
    start: int,
    stop: int,
) -> tuple[RoundState, list[Any]]:
    """Local steps as one loop, for one program."""
    if start == stop:  # an empty loop would be traced all the same
        return state, []
    state, metrics = lax.scan(one, state, jnp.arange(start, stop))
    return state, [metrics]


def check_round(round_: Any, name: str = "round_") -> None:
    """Raises TypeError, with the argument's name, unless this is a round."""
    if not isinstance(round_, Round):
        raise TypeError(
            f"{name}={shown(round_)} must be a Round, as make_round returns it."
        )
