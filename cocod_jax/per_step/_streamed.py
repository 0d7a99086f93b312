"""The streamed round as an ordinary optax optimizer."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from cocod_jax._checks import check_kind
from cocod_jax._parts import all_of_it
from cocod_jax._trees import (
    OF_A_MODEL,
    barrier,
    cast_like,
    check_arrays,
    own_copy,
    wide,
)
from cocod_jax._typing import Params, Tree
from cocod_jax.exchanges._shards import shards_of
from cocod_jax.per_step._gradients import check_own_gradients
from cocod_jax.per_step._state import EveryState, given
from cocod_jax.rounds._inner import with_what_it_takes
from cocod_jax.rounds._pipeline import or_nothing, pieces_for
from cocod_jax.rules import MergeRule


def streamed_every(
    period: int,
    delay: int,
    inner: optax.GradientTransformation,
    rule: MergeRule,
    specs: Tree | None,
) -> optax.GradientTransformationExtraArgs:
    """``cj.every`` with a piece in every step; its arguments have been checked."""
    of_one_device = pieces_for(rule, all_of_it, period)
    inner = with_what_it_takes(inner)

    def init(params: Params) -> EveryState:
        check_arrays(params, "params", OF_A_MODEL)
        shards = shards_of(params, rule.axis_name)
        pieces, own_rule = of_one_device.of_shards(shards, rule)
        of_rule = own_copy(pieces.init_state(own_rule, params))
        if specs is not None and shards is None and jax.tree.leaves(of_rule):
            raise ValueError(
                "specs were given, but the parameters of init tell of no devices that "
                "share them: call init outside of jax.jit and jax.vmap, with "
                "parameters that are sharded already."
            )
        return EveryState(
            count=jnp.zeros([], jnp.int32),
            snapshot=(),
            inner_state=own_copy(inner.init(params)),
            rule_state=of_rule.rule_state,
            exchange_state=of_rule.exchange_state,
        )

    def update(
        updates: optax.Updates,
        state: Any,
        params: Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, EveryState]:
        params = given(params, updates)
        check_kind(EveryState, state=state)
        check_own_gradients(updates, rule.axis_name)
        shards = shards_of(params, rule.axis_name, specs=specs)
        pieces, own_rule = of_one_device.of_shards(shards, rule)
        step, since = state.count, state.count + 1 - delay
        snapshot = pieces.take(params, step)
        outgoing = rule.outgoing(pieces.take_state(state.rule_state, step), snapshot)
        sent, flying = pieces.depart(
            own_rule.exchange, state.exchange_state, step, outgoing, snapshot, None
        )
        # What needs the mean cannot run before the gradients are there, so that the
        # exchange is beside all that computes them.
        updates, sent, flying, snapshot = barrier((updates, sent, flying, snapshot))
        if rule.correct is not None:  # without it, the loop over pieces is for nothing
            updates = pieces.correct(rule, state.rule_state, updates, params)
        updates, inner_state = inner.update(
            updates, state.inner_state, params, **extra_args
        )
        reached = optax.apply_updates(params, updates)
        arrival = pieces.arrived(sent, snapshot)
        own = pieces.take_state(state.rule_state, since)
        piece = pieces.take(reached, since)
        outgoing = rule.outgoing(own, arrival.snapshot)
        arriving = own_rule.receive(arrival.sent, outgoing)
        merged, own = or_nothing(
            arrival, rule.apply(arriving, piece, own, arrival.snapshot), (piece, own)
        )
        before = snapshot if delay == 1 else pieces.take(params, since)
        moved = pieces.put_like(
            cast_like(updates, wide(params)),
            since,
            optax.tree.sub(wide(merged), wide(before)),
            params,
        )
        return moved, EveryState(
            count=jnp.asarray(optax.safe_increment(step)),
            snapshot=(),
            inner_state=inner_state,
            rule_state=pieces.put_state(state.rule_state, since, own),
            exchange_state=pieces.land(own_rule.exchange, flying, step),
        )

    return optax.GradientTransformationExtraArgs(init, update)
