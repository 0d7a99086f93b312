"""A state for another number of workers."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cocod_jax._checks import check_counts
from cocod_jax._trees import is_float, is_key, wide_dtype
from cocod_jax.rounds._checks import check_workers
from cocod_jax.rounds._pipeline import Pipelined
from cocod_jax.rounds._round import Round, check_round
from cocod_jax.rounds._types import RoundState
from cocod_jax.workers._consensus import consensus, consensus_model_state
from cocod_jax.workers._place import replicate


class Resized(NamedTuple):
    """What :func:`resize` returns.

    Attributes:
      state: of the new workers (per worker, leading axis N').
      begun_anew: the names of the arrays that each worker had for itself, and that
        begin anew, such as the error feedback of a narrow wire.
    """

    state: RoundState
    begun_anew: tuple[str, ...]


def resize(
    state: RoundState,
    round_: Round,
    workers: int,
    *,
    moments: Literal["mean", "nearest", "reset"] = "mean",
) -> Resized:
    """The state of a run that goes on with more or fewer workers.

    =====================  =====================================================
    field                  each of the new workers has
    =====================  =====================================================
    ``params``             the consensus, so that the weighted mean stays what it
                           was, to the bit
    ``model_state``        that of the consensus
    ``opt_state``          as ``moments`` says; integers are the largest
    ``rule_state``,        what was equal on all workers, such as an anchor; what
    ``exchange_state``     each had for itself begins anew, as in ``init``; so does an
                           exchange that is in flight between two rounds
    ``key``                a key of its own, drawn from the first worker's
    ``count``              the count
    ``weight``             that of the round's rule
    =====================  =====================================================

    Args:
      state: after ``replicate``, between two rounds (per worker, leading axis N).
      round_: what the new workers run; its rule's weights are theirs.
      workers: N', how many there are now.
      moments: what becomes of the floats of the inner optimizers: their weighted
        mean; those of worker i N / N', rounded down, for the new worker i; or those of
        ``init``.

    Returns:
      A :class:`Resized`: the state of the new workers, and what has begun anew.

    Raises:
      TypeError: when ``state`` is not a RoundState, or ``round_`` not a Round.
      ValueError: when ``workers`` is not an integer of at least 1, ``moments`` is none
        of the above, the round's state has other arrays, or the state belongs to
        several processes or to workers of several devices.

    Examples:
      >>> loss = lambda w, batch: 0.5 * (w - batch) ** 2
      >>> rule = cj.cocod("workers")
      >>> round_ = cj.make_round(loss, optax.adam(0.1), rule, period=4)
      >>> state = cj.replicate(round_.init(jnp.array(0.0)), 4)
      >>> state = state._replace(params=jnp.array([0.0, 1.0, 2.0, 5.0]))
      >>> state, begun_anew = cj.workers.resize(state, round_, 3)
      >>> print(state.params, state.weight, begun_anew)
      [2. 2. 2.] [0.33333334 0.33333334 0.33333334] ()
    """
    check_round(round_)
    check_counts(workers=workers)
    if moments not in ("mean", "nearest", "reset"):
        raise ValueError(f"moments={moments!r} must be 'mean', 'nearest' or 'reset'.")
    before = check_workers(state)
    _check_here(state)
    key = jax.random.fold_in(state.key[0], workers)
    start = round_.init(consensus(state), consensus_model_state(state), key=key)
    fresh = replicate(start, workers)
    anew: list[str] = []

    def kept_if_equal(name: str, old: Any, new: jax.Array) -> jax.Array:
        row = np.asarray(old[0])
        if np.array_equal(np.asarray(old), np.broadcast_to(row, old.shape)):
            return jnp.broadcast_to(row, new.shape)
        anew.append(name)
        return new

    def all_anew(name: str, old: Any, new: jax.Array) -> jax.Array:
        del old
        anew.append(name)
        return new

    in_flight = isinstance(start.exchange_state, Pipelined)

    def moment(name: str, old: Any, new: jax.Array) -> jax.Array:
        del name
        if not is_float(old):
            return jnp.broadcast_to(old.max(axis=0), new.shape)
        if moments == "reset":
            return new
        if moments == "nearest":
            return old[np.arange(workers) * before // workers]
        wide = wide_dtype(old.dtype)
        mean = jnp.tensordot(state.weight.astype(wide), old.astype(wide), axes=1)
        return jnp.broadcast_to(mean.astype(old.dtype), new.shape)

    changed = {
        name: _changed(name, change, getattr(state, name), getattr(fresh, name))
        for name, change in (
            ("opt_state", moment),
            ("rule_state", kept_if_equal),
            ("exchange_state", all_anew if in_flight else kept_if_equal),
        )
    }
    count = jnp.broadcast_to(state.count[0], [workers])
    return Resized(fresh._replace(count=count, **changed), tuple(anew))


def _changed(
    field: str, change: Callable[[str, Any, jax.Array], jax.Array], old: Any, new: Any
) -> Any:
    """The new field, each array made of its old and its new one."""
    pairs, treedef = jax.tree.leaves_with_path(new), jax.tree.structure(new)
    if jax.tree.structure(old) != treedef or any(
        mine.shape[1:] != own.shape[1:]
        for mine, (_, own) in zip(jax.tree.leaves(old), pairs, strict=True)
    ):
        raise ValueError(
            f"{field} of the state is that of another round: give the round that made "
            "it, or one with the same model, optimizer, rule and exchange."
        )
    name = lambda path: field + jax.tree_util.keystr(path)
    leaves = [
        own if is_key(own) else change(name(path), mine, own)
        for mine, (path, own) in zip(jax.tree.leaves(old), pairs, strict=True)
    ]
    return jax.tree.unflatten(treedef, leaves)


def _check_here(state: RoundState) -> None:
    """Raises ValueError unless each worker has one device, and all are here."""
    if jax.process_count() > 1 or any(
        len(getattr(leaf, "devices", set)()) > len(leaf)
        for leaf in jax.tree.leaves(state)
    ):
        raise ValueError(
            "resize takes states of one process and of workers of one device; others "
            "begin anew from the consensus: round_.init(cj.consensus(state))."
        )
