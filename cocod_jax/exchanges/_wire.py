"""Trees as flat buffers, one for each dtype on the wire.

Separate leaves would become several collectives as soon as they exceed the compiler's
combining threshold (30 MiB on GPUs), and only one of them can be in flight beside the
local steps.
"""

import functools
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cocod_jax._trees import check_arrays
from cocod_jax._typing import Tree


def ravel(tree: Tree) -> dict[str, jax.Array]:
    """The floating-point leaves in one flat buffer for each dtype, by its name.

    Leaves narrower than 32 bits (bfloat16, float16) go into the float32 buffer: sums
    of many narrow floats lose the small differences between workers. A tree without
    leaves, such as a group of ``optax.partition`` that labels nothing, has no buffer.

    Raises:
      TypeError: when a leaf is no array.
      ValueError: when the tree has leaves, and none of them is floating point.
    """
    check_arrays(tree, "the tree")
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    buffers = {
        name: jnp.concatenate([leaves[i].astype(name).ravel() for i in members])
        for name, members in _by_wire_dtype(leaves).items()
    }
    check_floats(leaves)
    return buffers


def check_floats(leaves: list[Any]) -> None:
    """Raises ValueError when there are leaves, and none of them is floating point."""
    dtypes = {jnp.result_type(leaf) for leaf in leaves}
    if leaves and not any(jnp.issubdtype(dtype, jnp.inexact) for dtype in dtypes):
        raise ValueError(
            f"the tree has no floating-point leaf to average (it has {len(leaves)} "
            f"leaves, of dtypes {sorted(map(str, dtypes))}); give the parameters as "
            "arrays of floats."
        )


def unravel(buffers: dict[str, jax.Array], like: Tree) -> Tree:
    """The tree that was raveled, with the buffers' numbers in its own dtypes.

    Leaves that are not floating point were not raveled, and come from ``like``.
    """
    leaves, treedef = jax.tree.flatten(jax.tree.map(jnp.asarray, like))
    for name, members in _by_wire_dtype(leaves).items():
        parts = cut(buffers[name], [leaves[i].size for i in members])
        for i, part in zip(members, parts, strict=True):
            leaves[i] = part.reshape(leaves[i].shape).astype(leaves[i].dtype)
    return jax.tree.unflatten(treedef, leaves)


def cut(buffer: jax.Array, sizes: Sequence[int]) -> list[jax.Array]:
    """The buffer in pieces of these sizes."""
    starts = np.cumsum([0, *sizes[:-1]])

    def at_constants(buffer: jax.Array) -> list[jax.Array]:
        return jnp.split(buffer, starts[1:])

    def at_numbers(buffer: jax.Array) -> list[jax.Array]:
        # The same numbers either way, which the compiler does not know.
        begin = lambda: [jnp.int32(start) for start in starts]
        numbers = lax.cond(jnp.isnan(buffer[:1]).any(), begin, begin)
        cut = functools.partial(
            lax.dynamic_slice_in_dim, buffer, allow_negative_indices=False
        )
        return list(map(cut, numbers, sizes))

    # On CPUs XLA compiles a kernel for each piece that begins at another constant,
    # which takes longer than all else in a merge of a thousand leaves. Pieces that
    # begin at numbers share one if they have the same size; it is a little slower.
    if len(sizes) < 128 or starts[-1] > np.iinfo(np.int32).max:
        return at_constants(buffer)
    return lax.platform_dependent(buffer, cpu=at_numbers, default=at_constants)


def _by_wire_dtype(leaves: list[jax.Array]) -> dict[str, list[int]]:
    """The positions of the floating-point leaves, by the dtype they travel in."""
    groups: dict[str, list[int]] = defaultdict(list)
    for i, leaf in enumerate(leaves):
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            narrow = jnp.finfo(leaf.dtype).bits < 32
            groups["float32" if narrow else leaf.dtype.name].append(i)
    return groups
