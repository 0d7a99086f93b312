"""What a round makes of an optimizer, beside the optimizer on its own.

Two workers fit a linear model in rounds of two steps, from equal data or from their
own. All of it runs on one device, under ``vmap``; ``shard_map`` is traced only.
"""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import cocod_jax as cj
from cocod_jax.rounds._inner import with_what_it_takes
from experiments.composes.cases import Case

N, PERIOD, ROUNDS = 2, 2, 4


@dataclasses.dataclass(frozen=True)
class Facts:
    """What was found with parameters of one dtype.

    Attributes:
      errors: what did not run, a key of ``RUNS``, and the first line of its error.
      finite: whether workers with data of their own stayed finite.
      stable: whether the state keeps its shapes and dtypes, so that the second round
        needs no compilation.
      off: how far equal workers end from the optimizer alone, at most, relative to how
        far that went.
      kept: the share of a merge that is left after ``ROUNDS * PERIOD`` more steps, 1
        when nothing is taken back.
    """

    errors: dict[str, str]
    finite: bool = False
    stable: bool = False
    off: float = 0.0
    kept: float = 0.0


def probe(case: Case, dtype: str) -> Facts:
    """Runs the optimizer alone, in rounds and in ``every``."""
    errors: dict[str, str] = {}
    ends: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some of optax's names are deprecated
        trial = Trial(case, dtype)
        for name in RUNS if dtype == "float32" else NARROW:
            try:
                ends[name] = RUNS[name](trial)
            except Exception as error:  # whatever stops a user
                errors[name] = str(error).partition("\n")[0]
        if {"alone", "fused"} & set(errors):
            return Facts(errors)
        finite, stable = _with_own_data(trial)
        return Facts(errors, finite, stable, _off(trial, ends), _kept(trial))


class Trial:
    """An optimizer and what it is tried on.

    Attributes:
      inner: the optimizer.
      params: where all workers start.
      own: the batches of every round, leaves [N, period, ...], each worker its own.
      equal: the same, but all workers have those of the first.
    """

    def __init__(self, case: Case, dtype: str):
        rng = np.random.default_rng(0)
        draw = lambda *shape: rng.normal(size=shape).astype(dtype)
        self.inner = case.build()
        self.params = {"w": 1 + np.abs(draw(4, 3)), "b": np.abs(draw(3))}
        if "gradients_of_fast" in case.code:
            self.params = optax.LookaheadParams.init_synced(self.params)
        self.own = [
            (draw(N, PERIOD, 5, 4), draw(N, PERIOD, 5, 3)) for _ in range(ROUNDS)
        ]
        repeat = lambda leaf: np.repeat(leaf[:1], N, axis=0)
        self.equal = jax.tree.map(repeat, self.own)

    @functools.cached_property
    def update(self) -> Callable[..., Any]:
        """``(gradient, state, params, value) -> (params, state)``, compiled."""
        return jax.jit(_applied(with_what_it_takes(self.inner)))

    @functools.cache  # noqa: B019, a trial lives no longer than its case
    def round_(self, how: str) -> tuple[cj.Round, Any]:
        """A round of this optimizer, and what runs it; ``how`` is a key of ``RUNS``."""
        via = "shard_map" if how == "shard_map" else "vmap"
        execution = "split" if how == "split" else "fused"
        round_ = cj.make_round(
            loss_fn,
            self.inner,
            cj.cocod("workers"),
            period=PERIOD,
            delay=0 if how == "delay 0" else PERIOD,
        )
        return round_, cj.distribute(round_, via=via, execution=execution)

    def steps(self) -> list[Any]:
        """One worker's batches, step by step."""
        at = lambda t: lambda leaf: leaf[0, t]
        return [jax.tree.map(at(t), b) for b in self.equal for t in range(PERIOD)]


def loss_fn(params: Any, batch: Any) -> jax.Array:
    """Half the mean squared error of a linear model; of lookahead's fast parameters."""
    params = getattr(params, "fast", params)
    x, y = batch
    residual = (x @ params["w"] + params["b"][None] - y).astype(jnp.float32)
    return 0.5 * jnp.mean(residual**2)


def _applied(optimizer: optax.GradientTransformationExtraArgs) -> Callable[..., Any]:
    """``(gradient, state, params, value) -> (params, state)``."""

    def update(gradient: Any, state: Any, params: Any, value: Any) -> Any:
        updates, state = optimizer.update(gradient, state, params, value=value)
        return optax.apply_updates(params, updates), state

    return update


