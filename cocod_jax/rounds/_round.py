"""The round: send the snapshot, take local steps, merge what arrives."""

from collections.abc import Callable
from numbers import Real
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from cocod_jax._checks import check_period, check_takes
from cocod_jax._text import shown
from cocod_jax._trees import check_same_tree
from cocod_jax._typing import Batch, Batches, LossFn, ModelState, Params
from cocod_jax.rounds._micro_batches import (
    MicroBatches,
    check_micro_batches,
    over_micro_batches,
)
from cocod_jax.rules import MergeRule


class RoundState(NamedTuple):
    """All that a worker carries from round to round; nothing is in flight between.

    Every field is per worker. Outside of the front door each array has a leading
    axis of length N, made by :func:`cocod_jax.replicate`.

    Attributes:
      params: x_i, the worker's parameters.
      opt_state: state of the inner optimizer; it never leaves the worker.
      rule_state: state of the merge rule.
      model_state: batch statistics and the like, None for a stateless loss; it
        never leaves the worker before :func:`cocod_jax.consensus_model_state`.
      key: typed PRNG key, a different one on each worker. Step t draws from
        ``fold_in(key, t)``; the key itself does not change.
      count: int32 scalar, local steps since ``init``, over all rounds.
      weight: floating-point scalar p_i, the worker's share in the next exchange; the
        workers' shares have sum 1 (:func:`cocod_jax.reweight` changes them). Before
        ``replicate``, the rule's weights [N], or [1] when all workers count the same.
    """

    params: Params
    opt_state: optax.OptState
    rule_state: optax.OptState
    model_state: ModelState
    key: jax.Array
    count: jax.Array
    weight: jax.Array


class StepMetrics(NamedTuple):
    """What one local step reports, per worker.

    Attributes:
      loss: scalar of the loss's own dtype, of the worker's batch before the step.
      grad_norm: scalar, float32 or wider, the Euclidean norm of the worker's gradient.
    """

    loss: jax.Array
    grad_norm: jax.Array


class MergeMetrics(NamedTuple):
    """What one merge reports, per worker: scalars, float32 or wider.

    Attributes:
      distance: the norm of m - s_i: how far this worker's snapshot was from what
        arrived.
      progress_norm: the norm of x_i - s_i at the merge: how far the worker went in
        the ``delay`` steps that the exchange had.
      alignment: in [-1, 1], the cosine between x_i - s_i and m - s_i, 0 where either
        is 0: above 0 the worker's own steps went the way of the merge, below 0
        against it.
    """

    distance: jax.Array
    progress_norm: jax.Array
    alignment: jax.Array


class RoundMetrics(NamedTuple):
    """What one round reports, per worker: never reduced over workers.

    A reduction inside the round would be merged with the exchange of the
    parameters by the compiler, and the overlap would be lost without a word.
    Reduce outside: ``metrics.loss.mean()``.

    Attributes:
      loss: [period], see :class:`StepMetrics`.
      grad_norm: [period], see :class:`StepMetrics`.
      distance: scalar, see :class:`MergeMetrics`.
      progress_norm: scalar, see :class:`MergeMetrics`.
      alignment: scalar, see :class:`MergeMetrics`.
    """

    loss: jax.Array
    grad_norm: jax.Array
    distance: jax.Array
    progress_norm: jax.Array
    alignment: jax.Array


class Round(NamedTuple):
    """One round as pure functions of one worker; made by :func:`make_round`.

    ``run`` is ``send``, then ``delay`` times ``step``, then ``merge``, then the
    remaining steps, as one program. The three parts are there for the split
    execution, which runs them as separate programs (:func:`cocod_jax.distribute`).

    Attributes:
      init: ``(params, model_state=None, *, key=None) -> RoundState``, outside of the
        front door, without a worker axis. Without a key all runs draw the same
        numbers, those of ``jax.random.key(0)``. A model state belongs to a stateful
        round only, and one key to a run (ValueError).
      run: ``(state, batches) -> (state, RoundMetrics)``; ``batches`` has leaves of
        shape [period, ...].
      send: ``(state) -> arriving``; holds every collective of the merge rule.
      step: ``(state, batch) -> (state, StepMetrics)``.
      merge: ``(state, snapshot, arriving) -> (state, MergeMetrics)``.
      period: k, local steps in a round.
      delay: d, local steps between the snapshot and the merge.
    """

    init: Callable[..., RoundState]
    run: Callable[[RoundState, Batches], tuple[RoundState, RoundMetrics]]
    send: Callable[[RoundState], Params]
    step: Callable[[RoundState, Batch], tuple[RoundState, StepMetrics]]
    merge: Callable[[RoundState, Params, Params], tuple[RoundState, MergeMetrics]]
    period: int
    delay: int


