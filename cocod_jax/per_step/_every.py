"""The round as an ordinary optax optimizer, one call per local step."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from cocod_jax._checks import check_flags, check_kind, check_period
from cocod_jax._parts import all_of_it
from cocod_jax._trees import OF_A_MODEL, cast_like, check_arrays, choose, own_copy, wide
from cocod_jax._typing import Params, Tree
from cocod_jax.exchanges._shards import shards_of
from cocod_jax.per_step._gradients import check_own_gradients
from cocod_jax.per_step._state import EveryState, given
from cocod_jax.per_step._streamed import streamed_every
from cocod_jax.rounds._checks import check_streamed, check_transforms
from cocod_jax.rounds._inner import with_what_it_takes
from cocod_jax.rounds._portion import Portion
from cocod_jax.rules import MergeRule, RuleState


def every(
    period: int,
    inner: optax.GradientTransformation,
    rule: MergeRule,
    delay: int | None = None,
    *,
    streamed: bool = False,
    specs: Tree | None = None,
) -> optax.GradientTransformationExtraArgs:
    """A merge rule for training loops that call an optimizer step by step.

    It follows the same algorithm as :func:`cocod_jax.make_round`. With ``streamed``
    every step exchanges a k-th of the model, and its exchange can run beside the
    forward and backward pass: give ``jax.jit`` the options of
    :func:`cocod_jax.compiler_options`. Without, all of the model is exchanged once in a
    round, and nothing is hidden: a program of one step has that collective in a
    conditional, where no compiler can run it beside other steps.

    The numbers are the round's, to a rounding error of float32: an optax optimizer
    returns what to add to the parameters, and the sum is rounded once more. Updates of
    narrower parameters (bfloat16, float16) are float32, so that
    ``optax.apply_updates`` gives the round's parameters exactly.

    Args:
      period: k, local steps in a round, at least 1 (shared).
      inner: the optimizer of the local steps; its state must hold no parameters
        (:func:`cocod_jax.testing.check_inner`).
      rule: what a worker does with what arrives; its own weights count.
      delay: d, local steps between the snapshot and the merge, 0 to ``period``
        (shared); None is the whole period.
      streamed: as in :func:`cocod_jax.make_round`, which tells its delay.
      specs: for workers of several devices, how those share a worker's parameters: a
        tree of ``PartitionSpec``, or a prefix of it, as ``jax.shard_map`` takes them,
        of the mesh axes within a worker (shared). Each device then sends what it has.
        It need not be given where the mesh has explicit axes, which tell.

    Returns:
      An optax optimizer with state :class:`EveryState`. ``update(gradients, state,
      params)`` is to be called inside the ``pmap``, ``shard_map`` or ``vmap`` that
      binds the rule's axis, with the worker's own gradients.

    Raises:
      TypeError: when ``inner`` is not an optax transform, or ``rule`` not a
        MergeRule; in ``init``, naming a leaf of the parameters that is no array.
      ValueError: when ``period`` or ``delay`` is not an integer in its range; in
        use, when ``params`` is None, and in a ``shard_map`` that has summed the
        gradients over the workers.

    Examples:
      >>> optimizer = cj.every(2, optax.sgd(0.1), cj.cocod("workers"))
      >>> params, targets = jnp.array([9.0, 9.0]), jnp.array([0.0, 4.0])
      >>> state = jax.vmap(optimizer.init)(params)
      >>> update = jax.jit(jax.vmap(optimizer.update, axis_name="workers"))
      >>> for _ in range(80):
      ...     updates, state = update(params - targets, state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> print(f"{params.mean():.2f}")
      2.00

    .. warning::
       In your own ``shard_map``, give each worker parameters of its own, sharded over
       the axis. Workers differ between merges, so that there is no shared model; and
       JAX sums the gradients of parameters that it takes for equal on all workers.

    .. warning::
       What lets a worker skip a step because of its own gradients, such as
       ``optax.apply_if_finite``, goes into ``inner``, never around this: workers that
       count their steps apart wait for each other forever.

    .. note::
       Delay 0 merges at the end of the last step of a round, where the round
       merges at the beginning of the next one: no step lies between the two, so
       that all gradients, losses and weighted means are the same.
    """
    check_transforms(inner, rule)
    check_flags(streamed=streamed)
    if streamed:
        period, delay = check_streamed(rule, period, delay)
        return streamed_every(period, delay, inner, rule, specs)
    period, delay = check_period(period, delay)
    merge_at = (delay - 1) % period
    inner, whole = with_what_it_takes(inner), Portion(all_of_it)

    def init(params: Params) -> EveryState:
        check_arrays(params, "params", OF_A_MODEL)
        _, own_rule = whole.of_shards(shards_of(params, rule.axis_name), rule)
        of_rule: Any = own_rule.init(params)
        return EveryState(
            count=jnp.zeros([], jnp.int32),
            snapshot=own_copy(params),
            inner_state=own_copy(inner.init(params)),
            rule_state=own_copy(of_rule.rule_state),
            exchange_state=own_copy(of_rule.exchange_state),
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
        _, own_rule = whole.of_shards(
            shards_of(params, rule.axis_name, specs=specs), rule
        )
        step = state.count % period
        updates = rule.corrected(state.rule_state, updates)
        updates, inner_state = inner.update(
            updates, state.inner_state, params, **extra_args
        )
        snapshot = choose(step == 0, params, state.snapshot)
        rule_state = RuleState(state.rule_state, state.exchange_state)

        def merge() -> tuple[optax.Updates, RuleState]:
            reached = optax.apply_updates(params, updates)
            # Delay 0 is the merge of a snapshot from which no step was taken yet.
            start = snapshot if delay else reached
            merged, merged_state = own_rule.merge_now(reached, rule_state, start)
            return optax.tree.sub(wide(merged), wide(params)), merged_state

        def keep_going() -> tuple[optax.Updates, RuleState]:
            return cast_like(updates, wide(params)), rule_state

        updates, rule_state = jax.lax.cond(step == merge_at, merge, keep_going)
        count = jnp.asarray(optax.safe_increment(state.count))
        return updates, EveryState(count, snapshot, inner_state, *rule_state)

    return optax.GradientTransformationExtraArgs(init, update)
