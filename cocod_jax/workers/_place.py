"""From one worker to N and back: replicate, consensus, and the check between."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cocod_jax._checks import check_counts
from cocod_jax._typing import ModelState, Params
from cocod_jax.exchanges._base import normalised
from cocod_jax.rounds._round import RoundState, check_workers


def replicate(
    tree: Any,
    workers: int,
    *,
    devices: Sequence[jax.Device] | None = None,
    axis_name: str = "workers",
) -> Any:
    """The same tree on each worker, with a leading worker axis.

    Typed PRNG keys are the exception: each worker gets a key of its own. In a
    :class:`cocod_jax.RoundState` each worker gets its weight: the rule's, or one of
    N equal shares.

    Args:
      tree: a :class:`cocod_jax.RoundState` from ``round_.init``, or any tree of
        arrays, such as parameters or an optimizer state (shared).
      workers: the number of workers that the result is for; with several processes
        those of this one, and every process has as many. They come in the order of
        the processes.
      devices: where the workers will run, one device for each, for your own
        ``pmap`` or ``shard_map``: a state that starts anywhere else makes their
        second call compile again. None leaves the tree on the default device,
        from where :func:`cocod_jax.distribute` takes it.
      axis_name: with ``devices``, the name of the mesh axis of your ``shard_map``.

    Returns:
      A tree of the same structure; each leaf has shape [workers, ...] (per worker).

    Raises:
      ValueError: when ``workers`` is not an integer of at least 1, when there is
        not one device for each worker, when the rule's weights are not one for each
        worker of all processes, or when a state has an axis of workers already.

    Examples:
      >>> print(cj.replicate({"w": jnp.array([1.0, 2.0])}, 3)["w"])
      [[1. 2.]
       [1. 2.]
       [1. 2.]]
    """
    check_counts(workers=workers)
    if devices is not None:
        if len(devices) != workers:
            raise ValueError(
                f"devices has {len(devices)} entries, but workers={workers}; give one "
                "device for each worker."
            )
        return place(replicate(tree, workers), devices, axis_name)
    own = _own_workers(workers)

    def spread(leaf: jax.Array) -> jax.Array:
        leaf = jnp.asarray(leaf)
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            fold_in = jax.vmap(jax.random.fold_in, in_axes=(0, None))
            own_keys = lambda worker: fold_in(leaf.ravel(), worker).reshape(leaf.shape)
            return jax.vmap(own_keys)(jnp.arange(own.start, own.stop))
        return jnp.broadcast_to(leaf, (workers, *leaf.shape))

    def spread_state(node: jax.Array | RoundState) -> jax.Array | RoundState:
        if not isinstance(node, RoundState):
            return spread(node)
        weight = _first_shares(node, workers)
        return jax.tree.map(spread, node)._replace(weight=weight)

    is_state = lambda node: isinstance(node, RoundState)
    return jax.tree.map(spread_state, tree, is_leaf=is_state)


def _first_shares(state: RoundState, workers: int) -> jax.Array:
    """What this process's workers count in the mean: the rule's weights say it.

    Raises:
      ValueError: when the state has an axis of workers, or as :func:`_shares`.
    """
    if jnp.ndim(state.count):
        raise ValueError(
            f"the state has an axis of {len(state.count)} workers already; replicate "
            "what round_.init returned, once."
        )
    weights, total = state.weight, workers * jax.process_count()
    if weights.shape == (1,):  # all count the same
        weights = jnp.full(total, 1 / total, weights.dtype)
    return _shares(weights, workers)


def _own_workers(workers: int) -> slice:
    """Which of all workers this process's are; each process has as many."""
    first = workers * jax.process_index()
    return slice(first, first + workers)


def _shares(weights: jax.Array, workers: int) -> jax.Array:
    """Those of this process's workers.

    Raises:
      ValueError: when there is not one weight for each worker of all processes.
    """
    total = workers * jax.process_count()
    if weights.shape != (total,):
        raise ValueError(
            f"there are {weights.size} weights, but {total} workers; give one weight "
            "for each worker."
        )
    # A copy: a slice of all of it is the state's own buffer, which a run would donate.
    return jnp.array(weights[_own_workers(workers)])


