"""Operations on whole trees: compare, measure, copy, cast, hold back."""

from numbers import Number
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from cocod_jax._text import shown


def check_same_tree(tree: Any, like: Any, name: str, like_name: str) -> None:
    """Raises ValueError unless both trees have the same structure and shapes."""
    structure, expected = jax.tree.structure(tree), jax.tree.structure(like)
    if structure != expected:
        raise ValueError(
            f"{name} and {like_name} must have the same tree structure; got "
            f"{structure} and {expected}."
        )
    leaves = jax.tree.leaves_with_path(tree)
    for (path, leaf), other in zip(leaves, jax.tree.leaves(like), strict=True):
        if jnp.shape(leaf) != jnp.shape(other):
            raise ValueError(
                f"{name} and {like_name} must have the same shapes; at "
                f"{jax.tree_util.keystr(path) or 'the root'} they are "
                f"{jnp.shape(leaf)} and {jnp.shape(other)}."
            )


def check_like(tree: Any, like: Any, name: str, like_name: str) -> None:
    """Raises as :func:`check_same_tree`, and where a cast would lose more than digits.

    Raises:
      TypeError: naming a leaf that is no array; or one of integers where floats are
        asked for, or of complex numbers where real ones are.
      ValueError: naming a leaf of another shape.
    """
    check_same_tree(tree, like, name, like_name)
    check_arrays(tree, name)
    leaves = jax.tree.leaves_with_path(tree)
    for (path, leaf), other in zip(leaves, jax.tree.leaves(like), strict=True):
        own, wanted = jnp.result_type(leaf), jnp.result_type(other)
        if not _holds(wanted, own):
            raise TypeError(
                f"{name}{jax.tree_util.keystr(path)} has the dtype {own}, and "
                f"{like_name} {wanted}; return numbers of that kind."
            )


def _holds(wanted: Any, own: Any) -> bool:
    """Whether numbers of one dtype can become those of another, but for rounding."""
    is_real = jnp.issubdtype(own, jnp.floating)
    if jnp.issubdtype(wanted, jnp.complexfloating):
        return is_real or jnp.issubdtype(own, jnp.complexfloating)
    return is_real == jnp.issubdtype(wanted, jnp.floating)


def check_arrays(tree: Any, name: str, cure: str = "") -> None:
    """Raises TypeError, with the leaf's name, unless all leaves are arrays or numbers.

    Models of some libraries are trees with functions and names among their leaves.
    """
    for path, leaf in jax.tree.leaves_with_path(tree):
        if not _is_array(leaf):
            raise TypeError(
                f"{name}{jax.tree_util.keystr(path)} is {shown(leaf)}, of type "
                f"{type(leaf).__name__}; every leaf must be an array or a number."
                f"{cure and ' ' + cure}"
            )


OF_A_MODEL = (
    "Keep the others out, as params, static = eqx.partition(model, "
    "eqx.is_inexact_array) does, and combine them in the loss."
)
"""What to do with a model among whose leaves there are others."""


def _is_array(leaf: Any) -> bool:
    """Whether JAX takes the leaf for an array; to it "float32" has a dtype, too."""
    if not isinstance(leaf, jax.Array | np.ndarray | np.generic | Number):
        return hasattr(leaf, "__jax_array__")
    try:
        jnp.result_type(leaf)
    except TypeError:  # an array of names or objects
        return False
    return True


def same_shapes(tree: Any, other: Any) -> bool:
    """Whether both trees have the same structure and shapes."""
    described = lambda tree: (
        jax.tree.structure(tree),
        [jnp.shape(leaf) for leaf in jax.tree.leaves(tree)],
    )
    return described(tree) == described(other)


def own_copy(tree: Any) -> Any:
    """The tree with buffers and dtypes of its own.

    A donated state must not take the caller's arrays with it, nor hold one buffer
    twice; and a dtype that is only a Python number's would change in the first step,
    and the second would compile again.
    """
    return jax.tree.map(lambda leaf: jnp.array(leaf, jnp.result_type(leaf)), tree)


def few_leaves(tree: Any) -> list[jax.Array]:
    """The leaves; of 128 or more, the small ones as one vector, float32 at least.

    What is done leaf by leaf compiles sooner then. Trees of the same shapes stay so.
    Leaves that several devices share would be gathered for it, and stay apart.
    """
    leaves = jax.tree.leaves(tree)
    mesh = jax.sharding.get_abstract_mesh()
    if len(leaves) < 128 or set(mesh.axis_names) > set(mesh.manual_axes):
        return leaves
    is_small = lambda leaf: leaf.size < 2**14
    small = [wide(leaf).ravel() for leaf in leaves if is_small(leaf)]
    few = [leaf for leaf in leaves if not is_small(leaf)]
    return [*few, jnp.concatenate(small)] if small else few


def norm(tree: Any) -> jax.Array:
    """The Euclidean norm of a tree, in float32 at least.

    It is the norm of the leaves' norms. The sum of their squares would be one kernel to
    XLA, whose compilation takes a time quadratic in the number of leaves.
    """
    norms = [optax.tree.norm(wide(leaf)) for leaf in few_leaves(tree)]
    return optax.tree.norm(jnp.array(norms))  # of none as well


