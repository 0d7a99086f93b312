"""The streamed round as an ordinary optax optimizer."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from cocod_jax._parts import all_of_it
from cocod_jax._trees import barrier, cast_like, check_arrays, own_copy, wide
from cocod_jax._typing import Params, Tree
from cocod_jax.exchanges._shards import shards_of
from cocod_jax.per_step._gradients import check_own_gradients
from cocod_jax.per_step._state import EveryState, given
from cocod_jax.rounds._inner import with_what_it_takes
from cocod_jax.rounds._portion import Pieces
from cocod_jax.rules import MergeRule, RuleState


def streamed_every(
    period: int,
    inner: optax.GradientTransformation,
    rule: MergeRule,
    specs: Tree | None,
) -> optax.GradientTransformationExtraArgs:
    """``cj.every`` with a piece in every step; its arguments have been checked."""
    of_one_device = Pieces(all_of_it, period)
    inner = with_what_it_takes(inner)

    def init(params: Params) -> EveryState:
        check_arrays(params, "params")
        shards = shards_of(params, rule.axis_name)
        pieces = of_one_device.over(shards)
        of_rule = own_copy(pieces.init_state(rule, params))
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
        params = given(params)
        check_own_gradients(updates, rule.axis_name)
        shards = shards_of(params, rule.axis_name, specs=specs)
        pieces = of_one_device.over(shards)
        step, states = state.count, RuleState(state.rule_state, state.exchange_state)
        own = pieces.take_state(states, step)
        snapshot = pieces.take(params, step)
        sent, exchange_state = rule.send(own, snapshot)
        # What needs the mean cannot run before the gradients are there, so that the
        # exchange is beside all that computes them.
        updates, sent, snapshot = barrier((updates, sent, snapshot))
        if rule.correct is not None:
            updates = pieces.correct(rule, state.rule_state, updates, params)
        updates, inner_state = inner.update(
            updates, state.inner_state, params, **extra_args
        )
        reached = optax.apply_updates(params, updates)
        arriving = rule.receive(sent, rule.outgoing(own.rule_state, snapshot))
        merged, rule_state = rule.apply(
            arriving, pieces.take(reached, step), own.rule_state, snapshot
        )
        moved = pieces.put_like(
            cast_like(updates, wide(params)),
            step,
            optax.tree.sub(wide(merged), wide(snapshot)),
            params,
        )
        count = jnp.asarray(optax.safe_increment(step))
        own = pieces.put_state(states, step, RuleState(rule_state, exchange_state))
        return moved, EveryState(count, (), inner_state, *own)

    return optax.GradientTransformationExtraArgs(init, update)
