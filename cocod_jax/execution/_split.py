"""The split execution: a round as several programs."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cocod_jax._trees import at
from cocod_jax._typing import Batches, ExchangeState, Params, Sent
from cocod_jax.execution._map import WorkerMap
from cocod_jax.rounds._round import Round, compose
from cocod_jax.rounds._trainable import all_of_it, whole_of
from cocod_jax.rounds._types import (
    MergeMetrics,
    RoundMetrics,
    RoundState,
    StepMetrics,
)
from cocod_jax.rules._base import the_snapshot


class Split:
    """A round as separate programs: send, each local step, merge.

    None of them may overwrite what it is given: XLA would copy it first on a CPU, which
    takes longer than new buffers do. So the snapshot is the state's own parameters.

    Args:
      round_: the round.
      compute: where the workers take their local steps, and merge.
      exchange: where they exchange, beside the steps if on other devices. The state of
        the exchange stays on these devices.
    """

    def __init__(self, round_: Round, compute: WorkerMap, exchange: WorkerMap):
        rule = round_.rule
        self._compute, self._exchange = compute, exchange
        trains_all = round_.part_of is all_of_it
        self._outgoing = compute.over(functools.partial(_outgoing_of_round, round_))
        self._sends_snapshot = rule.outgoing is the_snapshot and trains_all
        self._send = exchange.over(rule.exchange.send)
        self._step = compute.over(functools.partial(_step_of_round, round_))
        self._merge = compute.over(functools.partial(_merge_of_round, round_))
        # One cache per run: a cache on the class would keep every run alive.
        self._number = functools.cache(self._place_number)
        self._round = compose(
            round_, self.send, self.local_steps, self.merge, step_axis=1
        )

    def __call__(
        self, state: RoundState, batches: Batches
    ) -> tuple[RoundState, RoundMetrics]:
        """Runs the round; all arrays move to their devices once, at its start."""
        own = self._compute.place(state._replace(exchange_state=()))
        own = own._replace(exchange_state=state.exchange_state)
        return self._round(own, self._compute.place(batches))

    def send(self, state: RoundState) -> tuple[Sent, ExchangeState]:
        """Sends; the exchange's devices get only what they need."""
        outgoing = state.params
        if not self._sends_snapshot:
            outgoing = self._outgoing(state.rule_state, state.params)
        return self._send(
            *self._exchange.place((state.exchange_state, outgoing, state.weight))
        )

    def local_steps(
        self, state: RoundState, batches: Batches, start: int, stop: int
    ) -> tuple[RoundState, list[StepMetrics]]:
        """One program for each step; it takes its own batch out of the round's."""
        taken = []
        for t in range(start, stop):
            number = self._number(len(state.count), t)
            stepped, metrics = self._step(state, batches, number)
            state = stepped._replace(params=whole_of(stepped.params, state.params))
            taken.append(metrics)
        if not taken:
            return state, []
        stack = lambda *steps: jnp.stack(steps, axis=1)
        return state, [jax.tree.map(stack, *taken)]

    def merge(
        self, state: RoundState, snapshot: Params, sent: Sent
    ) -> tuple[RoundState, MergeMetrics]:
        """Merges; what no merge reads stays out of the program."""
        light = state._replace(opt_state=(), model_state=(), exchange_state=())
        light, metrics = self._merge(light, snapshot, self._compute.place(sent))
        params = whole_of(light.params, state.params)
        return state._replace(params=params, rule_state=light.rule_state), metrics

    def _place_number(self, workers: int, t: int) -> Any:
        """The number of a local step, once for every worker."""
        return self._compute.place(np.full(workers, t, np.int32))


def _outgoing_of_round(round_: Round, rule_state: Any, params: Params) -> Any:
    return round_.rule.outgoing(rule_state, round_.part_of(params))


# What is not trained does not come out: it would be copied.


def _step_of_round(
    round_: Round, state: RoundState, batches: Batches, t: jax.Array
) -> tuple[RoundState, StepMetrics]:
    return _trained(round_, *round_.step(state, at(batches, t)))


def _merge_of_round(
    round_: Round, state: RoundState, snapshot: Params, sent: Sent
) -> tuple[RoundState, MergeMetrics]:
    return _trained(round_, *round_.merge(state, snapshot, sent))


def _trained(round_: Round, state: RoundState, metrics: Any) -> tuple[RoundState, Any]:
    return state._replace(params=round_.part_of(state.params)), metrics
