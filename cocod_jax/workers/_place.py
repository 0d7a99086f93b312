"""From one worker to N: copies, their devices and their weights."""

import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cocod_jax._checks import check_counts
from cocod_jax._trees import OF_A_MODEL, check_arrays, is_key
from cocod_jax.exchanges._base import EqualShares, check_one_axis, normalised
from cocod_jax.rounds._checks import check_workers
from cocod_jax.rounds._types import RoundState
from cocod_jax.workers._mesh import check_devices, check_mesh, place_on, within_worker


def replicate(
    tree: Any,
    workers: int | None = None,
    *,
    devices: Sequence[jax.Device] | None = None,
    mesh: Mesh | None = None,
    axis_name: str = "workers",
) -> Any:
    """The same tree on each worker, with a leading worker axis.

    Typed PRNG keys are the exception: each worker gets a key of its own. Raw ones are
    plain numbers here, and all workers would draw the same: a leaf that is named as one
    gets a UserWarning. In a :class:`cocod_jax.RoundState` each worker gets its weight:
    the rule's, or one of N equal shares.

    Args:
      tree: a :class:`cocod_jax.RoundState` from ``round_.init``, or any tree of
        arrays, such as parameters or an optimizer state (shared).
      workers: the number of workers that the result is for; with several processes
        the number in this one, the same in every process. Workers come in the order
        of the processes. With ``mesh`` it may be left out.
      devices: where the workers will run, one device for each, for your own
        ``pmap`` or ``shard_map``: a state that starts anywhere else makes their
        second call compile again. None leaves the tree on the default device,
        from where :func:`cocod_jax.distribute` takes it.
      mesh: of workers that have several devices each: one axis is that of the workers,
        and the others are within a worker. How a leaf is sharded over these stays as
        it is, and its new axis goes over the workers; no device gets more of it than
        before.
      axis_name: with ``devices`` or ``mesh``, the name of the axis of the workers.

    Returns:
      A tree of the same structure; each leaf has shape [workers, ...] (per worker).

    Raises:
      TypeError: when a leaf is no array, naming it; when what is given as a device is
        none, or ``axis_name`` is not a string.
      ValueError: when ``workers`` is not an integer of at least 1, when there is
        not one device for each worker, when the mesh has no such axis or another
        number of workers, when the rule's weights are not one for each
        worker of all processes, or when a state has an axis of workers already.

    Examples:
      >>> print(cj.replicate({"w": jnp.array([1.0, 2.0])}, 3)["w"])
      [[1. 2.]
       [1. 2.]
       [1. 2.]]
    """
    check_arrays(tree, "tree", OF_A_MODEL)
    check_one_axis(axis_name)
    _warn_of_raw_keys(tree)
    if mesh is not None:
        return _replicate_over(mesh, axis_name, tree, workers, devices)
    if workers is None:
        raise ValueError("workers is missing; give their number, or a mesh.")
    check_counts(workers=workers)
    if devices is not None:
        check_devices(devices=devices)
        if len(devices) != workers:
            raise ValueError(
                f"devices has {len(devices)} entries, but workers={workers}; give one "
                "device for each worker."
            )
        # Views of one copy on the host: no device holds the part of another.
        repeat = lambda leaf: np.broadcast_to(leaf, (workers, *np.shape(leaf)))
        return place(_spread(tree, _own_workers(workers), repeat), devices, axis_name)
    repeat = lambda leaf: jnp.broadcast_to(leaf, (workers, *jnp.shape(leaf)))
    return _spread(tree, _own_workers(workers), repeat)


