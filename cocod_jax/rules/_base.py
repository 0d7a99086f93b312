"""What every merge rule is made of: two halves, and an optax transform around them."""

from collections.abc import Sequence
from typing import Any, Protocol

import optax

from cocod_jax._checks import check_takes
from cocod_jax._trees import check_same_tree
from cocod_jax._typing import Params, Weight
from cocod_jax.exchanges._base import normalised


class SendFn(Protocol):
    """The half that communicates: ``send(state, snapshot, weight=None) -> arriving``.

    It holds every collective of the rule, and returns a tree like the snapshot. It
    is given the rule's state and the snapshot, and nothing that the local steps
    compute: what cannot be seen cannot be waited for, so the compiler is free to run
    it beside them.
    """

    def __call__(
        self, state: optax.OptState, snapshot: Params, weight: Weight | None = None
    ) -> Params: ...


class MergeFn(Protocol):
    """The half that computes: ``merge(arriving, progress, state, snapshot)``.

    It holds no collective. It returns the updates to add to the *snapshot*, and
    the rule's new state.
    """

    def __call__(
        self,
        arriving: Params,
        progress: Params,
        state: optax.OptState,
        snapshot: Params,
        /,
    ) -> tuple[optax.Updates, optax.OptState]: ...


class MergeRule(optax.GradientTransformationExtraArgs):
    """What a worker does with what arrives; an optax transform in two halves.

    A rule unpacks to ``(init, update)`` and goes wherever optax transforms go.
    Its ``update(progress, state, params=snapshot)`` is
    ``merge(send(state, snapshot), progress, state, snapshot)``: the exchange and
    the merge in one breath. :func:`cocod_jax.make_round` uses the two halves
    apart, with local steps between them.

    All trees are per worker. ``snapshot``, ``arriving``, ``progress`` and the
    updates have the same structure, shapes and dtypes: the parameters'.

    Attributes:
      init: ``init(params) -> state``; NamedTuples of arrays, complete at once.
      send: see :class:`SendFn`.
      merge: see :class:`MergeFn`.
      weights: the workers' weights, with sum 1, or None when all count the same.

    Args:
      init: the state of the rule for these parameters.
      send: the half that communicates.
      merge: the half that computes.
      weights: those of the rule's exchange, ``exchange.weights``; only ratios matter.
        A round sends these with every snapshot: without them all workers count the
        same, whatever weights the exchange was made with. ``update`` without a
        ``weight``, and so :func:`cocod_jax.every`, takes the exchange's.

    Raises:
      TypeError: when ``init``, ``send`` or ``merge`` is not a function of what it is
        called with.
      ValueError: when a weight is not positive and finite.

    Examples:
      A rule that overwrites a worker's progress with the mean:

      >>> exchange = cj.mean("workers")
      >>> overwrite = cj.MergeRule(
      ...     init=lambda params: optax.EmptyState(),
      ...     send=lambda state, snapshot, weight=None: exchange.average(
      ...         snapshot, weight
      ...     ),
      ...     merge=lambda arriving, progress, state, snapshot: (
      ...         optax.tree.sub(arriving, snapshot),
      ...         state,
      ...     ),
      ...     weights=exchange.weights,
      ... )
      >>> init, update = overwrite
    """

    send: SendFn
    merge: MergeFn
    weights: tuple[float, ...] | None

    def __new__(
        cls,
        init: optax.TransformInitFn,
        send: SendFn,
        merge: MergeFn,
        weights: Sequence[float] | None = None,
    ) -> "MergeRule":
        def update(
            updates: optax.Updates,
            state: optax.OptState,
            params: Params | None = None,
            *,
            weight: Weight | None = None,
            **extra_args: Any,
        ) -> tuple[optax.Updates, optax.OptState]:
            del extra_args
            if params is None:
                raise ValueError(
                    "a merge rule needs the snapshot: call update(progress, state, "
                    "params=snapshot); params was None."
                )
            check_same_tree(updates, params, "progress", "snapshot")
            arriving = send(state, params, weight)
            return merge(arriving, updates, state, params)

        check_takes(("params",), init=init)
        check_takes(("state", "snapshot", "weight"), send=send)
        check_takes(("arriving", "progress", "state", "snapshot"), merge=merge)
        self = super().__new__(cls, init, update)
        self.send = send
        self.merge = merge
        self.weights = None if weights is None else normalised(weights)
        return self

    def _replace(self, **changes: Any) -> "MergeRule":
        """The rule with other parts: init, send, merge or weights."""
        parts = vars(self) | {"init": self.init} | changes
        return type(self)(**parts)

    def __getnewargs__(self) -> tuple[Any, ...]:
        """Copies are made of the two halves; the tuple only holds what optax reads."""
        return (self.init, self.send, self.merge, self.weights)
