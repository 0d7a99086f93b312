"""Comparisons of whole trees."""

from typing import Any

import jax


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
        if jax.numpy.shape(leaf) != jax.numpy.shape(other):
            raise ValueError(
                f"{name} and {like_name} must have the same shapes; at "
                f"{jax.tree_util.keystr(path) or 'the root'} they are "
                f"{jax.numpy.shape(leaf)} and {jax.numpy.shape(other)}."
            )
