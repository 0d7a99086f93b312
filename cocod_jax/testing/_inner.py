"""Whether an inner optimizer leaves a merge as it is."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from cocod_jax._trees import own_copy
from cocod_jax._typing import Params
from cocod_jax.rounds._checks import check_optimizer, check_params

_LAST_MERGE = 8  # steps: merges come after each number of them, for those with a cycle
_AFTER = 64  # steps from a merge to the look at what is left of it
_GRADIENTS = 3  # sequences: updates may depend on both, and lead back by chance
_UNDONE = 0.25  # weight decay on a rate that is warmed up was seen to come to 0.1


def check_inner(
    optimizer: optax.GradientTransformation, params: Params | None = None
) -> None:
    r"""An optimizer of local steps does not undo a merge.

    A merge moves the parameters, and the optimizer's state stays as it is. Most states
    hold gradients, but some hold a copy of the parameters, to which the next updates
    lead back. Those of ``schedule_free``, ``cocob``, ``madgrad``, ``mechanize`` and
    ``sam`` in ``optax.contrib`` do. Their workers move apart as if they never merged.

    The check shifts the parameters by a random tree :math:`\delta` after a few steps.
    Some steps later it compares them with those of a run without the shift, but with
    the same random gradients:

    .. math:: 1 - \lVert x^{\delta}_t - x_t \rVert \, / \, \lVert \delta \rVert

    is undone. What as many steps make of a shift before ``init``, by weight decay for
    example, does not count.

    Args:
      optimizer: as ``inner`` of :func:`cocod_jax.make_round`.
      params: parameters for it, where it needs those of your model, such as a
        partition by their names; None takes a matrix and a vector.

    Raises:
      AssertionError: naming the leaf and saying how much of the shift was undone, when
        that is more than a quarter; or when the parameters do not stay finite.
      TypeError: when ``optimizer`` is not an optax transform, or a leaf of ``params``
        cannot be trained.
      ValueError: when ``params`` has no leaf.

    Examples:
      >>> from cocod_jax import testing
      >>> testing.check_inner(optax.adamw(0.01, weight_decay=0.1))
      >>> testing.check_inner(optax.contrib.schedule_free_sgd(0.1))
      Traceback (most recent call last):
      ...
      AssertionError: the optimizer undoes a merge: 98% of a shift of params[...
    """
    check_optimizer(optimizer, "optimizer")
    if params is None:
        like = {"matrix": jnp.ones([16, 8]), "vector": jnp.ones(16)}
        params = _draw(jax.random.key(0), like)
    check_params(params)
    if not jax.tree.leaves(params):
        raise ValueError(f"params={params} has no leaf to shift.")
    left = _what_is_left(optimizer, own_copy(params))
    names = [
        jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(params)
    ]
    if not np.isfinite(left).all():
        raise AssertionError(
            "the optimizer cannot be checked: with random gradients, of variance 1, "
            "the parameters do not stay finite"
        )
    left = np.minimum(left, 1).max(axis=0)  # growth is not what is looked for
    undone = left[0] - left[1:]  # [merge, leaf]
    merge, leaf = np.unravel_index(undone.argmax(), undone.shape)
    if undone[merge, leaf] > _UNDONE:
        raise AssertionError(
            f"the optimizer undoes a merge: {undone[merge, leaf]:.0%} of a shift of "
            f"params{names[leaf]} after step {merge + 1} was gone {_AFTER} steps "
            "later. Its state seems to keep a copy of the parameters, to which its "
            "updates lead back. Take one whose state holds gradients alone, such as "
            "optax.sgd or optax.adam"
        )


def _what_is_left(
    optimizer: optax.GradientTransformation, params: Params
) -> np.ndarray:
    """[gradients, 1 + merges, leaves]; the first merge comes before ``init``."""
    optimizer = optax.with_extra_args_support(optimizer)
    shift = _draw(jax.random.key(1), params)

    def merged(params: Params, now: jax.Array | bool) -> Params:
        return jax.tree.map(lambda x, s: jnp.where(now, x + s, x), params, shift)

    def run(key: jax.Array, at: jax.Array, shifted: bool) -> Params:
        start = merged(params, shifted & (at == 0))

        def step(t: jax.Array, carry: tuple[Params, Any]) -> tuple[Params, Any]:
            params, state = carry
            params = merged(params, shifted & (at == t) & (t > 0))
            # Those of a loss that is linear: they do not know of the shift.
            gradient = _draw(jax.random.fold_in(key, t), params)
            value = optax.tree.real(optax.tree.vdot(gradient, params))
            loss = {"value": value} if _takes_value(optimizer) else {}
            updates, state = optimizer.update(gradient, state, params, **loss)
            return optax.apply_updates(params, updates), state

        carry = start, own_copy(optimizer.init(start))
        return lax.fori_loop(0, at + _AFTER, step, carry)[0]

    @jax.jit
    def left(key: jax.Array, at: jax.Array) -> list[jax.Array]:
        norm = lambda x, other: jnp.linalg.norm(jnp.ravel(x - other))
        difference = jax.tree.map(norm, run(key, at, True), run(key, at, False))
        whole = jax.tree.map(lambda s: norm(s, jnp.zeros_like(s)), shift)
        return jax.tree.leaves(jax.tree.map(jnp.divide, difference, whole))

    keys = jax.random.split(jax.random.key(2), _GRADIENTS)
    merges = jnp.arange(1 + _LAST_MERGE)
    return np.array([[jax.device_get(left(k, at)) for at in merges] for k in keys])


def _takes_value(optimizer: optax.GradientTransformationExtraArgs) -> bool:
    try:
        inspect.signature(optimizer.update).bind(None, None, None, value=None)
    except TypeError:
        return False
    return True


def _draw(key: jax.Array, like: Params) -> Params:
    """A tree of normal numbers."""
    leaves, treedef = jax.tree.flatten(like)
    draws = [
        jax.random.normal(jax.random.fold_in(key, i), x.shape, x.dtype)
        for i, x in enumerate(leaves)
    ]
    return jax.tree.unflatten(treedef, draws)
