"""No exchange between rounds."""

from collections.abc import Sequence

import optax

from cocod_jax._typing import Params
from cocod_jax.exchanges.nothing import nothing
from cocod_jax.rules._base import MergeRule


def independent(weights: Sequence[float] | None = None) -> MergeRule:
    """The rule without an exchange: every worker keeps its own parameters.

    It is the rule for inner optimizers that communicate at every step, such as
    synchronous SGD, ``optax.chain(cj.mean_gradients("workers"), optax.sgd(0.1))``,
    and for the baseline of workers that never communicate. A round with it neither
    sends nor merges, whatever its delay, and reports distance, progress and alignment
    as 0.

    Args:
      weights: one positive number for each worker (shared), by which
        :func:`cocod_jax.consensus` and :func:`cocod_jax.consensus_model_state`
        average at the end; for unequal workers those that the inner optimizer's
        exchange has. None counts all workers the same.

    Returns:
      A :class:`cocod_jax.MergeRule` without state and without a collective.

    Raises:
      TypeError, ValueError: as :func:`cocod_jax.exchanges.nothing`.

    Examples:
      >>> rule = cj.independent()
      >>> updates, _ = rule.update(jnp.array(0.5), rule.init(None), jnp.array(1.0))
      >>> print(updates)
      0.5
    """

    def merge(
        arriving: Params, params: Params, state: optax.OptState, snapshot: Params
    ) -> tuple[Params, optax.OptState]:
        del arriving, snapshot
        return params, state

    return MergeRule(nothing(weights), merge)
