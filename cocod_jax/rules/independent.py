"""No exchange between rounds."""

import optax

from cocod_jax._typing import Params, Weight
from cocod_jax.rules._base import MergeRule


def independent() -> MergeRule:
    """The rule without an exchange: every worker keeps its own parameters.

    It is the rule for inner optimizers that communicate at every step, such as
    synchronous SGD, ``optax.chain(cj.mean_gradients("workers"), optax.sgd(0.1))``,
    and for the baseline of workers that never communicate. Take it with delay 0: a
    later merge would keep a snapshot for nothing, and add the rounding error of
    s + (x - s).

    Returns:
      A :class:`cocod_jax.MergeRule` without state and without a collective.

    Examples:
      >>> rule = cj.independent()
      >>> updates, _ = rule.update(jnp.array(0.5), rule.init(None), jnp.array(1.0))
      >>> print(updates)
      0.5
    """

    def init(params: Params) -> optax.EmptyState:
        del params
        return optax.EmptyState()

    def send(
        state: optax.OptState, snapshot: Params, weight: Weight | None = None
    ) -> Params:
        del state, weight
        return snapshot

    def merge(
        arriving: Params, progress: Params, state: optax.OptState, snapshot: Params
    ) -> tuple[optax.Updates, optax.OptState]:
        del arriving, snapshot
        return progress, state

    return MergeRule(init, send, merge)