_gradient = jax.jit(jax.value_and_grad(loss_fn))


def _alone(trial: Trial) -> Any:
    """The parameters after a plain loop."""
    params, state = trial.params, trial.inner.init(trial.params)
    for batch in trial.steps():
        value, gradient = _gradient(params, batch)
        params, state = trial.update(gradient, state, params, value)
    return cj.replicate(params, N)


def _rounds(how: str, trial: Trial) -> Any:
    """The parameters [N, ...] of workers with equal data."""
    round_, run = trial.round_(how)
    state = cj.replicate(round_.init(trial.params), N)
    for batches in trial.equal:
        state, _ = run(state, batches)
    return state.params


def _every(trial: Trial) -> Any:
    """The parameters [N, ...] of workers with equal data and a loop of steps."""
    optimizer = cj.every(PERIOD, trial.inner, cj.cocod("workers"))
    update = jax.jit(jax.vmap(_applied(optimizer), axis_name="workers"))
    params, state = cj.replicate((trial.params, optimizer.init(trial.params)), N)
    for batch in trial.steps():
        value, gradient = jax.vmap(_gradient, in_axes=(0, None))(params, batch)
        params, state = update(gradient, state, params, value)
    return params


def _shard_map(trial: Trial) -> None:
    """Only traces: the check of types is all that may refuse."""
    round_, run = trial.round_("shard_map")
    state = cj.replicate(round_.init(trial.params), N)
    jax.eval_shape(run, state, trial.own[0])


RUNS: dict[str, Callable[[Trial], Any]] = {
    "alone": _alone,
    "fused": functools.partial(_rounds, "fused"),
    "every": _every,
    "delay 0": functools.partial(_rounds, "delay 0"),
    "split": functools.partial(_rounds, "split"),
    "shard_map": _shard_map,
}
# What another dtype than float32 could change.
NARROW = ("alone", "fused", "every")


def _with_own_data(trial: Trial) -> tuple[bool, bool]:
    """Whether all stays finite, and whether the state keeps its types."""
    round_, run = trial.round_("fused")
    state = cj.replicate(round_.init(trial.params), N)
    before = jax.tree.map(jax.typeof, state)
    for batches in trial.own:
        state, _ = run(state, batches)
    finite = jax.tree.map(lambda leaf: bool(jnp.isfinite(leaf).all()), state.params)
    return all(jax.tree.leaves(finite)), before == jax.tree.map(jax.typeof, state)


def _off(trial: Trial, ends: dict[str, Any]) -> float:
    """The largest distance from the optimizer alone, relative to its way."""
    distance = lambda one, other: float(
        optax.tree.norm(jax.tree.map(lambda a, b: np.float32(a) - b, one, other))
    )
    way = distance(ends["alone"], cj.replicate(trial.params, N))
    ours = [end for name, end in ends.items() if name not in ("alone", "shard_map")]
    return max(distance(end, ends["alone"]) for end in ours) / (way or 1.0)


def _kept(trial: Trial) -> float:
    """The share of a merge that the optimizer does not take back.

    Two copies of a worker in the middle of its run, one of them moved as a merge would
    move it, take the same gradients from there on. What is left is the share of the
    move by which they still differ. An optimizer may take turns: the merge comes after
    an even and after an odd number of steps, and what is left further from 1 counts.
    """
    rng = np.random.default_rng(1)
    move = jax.tree.map(
        lambda x: (0.1 * rng.normal(size=x.shape)).astype(x.dtype), trial.params
    )
    if isinstance(move, optax.LookaheadParams):  # a merge moves both alike
        move = optax.LookaheadParams.init_synced(move.fast)
    steps = [_gradient(trial.params, batch) for batch in trial.steps()]

    def after(params: Any, state: Any, steps: Sequence[Any]) -> tuple[Any, Any]:
        for value, gradient in steps:
            params, state = trial.update(gradient, state, params, value)
        return params, state

    shares = []
    for warm in (steps, steps[1:]):
        params, state = after(trial.params, trial.inner.init(trial.params), warm)
        still, _ = after(params, state, steps)
        moved, _ = after(optax.tree.add(params, move), state, steps)
        along = lambda tree: jnp.float32(optax.tree.vdot(tree, move))
        shares.append(float(along(optax.tree.sub(moved, still)) / along(move)))
    return max(shares, key=lambda share: abs(share - 1))
