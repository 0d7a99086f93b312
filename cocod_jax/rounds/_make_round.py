"""How a round is made: from a loss, an optimizer, a rule, a period and a delay."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cocod_jax._checks import check_flags, check_period, check_takes
from cocod_jax._parts import Mask, part_by
from cocod_jax._text import shown
from cocod_jax._trees import OF_A_MODEL, check_arrays, own_copy
from cocod_jax._typing import LossFn, ModelState, Params
from cocod_jax.exchanges._shards import Shards, shards_of
from cocod_jax.rounds._checks import (
    check_params,
    check_streamed,
    check_transforms,
)
from cocod_jax.rounds._inner import with_what_it_takes
from cocod_jax.rounds._pipeline import pieces_for
from cocod_jax.rounds._portion import Portion
from cocod_jax.rounds._round import Round
from cocod_jax.rounds._step import local_step
from cocod_jax.rounds._types import RoundState
from cocod_jax.rules import MergeRule


def make_round(
    loss_fn: LossFn,
    inner: optax.GradientTransformation,
    rule: MergeRule,
    *,
    period: int,
    delay: int | None = None,
    streamed: bool = False,
    stateful: bool = False,
    has_aux: bool = False,
    trainable: Mask | None = None,
) -> Round:
    r"""A round of ``period`` local steps with one exchange hidden behind them.

    The exchange of the snapshots overlaps with the first ``delay`` local steps:

    .. math::

       s_i = x_i, \qquad m = \mathrm{send}(s_i) \;\Vert\;
       x_i \leftarrow d \text{ local steps}, \qquad
       x_i \leftarrow \mathrm{merge}(m, x_i, s_i), \qquad
       x_i \leftarrow k - d \text{ local steps}

    With the rule :func:`cocod_jax.cocod`, delay k is CoCoD-SGD, delay 0 is Local
    SGD, and a delay between them is a just-in-time merge: the smallest delay that
    still hides the exchange has CoCoD-SGD's speed and less drift.

    Workers of unequal speed take batches of unequal size: give the round
    :class:`cocod_jax.MicroBatches` in place of its batches, and the rule weights.

    Args:
      loss_fn: ``(params, batch) -> loss``, the scalar mean loss of one local
        batch. With ``stateful``: ``(params, model_state, batch, key) -> (loss,
        model_state)``. With ``has_aux`` it returns one more, aux, at the end.
      inner: the optimizer of the local steps. Its learning-rate schedules count
        local steps over all rounds. It is called with ``value=loss``. It must keep no
        copy of the parameters in its state, as ``optax.contrib.schedule_free`` does:
        the merge moves the parameters alone, and the copy would undo that
        (:func:`cocod_jax.testing.check_inner` finds out).
      rule: what a worker sends, and what it does with what arrives. A rule that sends
        nothing makes a round of local steps alone.
      period: k, local steps in a round, at least 1 (shared).
      delay: d, local steps between the snapshot and the merge, 0 to ``period``
        (shared); None is the whole period.
      streamed: whether to exchange a k-th of the model in every local step, instead of
        all of it once in a round. Every step sends a piece of the parameters, and the
        next one starts from what the rule makes of the piece that has arrived:

        .. math::

           m = \mathrm{send}(s_i) \;\Vert\; x_i \leftarrow \text{local step},
           \qquad x_i[f] \leftarrow \mathrm{merge}(m, x_i[f], s_i), \qquad
           s_i = x_i[f] \text{ before}, \quad f = t \bmod k

        The delay is 1, or 2 where the exchange is two collectives in turn, as that of
        :func:`cocod_jax.exchanges.narrow`. As many bytes travel in k steps, in k
        messages; the workers drift less, and wait for each other in every step.
      stateful: whether ``loss_fn`` carries a model state and takes a PRNG key.
      has_aux: whether ``loss_fn`` also returns a tree of arrays that is no part of the
        loss, such as an accuracy; it comes back in ``RoundMetrics.aux``. Of
        micro-batches it is the mean.
      trainable: which leaves of the parameters are trained (shared): a tree of bools,
        a prefix of the parameters', or a predicate, ``(leaf) -> bool`` or ``(path,
        leaf) -> bool`` with the path of ``jax.tree.map_with_path``. The others, which
        may be integers, are neither differentiated nor sent nor changed. The inner
        optimizer and the rule see ``optax.MaskedNode()`` in their place. None trains
        all.

    Returns:
      A :class:`Round`. Its functions are those of one worker, to be run under
      ``pmap``, ``shard_map`` or ``vmap`` (:func:`cocod_jax.distribute` does it).

    Raises:
      TypeError: when ``loss_fn`` is not a function of what it is called with,
        ``inner`` not an optax transform, ``rule`` not a MergeRule, a flag not a bool,
        or ``trainable`` a function of something else; in use, when ``loss_fn`` returns
        something else, or a step changes the dtypes of the state.
      ValueError: when ``period`` or ``delay`` is not an integer in its range; in
        use, when the leading axis of ``batches`` is not the period, counts of
        micro-batches do not fit, the rule's exchange brings another tree than it
        sent, or its ``merge`` returns another tree than the parameters.

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
    check_flags(streamed=streamed, stateful=stateful, has_aux=has_aux)
    takes = (
        ("params", "model_state", "batch", "key") if stateful else ("params", "batch")
    )
    check_takes(takes, loss_fn=loss_fn)
    check_transforms(inner, rule)
    inner = with_what_it_takes(inner)
    part_of = part_by(trainable)
    if streamed:
        period, delay = check_streamed(rule, period, delay)
        whole = pieces_for(rule, part_of, period)
    else:
        period, delay = check_period(period, delay)
        whole = Portion(part_of)
    init = _init_of(inner, rule, whole, stateful)

    def make(shards: Shards | None, rule: MergeRule) -> Round:
        portion, own = whole.of_shards(shards, rule)
        return Round(
            init=init,
            step=local_step(
                loss_fn, inner, own, portion, stateful=stateful, has_aux=has_aux
            ),
            portion=portion,
            rule=own,
            period=period,
            delay=delay,
            remake=make,
        )

    return make(None, rule)


