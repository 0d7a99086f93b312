"""What every exchange is made of: two halves, with the collectives in the first."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from cocod_jax._checks import check_pair, check_sequence, check_takes
from cocod_jax._text import shown
from cocod_jax._trees import check_arrays, check_like, check_same_tree
from cocod_jax._typing import AxisName, ExchangeState, Sent, Tree, Weight

Phases: TypeAlias = tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]


class Exchange(NamedTuple):
    """How workers average, in two halves with local steps between them.

    ``send`` holds every collective over the workers, and ``receive`` holds none. A
    round sends first, takes its local steps while the collective is in flight, and
    receives after them: what ``receive`` computes is never between a worker and its
    next step.

    All trees are per worker. The functions run inside the mapping transform that
    binds ``axis_name``; ``init`` may run outside of it.

    Attributes:
      init: ``(tree) -> state`` for trees like this one, which all workers have in
        common at first; ``optax.EmptyState()`` where nothing is remembered from one
        exchange to the next.
      send: ``(state, tree, weight) -> (sent, state)``. ``weight`` is this worker's
        share p_i, a scalar; the shares of all workers have sum 1. None takes
        ``weights``. ``sent`` is any tree of arrays, in the form in which it travels.
      receive: ``(sent, like) -> tree``, with the structure, shapes and dtypes of
        ``like``, the tree that was sent; it decodes and divides.
      axis_name: the axis, or axes, of the workers. None sends nothing: a round with
        this exchange neither sends nor merges.
      weights: those given at construction, one for each worker, with sum 1; None when
        all workers count the same.
      streams: whether it may be given a piece of the model in every step; False where
        it needs the whole at once, such as the largest values of all.
      heals: whether a worker whose numbers are not finite is left out, and healed by
        what arrives: a round then makes all of such a worker NaN, and a merge gives it
        what arrives.
      phases: ``send`` in three parts, where it is two collectives of which the second
        needs the first; ``(state, tree, weight) -> (halfway, state)`` with the first
        collective, ``(state, halfway) -> state`` with none, and ``(state) -> (sent,
        state)`` with the second. A round takes half of its steps between the two; a
        streamed one begins the second with the next step, and keeps the state till
        then. None where it is one collective.
      block: how many neighbours in the raveled tree are treated as one, such as those
        that share a scale, where devices of a worker may each exchange what they have.
        A leaf then begins a block of its own, so that they make the same of a leaf that
        they all have. None where an exchange is of all that a worker has, and the
        compiler divides it among its devices.
      alike: whether all workers receive the same; False where each hears of its
        neighbours or of its group alone. Rules whose anchor moves by what arrives, and
        by nothing else, need it.

    Examples:
      >>> exchange = cj.mean("workers")
      >>> def in_two_halves(tree):
      ...     sent, state = exchange.send(exchange.init(tree), tree, None)
      ...     return exchange.receive(sent, tree)
      >>> print(jax.vmap(in_two_halves, axis_name="workers")(jnp.array([1.0, 3.0])))
      [2. 2.]
    """

    init: Callable[[Tree], ExchangeState]
    send: Callable[[ExchangeState, Tree, Weight | None], tuple[Sent, ExchangeState]]
    receive: Callable[[Sent, Tree], Tree]
    axis_name: AxisName | None
    weights: tuple[float, ...] | None = None
    streams: bool = True
    heals: bool = False
    phases: Phases | None = None
    block: int | None = None
    alike: bool = True

    def average(self, tree: Tree, weight: Weight | None = None) -> Tree:
        """Sends and receives at once, with a state that is fresh and then dropped.

        The state begins at zero, which all workers have in common.

        Args:
          tree: what this worker sends (per worker).
          weight: as in ``send``.

        Returns:
          What arrives, like ``tree``.
        """
        check_arrays(tree, "what is sent")
        state = self.init(optax.tree.zeros_like(tree))
        sent, _ = send_by(self.send, state, tree, weight)
        return receive_by(self, sent, tree)


def stateless(tree: Tree) -> optax.EmptyState:
    """The ``init`` of what remembers nothing."""
    del tree
    return optax.EmptyState()


class EqualShares(NamedTuple):
    """State of an exchange that remembers nothing, and counts all workers the same.

    It has no arrays; :func:`cocod_jax.reweight` knows by it that weights would not
    count.
    """


def check_exchange(exchange: Exchange) -> None:
    """Raises unless the parts of an exchange are what they are called as.

    Raises:
      TypeError: when a part is no function of its arguments, or ``axis_name`` no name.
      ValueError: when ``weights`` are not positive and finite.
    """
    check_takes(("tree",), **{"exchange.init": exchange.init})
    check_takes(("state", "tree", "weight"), **{"exchange.send": exchange.send})
    check_takes(("sent", "like"), **{"exchange.receive": exchange.receive})
    takes = ("state", "tree", "weight"), ("state", "halfway"), ("state",)
    for i, (phase, own) in enumerate(zip(exchange.phases or (), takes, strict=False)):
        check_takes(own, **{f"exchange.phases[{i}]": phase})
    if exchange.axis_name is not None:
        check_axis_name(exchange.axis_name)
    if exchange.weights is not None:
        normalised(exchange.weights)


def send_by(
    send: Callable[..., Any], state: ExchangeState, tree: Tree, weight: Weight | None
) -> tuple[Sent, ExchangeState]:
    """What an exchange's ``send``, or its first half, returns for a tree.

    Raises:
      TypeError: when a leaf of the tree, or of what is sent, is no array, or ``send``
        returns anything else than two values.
      ValueError: when the exchange's state has another structure than before.
    """
    check_arrays(tree, "what is sent")
    sent, after = check_pair(send(state, tree, weight), "send", "sent, state")
    check_arrays(sent, "sent")
    check_same_tree(after, state, "the state that send returned", "state")
    return sent, after


def receive_by(exchange: Exchange, sent: Sent, like: Tree) -> Tree:
    """What an exchange's ``receive`` returns.

    Raises:
      TypeError, ValueError: when that is not like the tree that was sent.
    """
    arriving = exchange.receive(sent, like)
    check_like(arriving, like, "arriving", "what was sent")
    return arriving


def own_share(
    axis_name: AxisName,
    weights: tuple[float, ...] | None = None,
    weight: Weight | None = None,
) -> jax.Array | float:
    """This worker's share p_i: the weight that travels, or else the constructed one.

    Raises:
      ValueError: when ``axis_name`` is not bound, when there is not one weight for
        each worker, or when ``weight`` is not a scalar.
    """
    workers = axis_size(axis_name)
    if weights is not None and len(weights) != workers:
        raise ValueError(
            f"weights has {len(weights)} entries, but axis {axis_name!r} has "
            f"{workers} workers; give one weight for each worker."
        )
    if weight is None and weights is None:
        return 1 / workers
    if weight is None:
        return jnp.asarray(weights)[lax.axis_index(axis_name)]
    if jnp.ndim(weight):
        raise ValueError(
            f"weight has shape {jnp.shape(weight)}, but each worker has one scalar "
            "of its own; spread the state over the workers with cj.replicate."
        )
    return weight


def normalised(weights: Sequence[float], *, absent: bool = False) -> tuple[float, ...]:
    """The weights divided by their sum.

    Args:
      weights: one for each worker.
      absent: whether some may be 0, of workers that take no part for a while.

    Raises:
      TypeError: when it is no sequence.
      ValueError: when there is no weight, or one is not positive and finite.
    """
    check_sequence(weights=weights)
    weights = tuple(weights)
    try:
        values = tuple(map(float, weights))
    except (TypeError, ValueError, OverflowError):  # no numbers, or rows of them
        values = ()
    if absent and any(values) and all(math.isfinite(w) and w >= 0 for w in values):
        return tuple(w / math.fsum(values) for w in values)
    if absent:
        raise ValueError(
            f"weights={shown(weights)} must be finite numbers, 0 or more, one for each "
            "worker, of which one at least is above 0."
        )
    if not values or not all(math.isfinite(w) and w > 0 for w in values):
        raise ValueError(
            f"weights={shown(weights)} must be positive, finite numbers, one for each "
            "worker; a worker that takes no part has no place on the axis."
        )
    total = math.fsum(values)
    return tuple(w / total for w in values)


def worker_shares(weights: Sequence[float] | None, workers: int) -> np.ndarray:
    """[workers], what each counts, with sum 1; None counts all the same.

    Raises:
      TypeError, ValueError: as :func:`normalised`; ValueError when there is not one
        weight for each worker.
    """
    if weights is None:
        return np.full(workers, 1 / workers)
    shares = np.array(normalised(weights))
    if len(shares) != workers:
        raise ValueError(
            f"weights has {len(shares)} entries, but the metrics are those of "
            f"{workers} workers; give one weight for each worker."
        )
    return shares


def check_axis_name(axis_name: Any) -> None:
    """Raises TypeError unless ``axis_name`` is a string or a tuple of strings."""
    names = axis_name if isinstance(axis_name, tuple) else (axis_name,)
    if not names or not all(isinstance(name, str) for name in names):
        raise TypeError(
            f"axis_name={shown(axis_name)} must be a string, or a tuple of strings: "
            'the axis_name given to pmap or vmap, for example "workers".'
        )


def check_one_axis(axis_name: Any) -> None:
    """Raises TypeError unless ``axis_name`` is a string, the name of one axis."""
    if not isinstance(axis_name, str):
        raise TypeError(f"axis_name={shown(axis_name)} must be a string.")


def workers_axis(exchange: Exchange, axis_name: str | None = None) -> str:
    """The one axis to map workers over: the exchange's.

    Args:
      exchange: a rule's.
      axis_name: what the caller asked for; None asks for nothing. An exchange that
        sends nothing takes its axis from here, or else "workers".

    Raises:
      TypeError: when ``axis_name`` is not a string.
      ValueError: when the exchange has another axis, or several.
    """
    if axis_name is not None:
        check_one_axis(axis_name)
    own = exchange.axis_name
    if own is None:
        return "workers" if axis_name is None else axis_name
    if axis_name not in (None, own):
        raise ValueError(
            f"axis_name={axis_name!r}, but the rule averages over {own!r}; leave "
            "axis_name out."
        )
    if not isinstance(own, str):
        raise ValueError(
            f"the rule averages over the axes {own!r}, but only one is mapped here; "
            "nest your own pmap, shard_map or vmap to bind them all."
        )
    return own


def axis_size(axis_name: AxisName) -> int:
    """The number of workers; ValueError where the axis is not bound."""
    try:
        return lax.axis_size(axis_name)
    except NameError as error:
        raise ValueError(
            f"axis_name={axis_name!r} is not bound here. Run inside a transform that "
            f"binds it: cj.distribute(round_), jax.pmap(f, axis_name={axis_name!r}), "
            f"jax.vmap(f, axis_name={axis_name!r}), or jax.shard_map over a mesh with "
            "that axis."
        ) from error