def make_round(
    loss_fn: LossFn,
    inner: optax.GradientTransformation,
    rule: MergeRule,
    *,
    period: int,
    delay: int | None = None,
    stateful: bool = False,
) -> Round:
    r"""A round of ``period`` local steps with one exchange hidden behind them.

    The exchange of the snapshots overlaps with the first ``delay`` local steps:

    .. math::

       s_i = x_i, \qquad m = \mathrm{send}(s_i) \;\Vert\;
       x_i \leftarrow d \text{ local steps}, \qquad
       x_i \leftarrow \mathrm{merge}(m, x_i - s_i), \qquad
       x_i \leftarrow k - d \text{ local steps}

    With the rule :func:`cocod_jax.cocod`, delay k is CoCoD-SGD, delay 0 is Local
    SGD, and a delay between them is a just-in-time merge: the smallest delay that
    still hides the exchange has CoCoD-SGD's speed and less drift.

    Workers of unequal speed take batches of unequal size: give the round
    :class:`cocod_jax.MicroBatches` in place of its batches, and the rule weights.

    Args:
      loss_fn: ``(params, batch) -> loss``, the scalar mean loss of one local
        batch. With ``stateful``: ``(params, model_state, batch, key) -> (loss,
        model_state)``.
      inner: the optimizer of the local steps. Its learning-rate schedules count
        local steps over all rounds. It is called with ``value=loss``. The merge moves
        the parameters, and no copy of them that an optimizer keeps, as those of
        ``optax.contrib.schedule_free`` do: take another one.
      rule: what a worker does with what arrives.
      period: k, local steps in a round, at least 1 (shared).
      delay: d, local steps between the snapshot and the merge, 0 to ``period``
        (shared); None is the whole period.
      stateful: whether ``loss_fn`` carries a model state and takes a PRNG key.

    Returns:
      A :class:`Round`. Its functions are those of one worker, to be run under
      ``pmap``, ``shard_map`` or ``vmap`` (:func:`cocod_jax.distribute` does it).

    Raises:
      TypeError: when ``loss_fn`` is not a function of what it is called with,
        ``inner`` not an optax transform, or ``rule`` not a MergeRule; in use, when
        ``loss_fn`` returns something else.
      ValueError: when ``period`` or ``delay`` is not an integer in its range; in
        use, when the leading axis of ``batches`` is not the period, counts of
        micro-batches do not fit, or the rule's ``send`` returns another tree than
        the parameters.

    Examples:
      Two workers pull towards 0 and 4; together they find the middle:

      >>> loss = lambda w, batch: 0.5 * (w - batch) ** 2
      >>> round_ = cj.make_round(loss, optax.sgd(0.1), cj.cocod("workers"), period=4)
      >>> state = cj.replicate(round_.init(jnp.array(9.0)), 2)
      >>> batches = jnp.array([[0.0] * 4, [4.0] * 4])  # [N, period]
      >>> run = jax.jit(jax.vmap(round_.run, axis_name="workers"))
      >>> for _ in range(20):
      ...     state, metrics = run(state, batches)
      >>> print(f"{cj.consensus(state):.2f}")
      2.00

    References:
      Shen et al., `Faster Distributed Deep Net Training: Computation and
      Communication Decoupled SGD <https://arxiv.org/abs/1906.12043>`_, IJCAI
      2019, Algorithm 1.
    """
    takes = (
        ("params", "model_state", "batch", "key") if stateful else ("params", "batch")
    )
    check_takes(takes, loss_fn=loss_fn)
    check_transforms(inner, rule)
    period, delay = check_period(period, delay)
    inner = optax.with_extra_args_support(inner)

    def init(
        params: Params, model_state: ModelState = None, *, key: jax.Array | None = None
    ) -> RoundState:
        if model_state is not None and not stateful:
            raise ValueError(
                "model_state was given to a round whose loss_fn takes none; make it "
                "with make_round(..., stateful=True)."
            )
        if key is None:
            key = jax.random.key(0)
        if not isinstance(key, jax.Array | np.ndarray):
            raise TypeError(f"key={key!r} must be a PRNG key, as jax.random.key(0) is.")
        if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
            key = jax.random.wrap_key_data(key)
        if key.ndim:
            raise ValueError(
                f"key has shape {key.shape}, but it must be one key: replicate makes "
                "one of it for each worker."
            )
        return RoundState(
            params=own_copy(params),
            opt_state=own_copy(inner.init(params)),
            rule_state=own_copy(rule.init(params)),
            model_state=own_copy(model_state),
            key=own_copy(key),
            count=jnp.zeros([], jnp.int32),
            weight=jnp.array(rule.weights or [1.0]),
        )

    def send(state: RoundState) -> Params:
        return rule.send(state.rule_state, state.params, state.weight)

    def gradient_of(
        params: Params, model_state: ModelState, batch: Batch, key: jax.Array
    ) -> tuple[tuple[jax.Array, ModelState], Params]:
        def loss_of(params: Params) -> tuple[jax.Array, ModelState]:
            # Rebuilt here: NNX variables can only be written in the trace that made
            # them, and differentiation is a trace of its own.
            own_state = jax.tree.map(lambda leaf: leaf, model_state)
            if stateful:
                returned = loss_fn(params, own_state, batch, key)
            else:
                returned = loss_fn(params, batch), own_state
            _check_loss(returned, stateful)
            return returned

        value, gradient = jax.value_and_grad(loss_of, has_aux=True)(params)
        # JAX's gradient with respect to a complex number is the conjugate of the
        # direction in which the loss grows; of a real one it is that direction.
        return value, optax.tree.conj(gradient)

    def step(state: RoundState, batch: Batch) -> tuple[RoundState, StepMetrics]:
        several = isinstance(batch, MicroBatches)
        take = over_micro_batches(gradient_of) if several else gradient_of
        key = jax.random.fold_in(state.key, state.count)
        (loss, model_state), gradient = take(
            state.params, state.model_state, batch, key
        )
        updates, opt_state = inner.update(
            gradient, state.opt_state, state.params, value=loss
        )
        state = state._replace(
            params=optax.apply_updates(state.params, updates),
            opt_state=opt_state,
            model_state=model_state,
            count=jnp.asarray(optax.safe_increment(state.count)),
        )
        return state, StepMetrics(loss, optax.tree.norm(_wide(gradient)))

    def merge(
        state: RoundState, snapshot: Params, arriving: Params
    ) -> tuple[RoundState, MergeMetrics]:
        # What needs the mean alone, such as its distance, could run before the steps,
        # and the exchange would then have to end before them. And what needs the steps
        # alone, such as the momentum in another layout, could run between them and the
        # merge: a compiler may find that enough to hide the exchange behind.
        check_same_tree(arriving, snapshot, "arriving", "snapshot")
        state, arriving = lax.optimization_barrier((state, arriving))
        params = state.params
        progress = optax.tree.sub(params, snapshot)
        updates, rule_state = rule.merge(arriving, progress, state.rule_state, snapshot)
        metrics = _merge_metrics(params, snapshot, arriving)
        params = optax.apply_updates(snapshot, updates)
        state = state._replace(params=params, rule_state=rule_state)
        # Metrics that run after the late steps would keep snapshot and mean till then.
        return lax.optimization_barrier((state, metrics))

    def local_steps(
        state: RoundState, batches: Batches, start: int, stop: int
    ) -> tuple[RoundState, list[StepMetrics]]:
        if start == stop:  # an empty loop would be traced all the same
            return state, []

        # By index: a slice of the batches is a copy of them, and not all compilers
        # start the exchange before they make it.
        def one(state: RoundState, t: jax.Array) -> tuple[RoundState, StepMetrics]:
            take = lambda leaf: lax.dynamic_index_in_dim(leaf, t, keepdims=False)
            return step(state, jax.tree.map(take, batches))

        state, taken = lax.scan(one, state, jnp.arange(start, stop))
        return state, [taken]

    def run(state: RoundState, batches: Batches) -> tuple[RoundState, RoundMetrics]:
        check_batches(batches, period)
        snapshot = state.params
        arriving = send(state)  # first: the steps below do not depend on it
        state, early = local_steps(state, batches, 0, delay)
        state, merged = merge(state, snapshot, arriving)
        state, late = local_steps(state, batches, delay, period)
        steps = early + late
        return state, RoundMetrics(
            loss=jnp.concatenate([metrics.loss for metrics in steps]),
            grad_norm=jnp.concatenate([metrics.grad_norm for metrics in steps]),
            **merged._asdict(),
        )

    return Round(init, run, send, step, merge, period, delay)