def _replicate_over(
    mesh: Mesh,
    axis_name: str,
    tree: Any,
    workers: int | None,
    devices: Sequence[jax.Device] | None,
) -> Any:
    """``replicate`` with a mesh."""
    check_mesh(mesh, axis_name)
    count = mesh.shape[axis_name]
    if devices is not None:
        raise ValueError("devices were given beside a mesh, which has its own.")
    if workers not in (None, count):
        raise ValueError(
            f"workers={workers}, but axis {axis_name!r} of the mesh has {count}."
        )

    def repeat(leaf: Any) -> jax.Array:
        within = within_worker(mesh, axis_name, leaf)
        leaf = jax.device_put(leaf, NamedSharding(mesh, within))
        return jax.make_array_from_single_device_arrays(
            (count, *leaf.shape),
            NamedSharding(mesh, PartitionSpec(axis_name, *within)),
            [shard.data[None] for shard in leaf.addressable_shards],
        )

    spread = _spread(tree, _Own(slice(0, count), count), repeat)
    return place_on(mesh, axis_name, spread)


def _warn_of_raw_keys(tree: Any) -> None:
    """Warns where workers would share a key, as an optimizer's state may hold it."""
    found = [
        "tree" + jax.tree_util.keystr(path)
        for path, leaf in jax.tree.leaves_with_path(tree)
        if jnp.result_type(leaf) == jnp.uint32
        and np.shape(leaf)[-1:] in ((2,), (4,))  # what JAX's generators have
        and {"key", "keys", "rng", "rngs", "prng"}
        & set(re.findall("[a-z]+", jax.tree_util.keystr(path).lower()))
    ]
    if found:
        warnings.warn(
            f"{' and '.join(found)} looks like a raw PRNG key. All workers share it, "
            "and draw the same numbers. Make it a typed key, jax.random.key(seed), and "
            "each worker gets one of its own.",
            stacklevel=3,
        )


class _Own(NamedTuple):
    """The workers that are here, and how many there are in all."""

    place: slice
    total: int


def _spread(tree: Any, own: _Own, repeat: Callable[[Any], Any]) -> Any:
    """The tree with an axis of workers: repeated, but for keys and weights."""
    workers = jnp.arange(own.place.start, own.place.stop)

    def spread(leaf: Any) -> Any:
        if not is_key(leaf):
            return repeat(leaf)
        fold_in = jax.vmap(jax.random.fold_in, in_axes=(0, None))
        own_keys = lambda worker: fold_in(leaf.ravel(), worker).reshape(leaf.shape)
        return jax.vmap(own_keys)(workers)

    def spread_state(node: Any) -> Any:
        if not isinstance(node, RoundState):
            return spread(node)
        weight = _first_shares(node, own)
        return jax.tree.map(spread, node)._replace(weight=weight)

    is_state = lambda node: isinstance(node, RoundState)
    return jax.tree.map(spread_state, tree, is_leaf=is_state)


def _first_shares(state: RoundState, own: _Own) -> jax.Array:
    """What the workers that are here count in the mean, by the rule's weights.

    Raises:
      ValueError: when the state has an axis of workers, or as :func:`_shares`.
    """
    if jnp.ndim(state.count):
        raise ValueError(
            f"the state has an axis of {len(state.count)} workers already; replicate "
            "what round_.init returned, once."
        )
    weights = state.weight
    if weights.shape == (1,):  # all count the same
        weights = jnp.full(own.total, 1 / own.total, weights.dtype)
    return _shares(weights, own)


def _own_workers(workers: int) -> _Own:
    """This process's; each process has as many."""
    first = workers * jax.process_index()
    return _Own(slice(first, first + workers), workers * jax.process_count())


def _shares(weights: jax.Array, own: _Own) -> jax.Array:
    """The weights of the workers that are here.

    Raises:
      ValueError: when there is not one weight for each worker.
    """
    if weights.shape != (own.total,):
        raise ValueError(
            f"there are {weights.size} weights, but {own.total} workers; give one "
            "weight for each worker."
        )
    # A copy: a slice of the whole is the state's own buffer, which a run would donate.
    return jnp.array(weights[own.place])


