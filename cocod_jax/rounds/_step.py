"""One local step: a gradient, and what the inner optimizer makes of it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from cocod_jax._parts import whole_of
from cocod_jax._trees import cast_like, check_arrays, norm, same_shapes, stays_finite
from cocod_jax._typing import Batch, LossFn, ModelState, Params
from cocod_jax.rounds._checks import check_loss, check_same_types
from cocod_jax.rounds._healing import Trained, or_given_up
from cocod_jax.rounds._micro_batches import (
    GradientFn,
    MicroBatches,
    over_micro_batches,
)
from cocod_jax.rounds._portion import Portion
from cocod_jax.rounds._types import RoundState, StepMetrics
from cocod_jax.rules import MergeRule

StepFn = Callable[[RoundState, Batch], tuple[RoundState, StepMetrics]]


def local_step(
    loss_fn: LossFn,
    inner: optax.GradientTransformationExtraArgs,
    rule: MergeRule,
    portion: Portion,
    *,
    stateful: bool,
    has_aux: bool,
) -> StepFn:
    """``(state, batch) -> (state, StepMetrics)``, without a collective of its own."""
    part_of = portion.part_of
    gradient_of = _gradient_of(loss_fn, part_of, stateful, has_aux)

    def step(state: RoundState, batch: Batch) -> tuple[RoundState, StepMetrics]:
        several = isinstance(batch, MicroBatches)
        take = over_micro_batches(gradient_of) if several else gradient_of
        key = jax.random.fold_in(state.key, state.count)
        (loss, model_state, aux), gradient = take(
            state.params, state.model_state, batch, key
        )
        grad_norm = norm(gradient)
        if same_shapes(model_state, state.model_state):  # or it is refused below
            # No other metric would show it before an evaluation.
            finite = stays_finite(model_state, state.model_state)
            grad_norm = jnp.where(finite, grad_norm, jnp.nan)
        metrics = StepMetrics(loss, grad_norm, aux)
        if rule.correct is not None:
            gradient = portion.correct(rule, state.rule_state, gradient, state.params)
        part = part_of(state.params)
        updates, opt_state = inner.update(gradient, state.opt_state, part, value=loss)
        taken = Trained(optax.apply_updates(part, updates), opt_state, model_state)
        if rule.exchange.heals:
            instead = Trained(part, inner.init(part), state.model_state)
            taken = or_given_up(taken, instead, metrics.grad_norm)
        count = jnp.asarray(optax.safe_increment(state.count))
        params = whole_of(taken.params, state.params)
        after = state._replace(**taken._asdict() | {"params": params, "count": count})
        check_same_types(after, state)
        return cast_like(after, state), metrics

    return step


def _gradient_of(
    loss_fn: LossFn,
    part_of: Callable[[Params], Params],
    stateful: bool,
    has_aux: bool,
) -> GradientFn:
    """The loss, what else ``loss_fn`` returns, and the gradient of the trained part."""

    def gradient_of(
        params: Params, model_state: ModelState, batch: Batch, key: jax.Array
    ) -> tuple[tuple[jax.Array, ModelState, Any], Params]:
        def loss_of(part: Params) -> tuple[jax.Array, tuple[ModelState, Any]]:
            # Rebuilt here: NNX variables can only be written in the trace that made
            # them, and differentiation is a trace of its own.
            own_state = jax.tree.map(lambda leaf: leaf, model_state)
            own_params = whole_of(part, params)
            if stateful:
                returned = loss_fn(own_params, own_state, batch, key)
            else:
                returned = loss_fn(own_params, batch)
            loss, *others = check_loss(returned, stateful, has_aux)
            aux = others.pop() if has_aux else None
            after = others.pop() if stateful else own_state
            check_arrays(aux, "aux")
            check_arrays(after, "the model state that loss_fn returned")
            return loss, (after, aux)

        (loss, others), gradient = jax.value_and_grad(loss_of, has_aux=True)(
            part_of(params)
        )
        # JAX's gradient with respect to a complex number is the conjugate of the
        # direction in which the loss grows; of a real one it is that direction.
        return (loss, *others), optax.tree.conj(gradient)

    return gradient_of