def own_copy(tree: Any) -> Any:
    """The tree with buffers and dtypes of its own.

    A donated state must not take the caller's arrays with it, nor hold one buffer
    twice; and a dtype that is only a Python number's would change in the first step,
    and the second would compile again.
    """
    return jax.tree.map(lambda leaf: jnp.array(leaf, jnp.result_type(leaf)), tree)


def on_host(metrics: RoundMetrics) -> RoundMetrics:
    """The metrics as NumPy arrays of float64: sums in bfloat16 would round."""
    wide = lambda values: np.asarray(values, np.float64)
    return jax.tree.map(wide, jax.device_get(metrics))


def check_transforms(inner: optax.GradientTransformation, rule: MergeRule) -> None:
    """Raises TypeError unless these are an optax transform and a merge rule."""
    if not isinstance(rule, MergeRule):
        raise TypeError(
            f"rule={shown(rule)} must be a MergeRule, such as cj.cocod('workers'). A "
            "transform that averages gradients belongs to inner, with the rule "
            "cj.independent(), which averages nothing else."
        )
    parts = (getattr(inner, name, None) for name in ("init", "update"))
    if isinstance(inner, MergeRule) or not all(map(callable, parts)):
        raise TypeError(
            f"inner={shown(inner)} must be an optax transform of gradients, such as "
            "optax.sgd(0.1)."
        )


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