def place(tree: Any, devices: Sequence[jax.Device], axis_name: str = "workers") -> Any:
    """The same tree with the arrays of worker i on device i.

    Args:
      tree: leaves of shape [N, ...] (per worker).
      devices: N devices.
      axis_name: the name of the mesh axis in the arrays' sharding.

    Returns:
      The tree, sharded over the devices; arrays that are in place already stay.

    Raises:
      TypeError: when what is given as a device is none, or ``axis_name`` is not a
        string.
      ValueError: when ``devices`` is empty, or the leading axis of a leaf is not as
        long.

    Examples:
      >>> placed = cj.place(jnp.arange(2.0), jax.devices()[:2])
      >>> len(placed.devices())
      2
    """
    check_devices(devices=devices)
    check_one_axis(axis_name)
    mesh = Mesh(np.array(devices), axis_name)
    sharding = NamedSharding(mesh, PartitionSpec(axis_name))

    def is_there(leaf: Any) -> bool:
        return (
            isinstance(leaf, jax.Array)
            and not isinstance(leaf, jax.core.Tracer)  # has no place yet
            and sharding.is_equivalent_to(leaf.sharding, leaf.ndim)
        )

    # device_put finds that out too, but slowly, before every local step.
    if all(map(is_there, jax.tree.leaves(tree))):
        return tree
    for leaf in jax.tree.leaves(tree):
        if np.shape(leaf)[:1] != (len(devices),):
            raise ValueError(
                f"tree has a leaf of shape {np.shape(leaf)}, but there are "
                f"{len(devices)} devices; give one device for each worker."
            )
    return jax.device_put(tree, sharding)


def reweight(state: RoundState, weights: Sequence[float]) -> RoundState:
    """The same state with new weights for the exchanges of merge rules from now on.

    Transforms that average gradients, and :func:`cocod_jax.every`, keep the weights
    that they were made with.

    The weights in force at the snapshot count: a round that has merged is not
    affected, and the mean that a merge leaves unchanged is the one with the
    weights that its snapshot was sent with. What :func:`cocod_jax.rules.vrl_sgd` has
    learnt belongs to the weights before, and has to begin anew.

    A worker of weight 0 takes no part for a while: what it sends does not count, and it
    still receives the mean of the others. Its numbers must be finite, since 0 times NaN
    is NaN; :func:`cocod_jax.exchanges.finite` leaves those out that are not.

    Args:
      state: after ``replicate`` (per worker).
      weights: finite numbers of 0 or more, one at least above 0, one for each worker
        of all processes (shared), in the order of the processes; only ratios matter.

    Returns:
      The state with ``weight`` replaced.

    Raises:
      TypeError: when ``state`` is not a RoundState, or the weights are no sequence.
      ValueError: when a weight is negative or not finite, or all are 0; when their
        number is not the number of workers, or ``state`` has no axis of workers; and
        when they differ, but the state's exchange counts all workers the same
        (:func:`cocod_jax.exchanges.gossip`).

    Examples:
      >>> round_ = cj.make_round(
      ...     lambda w, batch: w, optax.sgd(0.1), cj.cocod("workers"), period=1
      ... )
      >>> state = cj.replicate(round_.init(jnp.array(0.0)), 2)
      >>> print(cj.reweight(state, (1, 3)).weight)
      [0.25 0.75]
    """
    workers, now = check_workers(state), state.weight
    spans = not getattr(now, "is_fully_addressable", True)
    own = _Own(slice(0, workers), workers) if spans else _own_workers(workers)
    shares = normalised(weights, absent=True)
    if len(set(shares)) > 1 and _counts_all_the_same(state):
        raise ValueError(
            f"weights={weights!r} differ, but the exchange of this state counts all "
            "workers the same, as cj.exchanges.gossip does."
        )
    shares = _shares(jnp.asarray(shares, now.dtype), own)
    on_device = isinstance(now, jax.Array) and not isinstance(now, jax.core.Tracer)
    if on_device and now.committed:
        # On other devices they would make the next call compile again.
        shares = jax.device_put(shares, now.sharding)
    return state._replace(weight=shares)


def _counts_all_the_same(state: RoundState) -> bool:
    """Whether the exchange has no use for weights."""
    is_equal = lambda node: isinstance(node, EqualShares)
    nodes = jax.tree.leaves(state.exchange_state, is_leaf=is_equal)
    return any(map(is_equal, nodes))
