"""How workers average: one flat buffer per dtype on the wire.

An exchange is a single all-reduce per dtype, whatever the number of leaves.
Separate leaves would become several all-reduces as soon as they exceed the
compiler's combining threshold (30 MiB on GPUs), and only one of them can be in
flight beside the local steps.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from cocod_jax._checks import check_sequence
from cocod_jax._typing import AxisName, Params, Weight


class Exchange(NamedTuple):
    """What is sent between workers, and what comes back.

    Attributes:
      average: ``(tree, weight=None) -> tree``, run inside the front door that
        binds the workers' axis. It holds every collective of the exchange.
        ``weight`` is this worker's share p_i; all of them have sum 1. None takes
        ``weights``. The result has the structure, shapes and dtypes of ``tree``.
      weights: the weights given at construction, one for each worker, with sum
        1; None when all workers count the same.
    """

    average: Callable[..., Params]
    weights: tuple[float, ...] | None = None


def mean(axis_name: AxisName, weights: Sequence[float] | None = None) -> Exchange:
    r"""The weighted mean over a named axis, with one all-reduce per dtype.

    .. math:: m = \sum_i p_i x_i, \qquad p_i = w_i / \sum_j w_j

    The leaves are raveled into one buffer per dtype. Leaves narrower than 32
    bits (bfloat16, float16) are summed in float32, in the float32 buffer, and
    come back in their own dtype. Leaves that are not floating point stay with their
    worker.

    Args:
      axis_name: the axis that ``pmap``, ``shard_map`` or ``vmap`` binds; a tuple
        of names averages over all of them.
      weights: one positive, finite number for each worker (shared); they are
        normalised. None gives every worker the same weight.

    Returns:
      An :class:`Exchange`.

    Raises:
      TypeError: at construction, when ``axis_name`` is not a string or a tuple
        of strings, or ``weights`` is no sequence.
      ValueError: at construction, when a weight is not positive and finite; in
        use, when ``axis_name`` is not bound, when there is not one weight for
        each worker, when the ``weight`` given to ``average`` is not a scalar, or
        when the tree has no floating-point leaf.

    Examples:
      >>> exchange = cj.mean("workers", weights=(1, 3))
      >>> params = {"w": jnp.array([[0.0, 4.0], [8.0, 4.0]])}  # a row per worker
      >>> average = jax.vmap(exchange.average, axis_name="workers")
      >>> print(average(params)["w"])
      [[6. 4.]
       [6. 4.]]
    """
    check_axis_name(axis_name)
    if weights is not None:
        weights = normalised(weights)

    def average(tree: Params, weight: Weight | None = None) -> Params:
        workers = _axis_size(axis_name)
        if weights is not None and len(weights) != workers:
            raise ValueError(
                f"weights has {len(weights)} entries, but axis {axis_name!r} has "
                f"{workers} workers; give one weight for each worker."
            )
        if weight is None:
            weight = 1 / workers if weights is None else _own(weights, axis_name)
        if jnp.ndim(weight):
            raise ValueError(
                f"weight has shape {jnp.shape(weight)}, but each worker has one scalar "
                "of its own; spread the state over the workers with cj.replicate."
            )

        leaves, treedef = jax.tree.flatten(jax.tree.map(jnp.asarray, tree))
        for dtype, members in _by_wire_dtype(leaves).items():
            buffer = jnp.concatenate([leaves[i].astype(dtype).ravel() for i in members])
            # Weighted before the sum: work that is left for after it, such as a
            # division, invites compilers to finish the exchange ahead of the steps.
            buffer = lax.psum(buffer * jnp.asarray(weight, dtype), axis_name)
            sizes = [leaves[i].size for i in members]
            ends = [sum(sizes[: n + 1]) for n in range(len(sizes) - 1)]
            for i, part in zip(members, jnp.split(buffer, ends), strict=True):
                leaves[i] = part.reshape(leaves[i].shape).astype(leaves[i].dtype)
        return jax.tree.unflatten(treedef, leaves)

    return Exchange(average, weights)


def as_exchange(
    axis_or_exchange: AxisName | Exchange, weights: Sequence[float] | None = None
) -> Exchange:
    """The exchange itself, or the mean over the axis of that name.

    Raises:
      ValueError: when both an exchange and ``weights`` are given.
    """
    if not isinstance(axis_or_exchange, Exchange):
        return mean(axis_or_exchange, weights)
    if weights is not None:
        raise ValueError(
            f"weights={weights!r} was given beside an exchange, which has its own; "
            "give the weights to the exchange: cj.mean(axis_name, weights)."
        )
    return axis_or_exchange


def normalised(weights: Sequence[float]) -> tuple[float, ...]:
    """The weights divided by their sum.

    Raises:
      TypeError: when it is no sequence.
      ValueError: when there is no weight, or one is not positive and finite.
    """
    check_sequence(weights=weights)
    values = tuple(float(w) for w in weights)
    if not values or not all(math.isfinite(w) and w > 0 for w in values):
        raise ValueError(
            f"weights={weights!r} must be positive, finite numbers, one for each "
            "worker; a worker that takes no part has no place on the axis."
        )
    total = math.fsum(values)
    return tuple(w / total for w in values)


def check_axis_name(axis_name: AxisName) -> None:
    """Raises TypeError unless ``axis_name`` is a string or a tuple of strings."""
    names = axis_name if isinstance(axis_name, tuple) else (axis_name,)
    if not names or not all(isinstance(name, str) for name in names):
        raise TypeError(
            f"axis_name={axis_name!r} must be a string, or a tuple of strings: the "
            'axis_name given to pmap or vmap, for example "workers".'
        )


def _axis_size(axis_name: AxisName) -> int:
    try:
        return lax.axis_size(axis_name)
    except NameError as error:
        raise ValueError(
            f"axis_name={axis_name!r} is not bound here. Run inside a front door that "
            f"binds it: cj.distribute(round_, {axis_name!r}), jax.pmap(f, "
            f"axis_name={axis_name!r}), jax.vmap(f, axis_name={axis_name!r}), or "
            "jax.shard_map over a mesh with that axis."
        ) from error


def _own(weights: tuple[float, ...], axis_name: AxisName) -> jax.Array:
    return jnp.asarray(weights)[lax.axis_index(axis_name)]


def _by_wire_dtype(leaves: list[jax.Array]) -> dict[jnp.dtype, list[int]]:
    """The positions of the floating-point leaves, by the dtype they travel in."""
    groups: dict[jnp.dtype, list[int]] = defaultdict(list)
    for i, leaf in enumerate(leaves):
        dtype = jnp.result_type(leaf)
        if jnp.issubdtype(dtype, jnp.inexact):
            # Sums of many narrow floats lose the small differences between workers.
            narrow = jnp.finfo(dtype).bits < 32
            groups[jnp.dtype(jnp.float32) if narrow else dtype].append(i)
    if not groups:
        dtypes = sorted({str(jnp.result_type(leaf)) for leaf in leaves})
        raise ValueError(
            f"the tree has no floating-point leaf to average (it has {len(leaves)} "
            f"leaves, of dtypes {dtypes}); give the parameters as arrays of floats."
        )
    return groups
