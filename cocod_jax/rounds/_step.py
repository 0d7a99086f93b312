"""One local step: a gradient, and what the inner optimizer makes of it."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from cocod_jax._typing import Batch, LossFn, ModelState, Params
from cocod_jax.rounds._checks import check_loss
from cocod_jax.rounds._metrics import norm
from cocod_jax.rounds._micro_batches import (
    GradientFn,
    MicroBatches,
    over_micro_batches,
)
from cocod_jax.rounds._types import RoundState, StepMetrics
from cocod_jax.rules import MergeRule

StepFn = Callable[[RoundState, Batch], tuple[RoundState, StepMetrics]]


def local_step(
    loss_fn: LossFn,
    inner: optax.GradientTransformation,
    rule: MergeRule,
    stateful: bool,
) -> StepFn:
    """``(state, batch) -> (state, StepMetrics)``, without a collective of its own."""
    gradient_of = _gradient_of(loss_fn, stateful)
    inner = optax.with_extra_args_support(inner)

    def step(state: RoundState, batch: Batch) -> tuple[RoundState, StepMetrics]:
        several = isinstance(batch, MicroBatches)
        take = over_micro_batches(gradient_of) if several else gradient_of
        key = jax.random.fold_in(state.key, state.count)
        (loss, model_state), gradient = take(
            state.params, state.model_state, batch, key
        )
        metrics = StepMetrics(loss, norm(gradient))
        if rule.correct is not None:
            gradient = rule.correct(state.rule_state, gradient)
        updates, opt_state = inner.update(
            gradient, state.opt_state, state.params, value=loss
        )
        state = state._replace(
            params=optax.apply_updates(state.params, updates),
            opt_state=opt_state,
            model_state=model_state,
            count=jnp.asarray(optax.safe_increment(state.count)),
        )
        return state, metrics

    return step


def _gradient_of(loss_fn: LossFn, stateful: bool) -> GradientFn:
    """``(params, model_state, batch, key) -> ((loss, model_state), gradient)``."""

    def gradient_of(
        params: Params, model_state: ModelState, batch: Batch, key: jax.Array
    ) -> tuple[tuple[jax.Array, ModelState], Params]:
        def loss_of(params: Params) -> tuple[jax.Array, ModelState]:
            # Rebuilt here: NNX variables can only be written in the trace that made
            # them, and differentiation is a trace of its own.
            own_state = jax.tree.map(lambda leaf: leaf, model_state)
            if stateful:
                returned = loss_fn(params, own_state, batch, key)
            else:
                returned = loss_fn(params, batch), own_state
            check_loss(returned, stateful)
            return returned

        value, gradient = jax.value_and_grad(loss_of, has_aux=True)(params)
        # JAX's gradient with respect to a complex number is the conjugate of the
        # direction in which the loss grows; of a real one it is that direction.
        return value, optax.tree.conj(gradient)

    return gradient_of
