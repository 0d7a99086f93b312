"""What the workers are together: their mean, and whether they start equal."""

import hashlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from cocod_jax._meshes import outside_of_meshes
from cocod_jax._text import shown
from cocod_jax._trees import is_key, wide_dtype
from cocod_jax._typing import ModelState, Params
from cocod_jax.rounds._checks import of_all_workers
from cocod_jax.rounds._types import RoundState
from cocod_jax.workers._mesh import explicit_mesh, with_axes


def consensus(state: RoundState, device: jax.Device | None = None) -> Params:
    r"""The weighted mean of the workers' parameters: the model to evaluate.

    .. math:: \hat x = \sum_i p_i x_i

    Workers differ between rounds, each by its own progress; no single one is the
    model. Where all have the same number, it is that number in every bit, whatever the
    weights. Leaves of integers take their maximum. The mean is computed where the
    arrays are, and does not change ``state``. With several processes all of them
    must call it, outside of ``jax.jit``, and all get the same. In a loop with
    :func:`cocod_jax.every` it is
    ``jax.tree.map(lambda leaf: leaf.mean(axis=0), params)``.

    Args:
      state: after ``replicate`` (per worker, leading axis N).
      device: where the result goes, one of this process's devices, for what runs on
        one of them, such as an evaluation. None leaves it where it was computed: on the
        devices of all workers, where they have their own.

    Returns:
      The parameters, without the worker axis, in their own dtypes (shared).

    Raises:
      TypeError: when ``state`` is not a RoundState, or ``device`` no device.
      ValueError: when ``state`` has no axis of workers, when ``device`` belongs to
        another process, or with several processes when it is called within
        ``jax.jit``.

    Examples:
      >>> loss = lambda w, batch: (w * batch) ** 2
      >>> round_ = cj.make_round(loss, optax.sgd(0.1), cj.cocod("workers"), period=1)
      >>> state = cj.replicate(round_.init(jnp.array(1.0)), 2)
      >>> print(cj.consensus(state._replace(params=jnp.array([1.0, 4.0]))))
      2.5
    """
    state = of_all_workers(state)
    return _weighted_mean(state.params, state.weight, device)


def consensus_model_state(
    state: RoundState, device: jax.Device | None = None
) -> ModelState:
    """The model state that goes with :func:`consensus`.

    Batch statistics stay with their worker while it trains. For evaluation the
    floating-point leaves are averaged with the workers' weights, and the others,
    such as counters, take their maximum over the workers; PRNG keys are those of the
    process's first worker. They are averaged, never merged by difference: a variance
    could turn negative. With several processes all of them must call it, outside of
    ``jax.jit``.

    Args:
      state: after ``replicate`` (per worker, leading axis N).
      device: as for :func:`consensus`.

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
    state = of_all_workers(state)
    return _weighted_mean(state.model_state, state.weight, device)


@outside_of_meshes()
def _weighted_mean(tree: Any, weight: jax.Array, device: jax.Device | None) -> Any:
    _check_device(device)
    mesh = next(filter(None, map(explicit_mesh, jax.tree.leaves(tree))), None)
    if mesh is not None:  # sums over an explicit axis have to say what comes out
        tree, weight = with_axes(AxisType.Auto, (tree, weight))
        mean = _weighted_mean(tree, weight, device)
        return mean if device is not None else with_axes(AxisType.Explicit, mean)
    if _has_remote_workers(weight):
        mean = _together(_of_all_processes(_own_part(tree, weight)))
    else:
        mean = _of_one_process(tree, weight)
    if device is None:
        return mean
    mean = mean if jax.process_count() == 1 else jax.tree.map(_own_copy, mean)
    return jax.device_put(mean, device)


def _own_copy(leaf: jax.Array) -> jax.Array:
    """What spans processes, whole in each of them."""
    if leaf.is_fully_addressable:
        return leaf
    return _gathered(leaf).addressable_data(0)


def _gathered(leaf: jax.Array) -> jax.Array:
    """A copy on each of the devices that share an array."""
    sharding = leaf.sharding
    assert isinstance(sharding, NamedSharding)  # as all arrays on a mesh
    everywhere = NamedSharding(sharding.mesh, PartitionSpec())
    return jax.jit(lambda leaf: leaf, out_shardings=everywhere)(leaf)


def _check_device(device: Any) -> None:
    """Raises unless it is a device of this process, or None."""
    if device is None:
        return
    if not isinstance(device, jax.Device):
        raise TypeError(
            f"device={shown(device)} must be one of jax.local_devices(), or None."
        )
    if device.process_index != jax.process_index():
        raise ValueError(
            f"device={device} belongs to process {device.process_index}, and this is "
            f"process {jax.process_index()}; give one of jax.local_devices()."
        )


class _Part(NamedTuple):
    """What the workers of some processes are to the consensus, by leaf.

    Each has a leading axis of processes.

    Attributes:
      mean: what they add to the mean, in float32 at least; the maximum of integers.
      first: the number of the first worker.
      equal: whether the others have that number too.
    """

    mean: jax.Array
    first: jax.Array
    equal: jax.Array


@jax.jit
def _own_part(tree: Any, weight: jax.Array) -> Any:
    """A tree of the parts of the workers of these arrays, and of their first key."""

    def part(leaf: jax.Array) -> jax.Array | _Part:
        if is_key(leaf):
            return leaf[0]
        first, equal = leaf[:1], (leaf == leaf[:1]).all(axis=0, keepdims=True)
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            return _Part(leaf.max(axis=0, keepdims=True), first, equal)
        wide = wide_dtype(leaf.dtype)
        shares, leaf = weight.astype(wide)[None], leaf.astype(wide)
        mean = jnp.tensordot(shares, leaf, axes=1, precision="highest")
        return _Part(mean, first, equal)

    return jax.tree.map(part, tree)


@jax.jit
def _together(parts: Any) -> Any:
    """The consensus of all processes' parts; keys stay what they are."""

    def together(part: Any) -> jax.Array:
        if not isinstance(part, _Part):
            return part
        floats = jnp.issubdtype(part.first.dtype, jnp.inexact)
        mean = part.mean.sum(axis=0) if floats else part.mean.max(axis=0)
        # The shares have the sum 1 but for rounding: a sum would move equal workers.
        # One of differences from the first would not, but inf - inf is not 0.
        equal = (part.equal & (part.first == part.first[:1])).all(axis=0)
        return jnp.where(equal, part.first[0], mean.astype(part.first.dtype))

    return jax.tree.map(together, parts, is_leaf=lambda node: isinstance(node, _Part))


