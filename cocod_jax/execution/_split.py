"""The split execution: a round as several programs."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cocod_jax._parts import all_of_it, whole_of
from cocod_jax._trees import at
from cocod_jax._typing import Batches, ExchangeState, Params, Sent, Tree
from cocod_jax.execution._in_flight import InFlight
from cocod_jax.execution._map import WorkerMap
from cocod_jax.rounds._pipeline import Pipeline
from cocod_jax.rounds._portion import Portion
from cocod_jax.rounds._round import Parts, Round, compose
from cocod_jax.rounds._types import (
    MergeMetrics,
    RoundMetrics,
    RoundState,
    StepMetrics,
)
from cocod_jax.rules._base import the_snapshot


class Split:
    """A round as separate programs: send, each local step, merge.

    None of them may overwrite what it is given, except the one that puts a merged piece
    into the parameters: XLA would copy it first on a CPU, which takes longer than new
    buffers do. So the snapshot is the state's own parameters.

    Args:
      round_: the round.
      compute: where the workers take their local steps, and merge.
      exchange: where they exchange, beside the steps if on other devices. The state of
        the exchange stays on these devices.
      near: whether to launch no local step before the one before the last is done.
    """

    def __init__(
        self, round_: Round, compute: WorkerMap, exchange: WorkerMap, near: bool
    ):
        rule, portion = round_.rule, round_.portion
        self._compute, self._exchange = compute, exchange
        self._portion = portion
        self._is_all = type(portion) is Portion and portion.part_of is all_of_it
        self._sends_snapshot = rule.outgoing is the_snapshot
        self._snapshot = compute.over(portion.take)
        self._outgoing = compute.over(functools.partial(_outgoing_of_round, round_))
        self._send = exchange.over(functools.partial(_send_of_round, round_))
        self._step = compute.over(functools.partial(_step_of_round, round_))
        self._stack = compute.over(_stack)
        self._merge = compute.over(functools.partial(_merge_of_round, round_))
        # A program of its own that does nothing else overwrites the parameters in
        # place. The merge of a piece that writes them takes twice as long where they
        # are copied, and four times where it may overwrite them, since it reads them
        # as well. Leaves that are not trained are the caller's: they may not be taken.
        self._streamed = round_.streamed
        self._put = compute.over(
            functools.partial(_put_of_round, round_),
            donate=(0,) if portion.part_of is all_of_it else (),
        )
        self._in_flight = InFlight() if near else None
        # One cache per run: a cache on the class would keep every run alive.
        self._number = functools.cache(self._place_number)
        parts = Parts(
            self.snapshot, self.send, self.step, self.merge, self.repeat, step_axis=1
        )
        self._round = compose(round_, parts)

    def __call__(
        self, state: RoundState, batches: Batches
    ) -> tuple[RoundState, RoundMetrics]:
        """Runs the round; all arrays move to their devices once, at its start."""
        own = self._compute.place(state._replace(exchange_state=()))
        own = own._replace(exchange_state=state.exchange_state)
        return self._round(own, self._compute.place(batches))

    def snapshot(self, state: RoundState) -> Tree:
        """The state's own parameters where all of them are exchanged: no copy."""
        if self._is_all:
            return state.params
        return self._snapshot(state.params, state.count)

    def send(self, state: RoundState, snapshot: Tree) -> tuple[Sent, ExchangeState]:
        """Sends; what the exchange's devices get is what they need."""
        outgoing = snapshot
        if not self._sends_snapshot:
            outgoing = self._outgoing(state.rule_state, state.count, snapshot)
        kept = snapshot if isinstance(self._portion, Pipeline) else ()
        needed = (state.exchange_state, state.count, outgoing, kept, state.weight)
        return self._send(*self._exchange.place(needed))

    def step(
        self, state: RoundState, batches: Batches, t: int
    ) -> tuple[RoundState, StepMetrics]:
        """One program; it takes its own batch out of the round's."""
        if self._in_flight is not None:
            self._in_flight.make_room()
        after, metrics = self._step(state, batches, self._number(len(state.count), t))
        if self._in_flight is not None:
            self._in_flight.launched(metrics.loss)
        return after._replace(params=whole_of(after.params, state.params)), metrics

    def repeat(
        self,
        one: Callable[[RoundState, int], tuple[RoundState, Any]],
        state: RoundState,
        start: int,
        stop: int,
    ) -> tuple[RoundState, list[Any]]:
        """One after the other."""
        taken = []
        for t in range(start, stop):
            state, metrics = one(state, t)
            taken.append(metrics)
        if not taken:
            return state, []
        return state, [self._stack(taken)]

    def merge(
        self, state: RoundState, snapshot: Tree, sent: Sent
    ) -> tuple[RoundState, MergeMetrics]:
        """Merges; what no merge reads stays out of the program."""
        light = state._replace(opt_state=(), model_state=(), exchange_state=())
        light, metrics = self._merge(light, snapshot, self._compute.place(sent))
        part = light.params
        if self._streamed:
            part = self._put(state.params, state.count, part)
        params = whole_of(part, state.params)
        return state._replace(params=params, rule_state=light.rule_state), metrics

    def _place_number(self, workers: int, t: int) -> Any:
        """The number of a local step, once for every worker."""
        return self._compute.place(np.full(workers, t, np.int32))


def _outgoing_of_round(
    round_: Round, rule_state: Any, count: jax.Array, snapshot: Tree
) -> Tree:
    own = round_.portion.take_state(rule_state, count)
    return round_.rule.outgoing(own, snapshot)


def _send_of_round(
    round_: Round,
    states: ExchangeState,
    count: jax.Array,
    outgoing: Tree,
    snapshot: Tree,
    weight: Any,
) -> tuple[Sent, ExchangeState]:
    portion, exchange = round_.portion, round_.rule.exchange
    sent, flying = portion.depart(exchange, states, count, outgoing, snapshot, weight)
    return sent, portion.land(exchange, flying, count)


# What is not trained does not come out: it would be copied.


def _step_of_round(
    round_: Round, state: RoundState, batches: Batches, t: jax.Array
) -> tuple[RoundState, StepMetrics]:
    return _trained(round_, *round_.step(state, at(batches, t)))


def _merge_of_round(
    round_: Round, state: RoundState, snapshot: Tree, sent: Sent
) -> tuple[RoundState, MergeMetrics]:
    after, metrics = round_.merge(state, snapshot, sent)
    if not round_.streamed:
        return _trained(round_, after, metrics)
    piece = round_.portion.take(after.params, state.count - round_.delay)
    return after._replace(params=piece), metrics


def _put_of_round(
    round_: Round, params: Params, count: jax.Array, piece: Tree
) -> Params:
    portion = round_.portion
    return portion.part_of(portion.put(params, count - round_.delay, piece))


def _trained(round_: Round, state: RoundState, metrics: Any) -> tuple[RoundState, Any]:
    part = round_.portion.part_of(state.params)
    return state._replace(params=part), metrics


def _stack(taken: list[Any]) -> Any:
    """[steps], the metrics of a worker's local steps as those of one loop."""
    return jax.tree.map(lambda *steps: jnp.stack(steps), *taken)