def at(tree: Any, index: jax.Array | int) -> Any:
    """Every leaf at one place of its first axis, counted from its start.

    A loop over the first few entries reads them by index. Slicing those entries off
    would copy them, and not all compilers start an exchange before the copy.
    """
    take = lambda leaf: lax.dynamic_index_in_dim(
        leaf, index, keepdims=False, allow_negative_indices=False
    )
    return jax.tree.map(take, tree)


def put_at(tree: Any, index: jax.Array | int, own: Any) -> Any:
    """The tree with ``own`` at one place of the first axis of every leaf."""
    put = lambda leaf, own: lax.dynamic_update_index_in_dim(
        leaf, own, index, 0, allow_negative_indices=False
    )
    return jax.tree.map(put, tree, own)


def choose(condition: jax.Array, tree: Any, other: Any) -> Any:
    """The one tree or the other; the condition is one for all, or one for each number.

    It is ``jnp.where`` without the function call that this is for every leaf, and
    without its promotion of types.
    """
    return jax.tree.map(lambda x, y: lax.select(condition, x, y), tree, other)


def is_float(leaf: Any) -> bool:
    """Whether a leaf holds floating-point numbers, or complex ones."""
    return jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)


def all_finite(tree: Any) -> jax.Array:
    """Whether all floating-point numbers of a tree are finite; a scalar."""
    finite = [jnp.isfinite(leaf).all() for leaf in few_leaves(tree) if is_float(leaf)]
    return jnp.array(finite).all()


def stays_finite(new: Any, old: Any) -> jax.Array:
    """Whether the floats that were finite still are; others may be anything.

    What is not finite on purpose, such as a running minimum at its start, is none of
    them.
    """
    floats = lambda tree: few_leaves(list(filter(is_float, jax.tree.leaves(tree))))
    pairs = zip(floats(new), floats(old), strict=True)
    stays = [(jnp.isfinite(x) | ~jnp.isfinite(y)).all() for x, y in pairs]
    return jnp.array(stays, bool).all()


def is_key(leaf: Any) -> bool:
    """Whether a leaf holds typed PRNG keys."""
    return jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key)


def barrier(tree: Any) -> Any:
    """The tree, all of which is computed before any of it is used.

    PRNG keys pass beside the barrier, which JAX's check of keys would count as a use.
    """
    leaves, treedef = jax.tree.flatten(tree)
    held = iter(_hold([x for x in leaves if not is_key(x)]))
    return jax.tree.unflatten(treedef, [x if is_key(x) else next(held) for x in leaves])


def _hold(arrays: list[Any]) -> list[Any]:
    """The arrays behind barriers of at most 64.

    Compilation takes a time quadratic in the operands of one. A number goes through
    each in turn, and then into all: it is there when the last array is, and no array
    is there before it.
    """
    if len(arrays) <= 64:
        return lax.optimization_barrier(arrays)
    parts = [arrays[i : i + 64] for i in range(0, len(arrays), 64)]
    last = jnp.zeros([])
    for i, part in enumerate(parts):
        last, parts[i] = lax.optimization_barrier((last, part))
    return [x for part in parts for x in lax.optimization_barrier((last, part))[1]]


def cast_like(tree: Any, like: Any) -> Any:
    """The tree with the dtypes of ``like``, varying over the same mapped axes.

    In a ``shard_map`` that checks types, a value that all workers share, such as a
    mean, has another type than a value of one worker.
    """

    def cast(leaf: Any, like: Any) -> jax.Array:
        if not is_key(like):
            leaf = jnp.asarray(leaf, jnp.result_type(like))
        missing = tuple(varying_axes(like) - varying_axes(leaf))
        return lax.pcast(leaf, missing, to="varying") if missing else leaf

    return jax.tree.map(cast, tree, like)


def wide_dtype(dtype: Any) -> Any:
    """float32, or the dtype itself where it is no narrower.

    JAX's own promotion refuses some pairs: 8-bit floats, and all in its strict mode.
    """
    is_float = jnp.issubdtype(dtype, jnp.inexact)
    return dtype if is_float and jnp.finfo(dtype).bits >= 32 else jnp.float32


def wide(tree: Any) -> Any:
    """The tree in float32 at least."""
    return jax.tree.map(lambda leaf: leaf.astype(wide_dtype(leaf.dtype)), tree)


def zeros_of(shape: jax.ShapeDtypeStruct) -> jax.Array:
    """Zeros of the type that ``jax.eval_shape`` tells, in a mesh as well."""
    zeros = jnp.zeros(shape.shape, shape.dtype, out_sharding=shape.sharding)
    manual = getattr(shape, "manual_axis_type", None)
    varying = tuple(getattr(manual, "varying", ()))
    return lax.pcast(zeros, varying, to="varying") if varying else zeros


def varying_axes(leaf: Any) -> frozenset[str]:
    """The mapped axes over which an array's type says that it differs."""
    manual = getattr(jax.typeof(leaf), "mat", None)
    return getattr(manual, "varying", frozenset())