def place(tree: Any, devices: Sequence[jax.Device], axis_name: str = "workers") -> Any:
    """The same tree with the arrays of worker i on device i.

    Args:
      tree: leaves of shape [N, ...] (per worker).
      devices: N devices.
      axis_name: the name of the mesh axis in the arrays' sharding.

    Returns:
      The tree, sharded over the devices; arrays that are there already stay.

    Raises:
      ValueError: when the leading axis of a leaf is not as long as ``devices``.

    Examples:
      >>> placed = cj.place(jnp.arange(2.0), jax.devices()[:2])
      >>> len(placed.devices())
      2
    """
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
    weights that its snapshot was sent with.

    Args:
      state: after ``replicate`` (per worker).
      weights: positive, finite numbers, one for each worker of all processes
        (shared), in the order of the processes; only ratios matter.

    Returns:
      The state with ``weight`` replaced.

    Raises:
      TypeError: when ``state`` is not a RoundState, or the weights are no sequence.
      ValueError: when a weight is not positive and finite, when their number is not
        the number of workers, or ``state`` has no axis of workers.

    Examples:
      >>> round_ = cj.make_round(
      ...     lambda w, batch: w, optax.sgd(0.1), cj.cocod("workers"), period=1
      ... )
      >>> state = cj.replicate(round_.init(jnp.array(0.0)), 2)
      >>> print(cj.reweight(state, (1, 3)).weight)
      [0.25 0.75]
    """
    workers, now = check_workers(state), state.weight
    shares = _shares(jnp.asarray(normalised(weights), now.dtype), workers)
    on_device = isinstance(now, jax.Array) and not isinstance(now, jax.core.Tracer)
    if on_device and now.committed:
        # Elsewhere they would make the next call compile again.
        shares = jax.device_put(shares, now.sharding)
    return state._replace(weight=shares)


def consensus(state: RoundState) -> Params:
    r"""The weighted mean of the workers' parameters: the model to evaluate.

    .. math:: \hat x = \sum_i p_i x_i

    Workers differ between rounds, each by its own progress; no single one is the
    model. Leaves of integers take their maximum. The mean is computed where the
    arrays are, and does not change ``state``. With several processes all of them
    must call it, outside of ``jax.jit``, and all get the same. In a loop with
    :func:`cocod_jax.every` it is
    ``jax.tree.map(lambda leaf: leaf.mean(axis=0), params)``.

    Args:
      state: after ``replicate`` (per worker, leading axis N).

    Returns:
      The parameters, without the worker axis, in their own dtypes (shared).

    Raises:
      TypeError: when ``state`` is not a RoundState.
      ValueError: when ``state`` has no axis of workers, or with several processes
        when it is called within ``jax.jit``.

    Examples:
      >>> loss = lambda w, batch: (w * batch) ** 2
      >>> round_ = cj.make_round(loss, optax.sgd(0.1), cj.cocod("workers"), period=1)
      >>> state = cj.replicate(round_.init(jnp.array(1.0)), 2)
      >>> print(cj.consensus(state._replace(params=jnp.array([1.0, 4.0]))))
      2.5
    """
    check_workers(state)
    return _weighted_mean(state.params, state.weight)


def consensus_model_state(state: RoundState) -> ModelState:
    """The model state that goes with :func:`consensus`.

    Batch statistics stay with their worker while it trains. For evaluation the
    floating-point leaves are averaged with the workers' weights, and the others,
    such as counters, take their maximum over the workers; PRNG keys are those of the
    process's first worker. They are averaged, never merged by difference: a variance
    could turn negative. With several processes all of them must call it, outside of
    ``jax.jit``.

    Args:
      state: after ``replicate`` (per worker, leading axis N).

    Returns:
      The model state, without the worker axis (shared).

    Raises:
      TypeError, ValueError: as :func:`consensus`.

    Examples:
      >>> loss = lambda w, statistics, batch, key: (w, statistics)
      >>> round_ = cj.make_round(
      ...     loss, optax.sgd(0.1), cj.cocod("workers"), period=1, stateful=True
      ... )
      >>> state = cj.replicate(round_.init(jnp.array(1.0), {"n": jnp.array(0)}), 2)
      >>> state = state._replace(model_state={"n": jnp.array([3, 5])})
      >>> print(cj.consensus_model_state(state)["n"])
      5
    """
    check_workers(state)
    return _weighted_mean(state.model_state, state.weight)


def _weighted_mean(tree: Any, weight: jax.Array) -> Any:
    part = _own_part(tree, weight)
    if _is_one_of_several(weight):
        part = jax.tree.map(_over_processes, part)
    return jax.tree.map(_narrow, part, tree)


@jax.jit
def _own_part(tree: Any, weight: jax.Array) -> Any:
    """What the workers of these arrays add to the mean, in float32 at least."""

    def part(leaf: jax.Array) -> jax.Array:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return leaf[0]
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            return leaf.max(axis=0)
        wide = jnp.promote_types(leaf.dtype, jnp.float32)
        return jnp.tensordot(
            weight.astype(wide), leaf.astype(wide), axes=1, precision="highest"
        )

    return jax.tree.map(part, tree)


def _narrow(leaf: jax.Array, like: jax.Array) -> jax.Array:
    is_key = jnp.issubdtype(like.dtype, jax.dtypes.prng_key)
    return leaf if is_key else leaf.astype(like.dtype)


def _is_one_of_several(weight: jax.Array) -> bool:
    """Whether there are workers in other processes, whose arrays are not here.

    Arrays that span processes are whole.
    """
    if jax.process_count() == 1:
        return False
    if isinstance(weight, jax.core.Tracer):
        raise ValueError(
            "within jax.jit the workers of other processes cannot be asked; call this "
            "outside of it."
        )
    return getattr(weight, "is_fully_addressable", True)  # as NumPy arrays are


def _over_processes(part: jax.Array) -> jax.Array:
    if jnp.issubdtype(part.dtype, jax.dtypes.prng_key):
        return part
    parts = multihost_utils.process_allgather(part)
    floats = jnp.issubdtype(part.dtype, jnp.inexact)
    return jnp.asarray(parts.sum(axis=0) if floats else parts.max(axis=0))


def check_equal_start(state: RoundState) -> None:
    """Makes sure that all workers start from the same model.

    Averaging cannot repair workers that never had a common start, and the loss
    does not show it. Call it after ``replicate``, or after loading a checkpoint of
    workers that should agree. With several processes all of them must call it.

    Args:
      state: after ``replicate`` (per worker, leading axis N).

    Raises:
      ValueError: naming the first array of the parameters or of the model state in
        which a worker differs from the first, and the worker, by its index among
        those of its process; or when ``state`` has no axis of workers.

    Examples:
      >>> round_ = cj.make_round(
      ...     lambda w, batch: w, optax.sgd(0.1), cj.cocod("workers"), period=1
      ... )
      >>> state = cj.replicate(round_.init(jnp.array(1.0)), 2)
      >>> cj.workers.check_equal_start(state)
      >>> cj.workers.check_equal_start(state._replace(params=jnp.array([1.0, 1.5])))
      Traceback (most recent call last):
      ...
      ValueError: the workers do not start equal: params of worker 1 differs ...
    """
    trees = {"params": state.params, "model_state": state.model_state}
    check_workers(state)
    with_others = _is_one_of_several(state.weight)
    found = _first_difference(trees, with_others)
    if with_others:
        # All raise, or one would leave the others waiting for it.
        differ = multihost_utils.process_allgather(np.array(found is not None))
        if found is None and differ.any():
            found = f"see process {', '.join(map(str, np.flatnonzero(differ)))}"
    if found is not None:
        raise ValueError(
            f"the workers do not start equal: {found}. Start all from one tree with "
            "cj.replicate."
        )


def _first_difference(trees: dict[str, Any], with_others: bool) -> str | None:
    """What differs from the first worker, of the first process with others."""
    differences = []
    for path, leaf in jax.tree.leaves_with_path(trees):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            continue  # every worker draws numbers of its own
        rows = np.asarray(leaf)
        first = (
            multihost_utils.broadcast_one_to_all(rows[0]) if with_others else rows[0]
        )
        floats = jnp.issubdtype(leaf.dtype, jnp.inexact)
        name = path[0].key + jax.tree_util.keystr(path[1:])
        differences += [
            f"{name} of worker {worker} differs from the first worker's"
            for worker, row in enumerate(rows)
            if not np.array_equal(row, first, equal_nan=floats)
        ]
    return differences[0] if differences else None