def check_round(round_: Round) -> None:
    """Raises TypeError unless this is a round."""
    if not isinstance(round_, Round):
        raise TypeError(
            f"round_={shown(round_)} must be a Round, as make_round returns it."
        )


def check_batches(batches: Batches, period: int, *, workers: int | None = None) -> None:
    """Raises ValueError unless every leaf begins with the axes [workers, period].

    None is one worker, without an axis. Of :class:`MicroBatches` the next axis and
    the counts are checked as well.
    """
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


def _check_loss(returned: Any, stateful: bool) -> None:
    """Raises TypeError unless it is a loss and a model state."""
    is_pair = isinstance(returned, tuple) and len(returned) == 2
    loss = returned[0] if is_pair else returned
    is_array = isinstance(loss, jax.Array | np.ndarray)
    if is_pair and (isinstance(loss, Real) or (is_array and loss.ndim == 0)):
        return
    came = f"an array of shape {loss.shape}" if is_array else f"a {type(loss).__name__}"
    raise TypeError(
        "with stateful=True loss_fn must return (loss, model_state), where the loss is "
        f"a scalar; it returned {came}{' as the loss' * is_pair}."
        if stateful
        else f"loss_fn must return its loss, a scalar; it returned {came}."
    )


def _merge_metrics(params: Params, snapshot: Params, arriving: Params) -> MergeMetrics:
    # Each metric takes its differences anew, from behind a barrier of its own (the
    # compiler would make one of two that are alike). A difference that metrics share is
    # written to memory, as a dot product's operands are, and with two of them, each as
    # large as the model, the merge on a CPU takes three times as long.
    barrier = lax.optimization_barrier
    difference = lambda one, other: _wide(optax.tree.sub(one, other))
    distance = optax.tree.norm(difference(*barrier((arriving, snapshot))))
    progress_norm = optax.tree.norm(difference(*barrier((params, snapshot))))
    x, s, m = barrier((params, snapshot, arriving))
    each = lambda progress, correction: jnp.real(jnp.conj(progress) * correction)
    products = jax.tree.map(each, difference(x, s), difference(m, s))
    norms = distance * progress_norm
    cosine = optax.tree.sum(products) / jnp.where(norms == 0, 1, norms)
    # Rounding may take the cosine of parallel trees beyond 1.
    return MergeMetrics(distance, progress_norm, jnp.clip(cosine, -1, 1))


def _wide(tree: Any) -> Any:
    """The tree in float32 at least."""
    wide = lambda leaf: leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
    return jax.tree.map(wide, tree)
