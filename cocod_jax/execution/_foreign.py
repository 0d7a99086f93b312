"""States of another round, which fail somewhere inside of this one."""

from collections.abc import Iterator
from contextlib import contextmanager

import jax

from cocod_jax.rounds._round import Round
from cocod_jax.rounds._types import RoundState


@contextmanager
def names_foreign_state(round_: Round, state: RoundState) -> Iterator[None]:
    """Says of an error inside that the state is one of another round, where it is.

    Looked for after an error alone: a round's ``init`` would be traced for it, and most
    states are its own.

    Raises:
      ValueError: naming the first field that has another structure than this round's.
    """
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        field = _foreign_field(round_, state)
        if field is None:
            raise
        raise ValueError(
            f"state.{field} is that of another round: give the state that this round's "
            "init made, or the round with the optimizer, rule and exchange of the "
            "state's."
        ) from error


def _foreign_field(round_: Round, state: RoundState) -> str | None:
    """The first field that is not as ``init`` makes it; None if all are, or none is."""

    def init(state: RoundState) -> RoundState:
        one = jax.tree.map(lambda leaf: leaf[0], (state.params, state.model_state))
        return round_.init(*one)

    try:
        own = jax.eval_shape(init, state)
    except Exception:  # of whatever is wrong with both
        return None
    for field in ("opt_state", "rule_state", "exchange_state"):
        found, wanted = getattr(state, field), getattr(own, field)
        if jax.tree.structure(found) != jax.tree.structure(wanted):
            return field
    return None
