"""The inner optimizer, called with what it takes."""

import inspect
from typing import Any

import jax
import optax

from cocod_jax._checks import check_pair
from cocod_jax._trees import check_arrays, check_like, check_same_tree, is_float


def with_what_it_takes(
    inner: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """The same optimizer, for any extra arguments; it gets those that it takes.

    The signature decides, not the class: ``optax.MultiSteps`` passes ``value`` on
    and is no ``GradientTransformationExtraArgs``, and a chain may be of that class
    and take nothing.
    """
    taken = _extra_arguments(inner)

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        given = {
            name: value
            for name, value in extra_args.items()
            if taken is None or name in taken
        }
        after, state = check_pair(
            inner.update(updates, state, params, **given),
            "inner.update",
            "updates, state",
        )
        name, like_name = "what inner.update returned", "the gradient"
        check_same_tree(after, updates, name, like_name)
        # Integers stay as they are: what optax makes of their zeros may be floats.
        floats = lambda tree: jax.tree.map(
            lambda leaf, gradient: leaf if is_float(gradient) else None, tree, updates
        )
        check_like(floats(after), floats(updates), name, like_name)
        return after, state

    def init(params: optax.Params) -> optax.OptState:
        state = inner.init(params)
        check_arrays(state, "the state of inner.init")
        return state

    return optax.GradientTransformationExtraArgs(init, update)


def _extra_arguments(inner: optax.GradientTransformation) -> frozenset[str] | None:
    """The names that ``inner.update`` takes; None when it takes any."""
    try:
        parameters = inspect.signature(inner.update).parameters.values()
    except (TypeError, ValueError):  # what is not written in Python may have none
        several = isinstance(inner, optax.GradientTransformationExtraArgs)
        return None if several else frozenset()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return frozenset(p.name for p in parameters if p.kind in by_name)
