"""The split execution: a round as programs of their own."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cocod_jax._trees import at
from cocod_jax._typing import Batches, ExchangeState, Params, Sent
from cocod_jax.execution._map import WorkerMap
from cocod_jax.rounds._round import Round, compose
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
      round_: what it runs.
      compute: where the workers take their local steps, and merge.
      exchange: where they exchange: beside the steps if on other devices. The state of
        the exchange stays there.
    """

    def __init__(self, round_: Round, compute: WorkerMap, exchange: WorkerMap):
        rule = round_.rule
        self._compute, self._exchange = compute, exchange
        self._outgoing = compute.over(rule.outgoing)
        self._sends_snapshot = rule.outgoing is the_snapshot
        self._send = exchange.over(rule.exchange.send)
        self._step = compute.over(functools.partial(_step_of_round, round_))
        self._stack = compute.over(_stack)
        self._merge = compute.over(round_.merge)
        # Of this run: a cache of the class would keep every run alive.
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
        """What the exchange's devices get is what they need."""
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
            state, metrics = self._step(state, batches, number)
            taken.append(metrics)
        if not taken:
            return state, []
        return state, [self._stack(taken)]

    def merge(
        self, state: RoundState, snapshot: Params, sent: Sent
    ) -> tuple[RoundState, MergeMetrics]:
        """Without what no merge reads, which would go in and out for nothing."""
        light = state._replace(opt_state=(), model_state=(), exchange_state=())
        light, metrics = self._merge(light, snapshot, self._compute.place(sent))
        state = state._replace(params=light.params, rule_state=light.rule_state)
        return state, metrics

    def _place_number(self, workers: int, t: int) -> Any:
        """The number of a local step, once for every worker."""
        return self._compute.place(np.full(workers, t, np.int32))


def _step_of_round(
    round_: Round, state: RoundState, batches: Batches, t: jax.Array
) -> tuple[RoundState, StepMetrics]:
    return round_.step(state, at(batches, t))


def _stack(taken: list[StepMetrics]) -> StepMetrics:
    """[steps], the metrics of a worker's local steps as those of one loop."""
    return jax.tree.map(lambda *steps: jnp.stack(steps), *taken)