def _init_of(
    inner: optax.GradientTransformation,
    rule: MergeRule,
    portion: Portion,
    stateful: bool,
) -> Callable[..., RoundState]:
    """A round's ``init``."""

    def init(
        params: Params, model_state: ModelState = None, *, key: jax.Array | None = None
    ) -> RoundState:
        if model_state is not None and not stateful:
            raise ValueError(
                "model_state was given to a round whose loss_fn takes none; make it "
                "with make_round(..., stateful=True)."
            )
        check_arrays(params, "params", OF_A_MODEL)
        check_arrays(model_state, "model_state", OF_A_MODEL)
        trained = portion.part_of(params)
        check_params(trained)
        shards = shards_of(params, rule.axis_name)
        own_portion, own_rule = portion.of_shards(shards, rule)
        of_rule = own_portion.init_state(own_rule, params)
        return RoundState(
            params=own_copy(params),
            opt_state=own_copy(inner.init(trained)),
            rule_state=own_copy(of_rule.rule_state),
            exchange_state=own_copy(of_rule.exchange_state),
            model_state=own_copy(model_state),
            key=own_copy(_one_key(key)),
            count=jnp.zeros([], jnp.int32),
            weight=jnp.array(rule.weights or [1.0]),
        )

    return init


def _one_key(key: jax.Array | None) -> jax.Array:
    """The typed PRNG key that a run starts from.

    Raises:
      TypeError: when it is no PRNG key.
      ValueError: when it is more than one.
    """
    if key is None:
        return jax.random.key(0)
    if not isinstance(key, jax.Array | np.ndarray):
        raise TypeError(
            f"key={shown(key)} must be a PRNG key, as jax.random.key(0) is."
        )
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        try:
            key = jax.random.wrap_key_data(key)
        except TypeError as error:
            raise TypeError(f"key={shown(key)} must be a PRNG key: {error}.") from None
    if key.ndim:
        raise ValueError(
            f"key has shape {key.shape}, but it must be one key: replicate makes "
            "one of it for each worker."
        )
    return key
