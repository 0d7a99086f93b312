"""What a round refuses, with a message that names the argument or the leaf."""

from numbers import Number, Real
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cocod_jax._checks import check_period, is_transform
from cocod_jax._text import shown
from cocod_jax._trees import OF_A_MODEL, check_arrays
from cocod_jax._typing import Batches, Params
from cocod_jax.rounds._micro_batches import MicroBatches, check_micro_batches
from cocod_jax.rounds._types import RoundState
from cocod_jax.rules import MergeRule


def check_optimizer(inner: optax.GradientTransformation, name: str = "inner") -> None:
    """Raises TypeError, with the argument's name, unless it is an optax transform."""
    if isinstance(inner, MergeRule) or not is_transform(inner):
        raise TypeError(
            f"{name}={shown(inner)} must be an optax transform of gradients, such as "
            "optax.sgd(0.1)."
        )


def check_transforms(inner: optax.GradientTransformation, rule: MergeRule) -> None:
    """Raises TypeError unless these are an optax transform and a merge rule."""
    if not isinstance(rule, MergeRule):
        raise TypeError(
            f"rule={shown(rule)} must be a MergeRule, such as cj.cocod('workers'). A "
            "transform that averages gradients belongs to inner, with the rule "
            "cj.independent(), which averages nothing else."
        )
    check_optimizer(inner)


def check_params(params: Params) -> None:
    """Raises TypeError, with the leaf's name, unless all leaves can be trained.

    Those are arrays and numbers, floating-point or complex ones.
    """
    check_arrays(params, "params", OF_A_MODEL)
    for path, leaf in jax.tree.leaves_with_path(params):
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.inexact):
            raise TypeError(
                f"params{jax.tree_util.keystr(path)} has the dtype {dtype}, and so no "
                "gradient. Leave it out of the training with make_round(..., "
                "trainable=...); or out of the parameters, as params, static = "
                "eqx.partition(model, eqx.is_inexact_array) does."
            )


def check_streamed(rule: MergeRule, period: int, delay: int | None) -> tuple[int, int]:
    """Period and delay of a streamed round: a step for each collective of a piece.

    Raises:
      ValueError: when the rule cannot be given pieces, the period is no integer in its
        range, or the delay is another.
    """
    period, _ = check_period(period, None)
    own, steps = (1, "one step") if rule.exchange.phases is None else (2, "two steps")
    if delay not in (None, own):
        raise ValueError(
            f"delay={delay}, but with streamed=True every piece of this exchange is "
            f"merged after {steps}; leave delay out."
        )
    if not rule.streams:
        raise ValueError(
            "this rule, or its exchange, needs the whole model at once "
            "(streams=False), and streamed=True gives it a piece in every step."
        )
    if period < own:
        raise ValueError(
            f"period={period}, but streamed, a piece of this exchange takes two steps, "
            "one for each of its collectives; period must be at least 2."
        )
    return period, own


def check_workers(state: RoundState) -> int:
    """The number of workers in a state's arrays.

    Raises:
      TypeError: when it is no state.
      ValueError: when the state is that of one worker, without an axis of workers.
    """
    if not isinstance(state, RoundState):
        both = isinstance(state, tuple) and any(
            isinstance(s, RoundState) for s in state
        )
        raise TypeError(
            "state is a tuple, as a run returns: state, metrics = run(state, batches)."
            if both
            else f"state={shown(state)} must be a RoundState, such as "
            "cj.replicate(round_.init(params), workers)."
        )
    if jnp.ndim(state.count) != 1:
        raise ValueError(
            "state has no axis of workers; give every worker its own with "
            "cj.replicate(state, workers)."
        )
    return state.count.shape[0]


def of_all_workers(state: RoundState) -> RoundState:
    """The state with every leaf that is one number given to all workers.

    Raises:
      TypeError: when it is no state, or a leaf is no array.
      ValueError: when it has no axis of workers, or a leaf of it has another.
    """
    workers = check_workers(state)
    if all(np.shape(leaf)[:1] == (workers,) for leaf in jax.tree.leaves(state)):
        return state

    def spread(path: Any, leaf: Any) -> Any:
        name, shape = "state" + jax.tree_util.keystr(path), np.shape(leaf)
        if shape[:1] == (workers,):
            return leaf
        if not isinstance(leaf, jax.Array | np.ndarray | Number | np.generic):
            raise TypeError(f"{name} is {shown(leaf)}; it must be an array.")
        if shape:
            raise ValueError(
                f"{name} has shape {shape}; axis 0 must have length {workers}: what "
                "each worker has. One number, without an axis, is given to all."
            )
        return jnp.full([workers], jnp.asarray(leaf), jnp.result_type(leaf))

    return jax.tree.map_with_path(spread, state)


