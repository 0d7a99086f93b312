"""Many workers of many runs on one device."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import optax
from jax import lax

from experiments.algorithms import AXIS, per_step
from experiments.config import Measured

Factory: TypeAlias = Callable[[Any], optax.GradientTransformation]
"""From a learning rate to an optimizer."""


class Trainer(NamedTuple):
    """One algorithm on all workers of several independent runs.

    Attributes:
      init: ``(params) -> state``; leaves have shape [runs, N, ...].
      advance: ``(params, state, rate, batches) -> ((params, state), seen)``; leaves
        of ``batches`` have shape [rows, steps, runs, N, ...], those of ``seen``,
        observed before each row of steps, [rows, runs].
    """

    init: Callable[[Any], Any]
    advance: Callable[..., Any]


def trainer(
    make: Factory,
    loss_fn: Callable[[Any, Any], jax.Array],
    observe: Callable[[Any], Any],
) -> Trainer:
    """One program for each shape, whatever the learning rate.

    Args:
      make: the optimizer of one worker.
      loss_fn: ``(params, batch) -> loss`` of one worker.
      observe: ``(params) -> arrays``; sees all workers of one run, [N, ...].
    """

    def step(params: Any, state: Any, rate: Any, batch: Any) -> tuple[Any, Any]:
        gradient = jax.grad(loss_fn)(params, batch)
        updates, state = make(rate).update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    workers = jax.vmap(step, (0, 0, None, 0), axis_name=AXIS)
    runs = jax.vmap(workers, (0, 0, None, 0))

    @jax.jit
    def advance(params: Any, state: Any, rate: Any, batches: Any) -> Any:
        def one(carry: Any, batch: Any) -> Any:
            params, state = carry
            return runs(params, state, rate, batch), None

        def row(carry: Any, batches: Any) -> Any:
            seen = jax.vmap(observe)(carry[0])
            return lax.scan(one, carry, batches)[0], seen

        return lax.scan(row, (params, state), batches)

    return Trainer(jax.jit(jax.vmap(jax.vmap(make(0.0).init))), advance)


def factory(name: Measured, period: int, delay: int | None = None) -> Factory:
    """An algorithm with plain SGD as its local optimizer."""
    return lambda rate: per_step(name, optax.sgd(rate), period, delay)
