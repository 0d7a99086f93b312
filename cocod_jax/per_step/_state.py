"""What ``every`` carries from step to step, and what it is called with."""

from typing import NamedTuple

import jax
import optax

from cocod_jax._trees import check_same_tree
from cocod_jax._typing import ExchangeState, Params


class EveryState(NamedTuple):
    """State of :func:`every`; every field is per worker.

    Attributes:
      count: int32 scalar, local steps since ``init`` (saturating).
      snapshot: s_i, the parameters at the start of the current round; nothing where
        the exchange is streamed.
      inner_state: state of the inner optimizer.
      rule_state: state of the merge rule; streamed with a leading axis [k], a row for
        each piece.
      exchange_state: state of the rule's exchange, likewise.
    """

    count: jax.Array
    snapshot: Params
    inner_state: optax.OptState
    rule_state: optax.OptState
    exchange_state: ExchangeState


def given(params: Params | None, gradients: optax.Updates) -> Params:
    """The parameters; ValueError where there are none, or gradients of others."""
    if params is None:
        raise ValueError(
            "this optimizer needs the parameters: call update(gradients, state, "
            "params); params was None."
        )
    check_same_tree(gradients, params, "gradients", "params")
    return params