def check_batches(batches: Batches, period: int, *, workers: int | None = None) -> None:
    """Makes sure that every leaf is an array that begins with [workers, period].

    Raises:
      TypeError: when it is no array; it names the leaf.
      ValueError: when it begins with other axes.

    None is one worker, without an axis. Of :class:`MicroBatches` the next axis and
    the counts are checked as well.
    """
    check_arrays(batches, "batches")
    axis = 0 if workers is None else 1
    for path, leaf in jax.tree.leaves_with_path(batches):
        shape = jnp.shape(leaf)
        name = "batches" + jax.tree_util.keystr(path)
        if workers is not None and shape[:1] != (workers,):
            raise ValueError(
                f"{name} has shape {shape}; axis 0 must have length {workers}: the "
                "batches of each worker."
            )
        if len(shape) <= axis or shape[axis] != period:
            raise ValueError(
                f"{name} has shape {shape}; axis {axis} must have length "
                f"period={period}: one batch for each local step."
            )
    if isinstance(batches, MicroBatches):
        check_micro_batches(batches, axis=axis + 1)


def check_loss(returned: Any, stateful: bool, has_aux: bool) -> tuple[Any, ...]:
    """What ``loss_fn`` returned, as a tuple that begins with the loss.

    Raises:
      TypeError: unless it is a scalar loss and what was asked for beside it.
    """
    names = ("loss", *["model_state"] * stateful, *["aux"] * has_aux)
    several = len(names) > 1
    is_whole = isinstance(returned, tuple) and len(returned) == len(names)
    loss = returned[0] if several and is_whole else returned
    is_array = isinstance(loss, jax.Array | np.ndarray)
    is_scalar = isinstance(loss, Real) or (is_array and loss.ndim == 0)
    if is_whole == several and is_scalar:
        if jnp.issubdtype(jnp.result_type(loss), jnp.floating):
            return returned if several else (loss,)
        raise TypeError(
            "loss_fn must return a loss of floats, which has a gradient; it returned "
            f"one of {jnp.result_type(loss)}."
        )
    came = f"an array of shape {loss.shape}" if is_array else f"a {type(loss).__name__}"
    if not several:
        raise TypeError(f"loss_fn must return its loss, a scalar; it returned {came}.")
    flags = " and ".join(["stateful=True"] * stateful + ["has_aux=True"] * has_aux)
    raise TypeError(
        f"with {flags} loss_fn must return ({', '.join(names)}), where the loss is a "
        f"scalar; it returned {came}{' as the loss' * is_whole}."
    )


def check_same_types(after: RoundState, before: RoundState) -> None:
    """Makes sure that a local step leaves the types of its state as they are.

    Raises:
      TypeError: naming a leaf that it adds, loses or changes in shape or dtype.
    """
    cures = {
        "opt_state": "give the optimizer parameters, or a dtype of its own such as "
        "mu_dtype=jnp.float32, whose type its update keeps",
        "model_state": "loss_fn must return the model state in the types that it came "
        "in: cast it there, or start from such a state",
    }
    for field, cure in cures.items():
        was, now = _types_of(getattr(before, field)), _types_of(getattr(after, field))
        for path in [*was, *now]:
            if path not in was or path not in now:
                cure = "it must have all its leaves from init on"
            if was.get(path) != now.get(path):
                change = f"{was.get(path, 'nothing')} to {now.get(path, 'nothing')}"
                raise TypeError(
                    f"a local step changes state.{field}{path} from {change}, but all "
                    f"steps must run as one program; {cure}."
                )


def _types_of(tree: Any) -> dict[str, str]:
    return {
        jax.tree_util.keystr(path): jnp.result_type(leaf).name
        + str(list(jnp.shape(leaf)))
        for path, leaf in jax.tree.leaves_with_path(tree)
    }