@jax.jit
def _of_one_process(tree: Any, weight: jax.Array) -> Any:
    """As one program, in which the parts need no memory of their own."""
    return _together(_own_part(tree, weight))


def _has_remote_workers(weight: jax.Array) -> bool:
    """Whether other processes have workers whose arrays are missing in this one.

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


def _of_all_processes(parts: Any) -> Any:
    """The parts, with the axis of processes at its full length; keys are one's own.

    One collective for each dtype, of all its arrays in one buffer.
    """
    leaves, treedef = jax.tree.flatten(parts)
    by_dtype: dict[Any, list[int]] = {}
    for i, leaf in enumerate(leaves):
        if not is_key(leaf):
            by_dtype.setdefault(leaf.dtype, []).append(i)
    for members in by_dtype.values():
        own = np.concatenate([np.ravel(leaves[i]) for i in members])
        gathered = multihost_utils.process_allgather(own)
        ends = np.cumsum([leaves[i].size for i in members])[:-1]
        split = np.split(gathered, ends, axis=1)
        for i, part in zip(members, split, strict=True):
            leaves[i] = part.reshape(-1, *leaves[i].shape[1:])
    return jax.tree.unflatten(treedef, leaves)


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
    state = of_all_workers(state)
    trees = {"params": state.params, "model_state": state.model_state}
    with_others = _has_remote_workers(state.weight)
    spans_processes = not getattr(state.weight, "is_fully_addressable", True)
    if spans_processes:
        found = _first_difference_on_devices(trees)
    else:
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
    names, rows = [], []
    for path, leaf in jax.tree.leaves_with_path(trees):
        if is_key(leaf):
            continue  # every worker draws numbers of its own
        names.append(path[0].key + jax.tree_util.keystr(path[1:]))
        rows.append([_digest(row) for row in np.asarray(leaf)])
    if not names:
        return None
    digests = np.array(rows, np.uint8).reshape(len(names), -1, _DIGEST)
    first = digests[:, 0]
    if with_others:  # one collective, of digests: no leaf travels
        first = multihost_utils.broadcast_one_to_all(first)
    differs = (digests != first[:, None]).any(axis=2)
    if not differs.any():
        return None
    leaf, worker = np.argwhere(differs)[0]
    return f"{names[leaf]} of worker {worker} differs from the first worker's"


def _first_difference_on_devices(trees: dict[str, Any]) -> str | None:
    """The same of arrays of which each process has a part; they compare in place."""

    @jax.jit
    def differs(leaf: jax.Array) -> jax.Array:
        first, axes = leaf[:1], tuple(range(1, leaf.ndim))
        unequal = (leaf != first) & ~((leaf != leaf) & (first != first))  # or both NaN
        return unequal.any(axis=axes)

    for path, leaf in jax.tree.leaves_with_path(trees):
        if is_key(leaf):
            continue
        workers = np.flatnonzero(_own_copy(differs(leaf)))
        if workers.size:
            name = path[0].key + jax.tree_util.keystr(path[1:])
            return f"{name} of worker {workers[0]} differs from the first worker's"
    return None


_DIGEST = 16  # bytes


def _digest(row: np.ndarray) -> list[int]:
    """A fingerprint of the numbers: equal for equal ones, NaN and signed zeros too."""
    if jnp.issubdtype(row.dtype, jnp.inexact):
        row = np.where(np.isnan(row), np.nan, row + 0).astype(row.dtype)
    content = np.ascontiguousarray(row).tobytes()
    return list(hashlib.blake2b(content, digest_size=_DIGEST).digest())
