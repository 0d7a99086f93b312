"""A worker whose step is not finite gives up, and waits to be healed.

Its parameters could stay as they were before the step. But few workers break at once:
the numbers of one that diverges grow, and what it sent next would be finite and huge.
As NaN it is left out of every exchange until merges have replaced all of it.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from cocod_jax._trees import all_finite, choose, is_float
from cocod_jax._typing import ModelState, Params, Tree


class Trained(NamedTuple):
    """What a local step changes, of one worker: fields of its state."""

    params: Params
    opt_state: optax.OptState
    model_state: ModelState


def or_given_up(taken: Trained, instead: Trained, grad_norm: jax.Array) -> Trained:
    """What a step has made, or what a worker has that gives up.

    Args:
      taken: after the step.
      instead: parameters and model state before it, and the optimizer's first state.
      grad_norm: of the step's gradient.
    """
    healthy = jnp.isfinite(grad_norm)
    # Streamed, a merge heals a piece: what is finite then must stay so.
    is_new = all_finite(instead.params)
    nan_if_new = lambda x: jnp.where(is_new, jnp.nan, x).astype(x.dtype)
    instead = instead._replace(params=_of_floats(nan_if_new, instead.params))
    return _of_floats(lambda x, y: choose(healthy, x, y), taken, instead)


def _of_floats(function: Any, tree: Tree, *others: Tree) -> Tree:
    """The tree with its floats changed.

    Counters go on: with them, a learning rate would be warmed up once more.
    """
    one = lambda x, *others: function(x, *others) if is_float(x) else x
    return jax.tree.map(one, tree, *others)
