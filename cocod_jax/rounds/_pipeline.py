"""Pieces whose exchange is two collectives in turn, each beside a step of its own."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cocod_jax._trees import choose
from cocod_jax._typing import ExchangeState, Params, Sent, Tree, Weight
from cocod_jax.exchanges._base import Exchange
from cocod_jax.rounds._portion import Arrival, Pieces
from cocod_jax.rules import MergeRule, RuleState


class Pipelined(NamedTuple):
    """State of an exchange of two collectives that is streamed; per worker.

    Attributes:
      rows: the exchange's own, with a leading axis [k], a row for each piece.
      snapshot: ``{dtype: [piece]}``, the piece that is between its two collectives.
      filled: bool scalar, whether there is one: False before the first step.
    """

    rows: ExchangeState
    snapshot: dict[str, jax.Array]
    filled: jax.Array


class Flying(NamedTuple):
    """What two collectives bring that are in flight, of two neighbouring pieces.

    Attributes:
      state: as it was.
      earlier: the row of the piece that the second collective is of.
      own: the row of the piece that the first one is of.
      halfway: what the first one brings.
      snapshot: of the piece that the first one is of.
    """

    state: Pipelined
    earlier: ExchangeState
    own: ExchangeState
    halfway: Any
    snapshot: dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Pipeline(Pieces):
    """Each piece goes through two steps, one for each of its two collectives.

    With a step begins the first collective of its piece, and the second of the piece
    before. Neither needs the other: both can run beside the step.
    """

    def init_state(self, rule: MergeRule, params: Params) -> RuleState:
        """Nothing is between its two collectives yet."""
        of_rule, rows = super().init_state(rule, params)
        state: Any = Pipelined(rows, self.take(params, -1), jnp.array(False))
        return RuleState(of_rule, state)

    def depart(
        self,
        exchange: Exchange,
        state: Any,
        step: Any,
        outgoing: Tree,
        snapshot: Tree,
        weight: Weight | None,
    ) -> tuple[Sent, Any]:
        """The first half of the step's piece, and the second of the one before."""
        assert exchange.phases is not None
        first, _, second = exchange.phases
        # Both rows are read before either is written: no piece waits for the other.
        earlier, own = (self.take_state(state.rows, t) for t in (step - 1, step))
        sent, earlier = second(earlier)
        halfway, own = first(own, outgoing, weight)
        arrival = Arrival(sent, state.snapshot, state.filled)
        return arrival, Flying(state, earlier, own, halfway, snapshot)

    def land(self, exchange: Exchange, flying: Any, step: Any) -> ExchangeState:
        """The state with what both collectives have brought."""
        assert exchange.phases is not None
        _, turn, _ = exchange.phases
        rows = self.put_state(flying.state.rows, step - 1, flying.earlier)
        rows = self.put_state(rows, step, turn(flying.own, flying.halfway))
        return Pipelined(rows, flying.snapshot, flying.state.filled | True)

    def arrived(self, sent: Sent, snapshot: Tree) -> Arrival:
        """What is of the piece before; ``snapshot`` is of the one that has begun."""
        del snapshot
        arrival: Any = sent
        return arrival


def pieces_for(
    rule: MergeRule, part_of: Callable[[Params], Params], count: int
) -> Pieces:
    """A k-th in every exchange, as many steps in flight as that has collectives."""
    kind = Pieces if rule.exchange.phases is None else Pipeline
    return kind(part_of, count)


def or_nothing(arrival: Arrival, after: Any, before: Any) -> Any:
    """What a merge made, or what there was before where nothing has arrived yet."""
    return after if arrival.filled is None else choose(arrival.filled, after, before)
