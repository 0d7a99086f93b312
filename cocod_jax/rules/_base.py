"""What every merge rule is made of: an exchange, and a merge of what it brings."""

from collections.abc import Callable
from typing import Any, NamedTuple

import optax

from cocod_jax._checks import check_flags, check_kind, check_pair, check_takes
from cocod_jax._text import shown
from cocod_jax._trees import (
    all_finite,
    cast_like,
    check_arrays,
    check_like,
    check_same_tree,
    choose,
)
from cocod_jax._typing import AxisName, ExchangeState, Params, Sent, Tree, Weight
from cocod_jax.exchanges._base import (
    Exchange,
    check_exchange,
    receive_by,
    send_by,
    stateless,
)


class RuleState(NamedTuple):
    """State of a merge rule as an optax transform; per worker.

    Attributes:
      rule_state: what the rule remembers, such as an anchor.
      exchange_state: what its exchange remembers, such as the error of a narrow wire.
    """

    rule_state: optax.OptState
    exchange_state: ExchangeState


def the_snapshot(state: optax.OptState, snapshot: Params) -> Params:
    """The ``outgoing`` of most rules: a worker sends its snapshot."""
    del state
    return snapshot


def check_brings_differences(exchange: Exchange, rule: str) -> None:
    """Raises unless an anchor that all workers share may move by what arrives.

    Raises:
      ValueError: with the rule's name, where the exchange brings each worker something
        else, or heals a worker by it.
    """
    other = "take an exchange of all workers, such as cj.mean"
    if not exchange.alike:
        raise ValueError(
            f"{rule} moves an anchor that all workers share by the differences that "
            f"arrive, and this exchange brings each worker others; {other}."
        )
    if exchange.heals:
        raise ValueError(
            f"{rule} sends differences from its anchor, and this exchange heals a "
            f"worker by making what arrives its parameters; {other}."
        )


class MergeRule(optax.GradientTransformationExtraArgs):
    r"""What a worker sends, and what it does with what arrives.

    .. math::

       o_i = \mathrm{outgoing}(s_i), \qquad
       m = \mathrm{exchange}(o), \qquad
       x_i \leftarrow \mathrm{merge}(m, x_i, s_i)

    The exchange holds every collective, and it sees the snapshot s_i alone. What it
    cannot see it cannot wait for, so that compilers are free to run it beside the
    local steps from s_i to x_i. :func:`cocod_jax.make_round` puts the steps between
    the two halves.

    A rule is an optax transform as well, and unpacks to ``(init, update)``:
    ``init(params)`` is a :class:`cocod_jax.rules.RuleState`, and ``update(progress,
    state, params=snapshot)`` exchanges and merges at once.

    All trees are per worker.

    Attributes:
      exchange: see below.
      merge: see below.
      outgoing: see below.
      correct: see below.
      weights: the exchange's, one for each worker with sum 1, or None when all count
        the same.
      axis_name: the exchange's; None when the rule sends nothing.
      streams: whether both the rule and its exchange may be given pieces.

    Args:
      exchange: how the workers average, such as ``cj.mean("workers")``.
      merge: ``(arriving, params, state, snapshot) -> (params, state)``, without a
        collective. ``arriving`` is like what was sent, ``params`` are the worker's
        parameters now, ``state`` is the rule's own. The parameters that it returns
        are those of the next local step; a leaf that it returns as it came is left
        alone.
      init: ``(params) -> state``, the rule's own state, complete at once, with copies
        of the parameters that it keeps. The default keeps nothing.
      outgoing: ``(state, snapshot) -> tree``, what is sent; the default is the
        snapshot.
      correct: ``(state, gradient) -> gradient`` in every local step, before the inner
        optimizer; it reads the state and cannot write it. None leaves gradients alone.
      streams: whether the rule may be given a piece of the model in every step, as its
        tree. False where it needs the whole model at once, such as its norm.

    Raises:
      TypeError: when ``exchange`` is not an :class:`cocod_jax.Exchange`, when a part,
        of the exchange too, is not a function of what it is called with, or
        ``streams`` is not a bool.

    Examples:
      A rule that overwrites a worker's progress with the mean:

      >>> rule = cj.MergeRule(
      ...     cj.mean("workers"),
      ...     lambda arriving, params, state, snapshot: (arriving, state),
      ... )
      >>> init, update = rule
    """

    exchange: Exchange
    merge: Callable[..., tuple[Params, optax.OptState]]
    outgoing: Callable[[optax.OptState, Params], Tree]
    correct: Callable[[optax.OptState, optax.Updates], optax.Updates] | None
    _init: Callable[[Params], Any]
    _streams: bool

    def __new__(
        cls,
        exchange: Exchange,
        merge: Callable[..., tuple[Params, optax.OptState]],
        *,
        init: Callable[[Params], Any] = stateless,
        outgoing: Callable[[optax.OptState, Params], Tree] = the_snapshot,
        correct: Callable[[optax.OptState, optax.Updates], optax.Updates] | None = None,
        streams: bool = True,
    ) -> "MergeRule":
        if not isinstance(exchange, Exchange):
            raise TypeError(
                f"exchange={shown(exchange)} must be an Exchange, such as "
                'cj.mean("workers").'
            )
        check_exchange(exchange)
        check_flags(streams=streams)
        check_takes(("arriving", "params", "state", "snapshot"), merge=merge)
        check_takes(("params",), init=init)
        check_takes(("state", "snapshot"), outgoing=outgoing)
        if correct is not None:
            check_takes(("state", "gradient"), correct=correct)

        def init_both(params: Params) -> RuleState:
            state = init(params)
            check_arrays(state, "the state of init")
            sends = outgoing(state, params)
            check_arrays(sends, "what outgoing returned")
            of_exchange = exchange.init(sends)
            check_arrays(of_exchange, "the state of exchange.init")
            return RuleState(state, of_exchange)

        def update(
            updates: optax.Updates,
            state: Any,
            params: Params | None = None,
            *,
            weight: Weight | None = None,
            **extra_args: Any,
        ) -> tuple[optax.Updates, RuleState]:
            del extra_args
            if params is None:
                raise ValueError(
                    "a merge rule needs the snapshot: call update(progress, state, "
                    "params=snapshot); params was None."
                )
            check_kind(RuleState, state=state)
            check_same_tree(updates, params, "progress", "snapshot")
            reached = optax.apply_updates(params, updates)
            merged, state = self.merge_now(reached, state, params, weight)
            return optax.tree.sub(merged, params), state

        self = super().__new__(cls, init_both, update)
        self.exchange, self.merge = exchange, merge
        self.outgoing, self.correct = outgoing, correct
        self._init, self._streams = init, streams
        return self

    @property
    def weights(self) -> tuple[float, ...] | None:
        """The exchange's weights."""
        return self.exchange.weights

    @property
    def axis_name(self) -> AxisName | None:
        """The exchange's axis."""
        return self.exchange.axis_name

    @property
    def streams(self) -> bool:
        """Whether rule and exchange may be given a piece of the model in every step."""
        return self._streams and self.exchange.streams

    def send(
        self, state: RuleState, snapshot: Params, weight: Weight | None = None
    ) -> tuple[Sent, ExchangeState]:
        """What the exchange has in flight, and its next state; every collective."""
        outgoing = self.outgoing(state.rule_state, snapshot)
        return send_by(self.exchange.send, state.exchange_state, outgoing, weight)

    def receive(self, sent: Sent, outgoing: Tree) -> Tree:
        """What arrives, like ``outgoing``, the tree that was sent; no collective.

        Raises:
          TypeError, ValueError: when the exchange brings another tree, or numbers of
            another kind.
        """
        return receive_by(self.exchange, sent, outgoing)

    def corrected(
        self, state: optax.OptState, gradient: optax.Updates
    ) -> optax.Updates:
        """The gradient as the rule corrects it, or as it is.

        Raises:
          TypeError, ValueError: when ``correct`` returns another tree.
        """
        if self.correct is None:
            return gradient
        corrected = self.correct(state, gradient)
        check_like(corrected, gradient, "what correct returned", "the gradient")
        return corrected

    def apply(
        self, arriving: Tree, params: Params, rule_state: Any, snapshot: Params
    ) -> tuple[Params, Any]:
        """``merge``, with parameters and state in the types that they came in.

        Where the exchange heals, and the merge would leave a worker with numbers that
        are not finite, the worker takes what arrives, and keeps the rule's state.

        Raises:
          TypeError, ValueError: when the rule returns anything else than parameters and
            a state like those that it was given.
        """
        merged, new_state = check_pair(
            self.merge(arriving, params, rule_state, snapshot), "merge", "params, state"
        )
        check_like(merged, params, "what merge returned", "the parameters")
        check_like(new_state, rule_state, "the state that merge returned", "state")
        after = cast_like((merged, new_state), (params, rule_state))
        if not self.exchange.heals:
            return after
        check_same_tree(arriving, params, "what arrives", "what it heals")
        healed = cast_like((arriving, rule_state), after)
        return choose(all_finite(after), after, healed)

    def merge_now(
        self,
        params: Params,
        state: RuleState,
        snapshot: Params,
        weight: Weight | None = None,
    ) -> tuple[Params, RuleState]:
        """Exchanges and merges at once, without a step between the two."""
        sent, exchange_state = self.send(state, snapshot, weight)
        arriving = self.receive(sent, self.outgoing(state.rule_state, snapshot))
        params, rule_state = self.apply(arriving, params, state.rule_state, snapshot)
        return params, RuleState(rule_state, exchange_state)

    def _parts(self) -> dict[str, Any]:
        names = ("exchange", "merge", "outgoing", "correct")
        own = {"init": self._init, "streams": self._streams}
        return {name: getattr(self, name) for name in names} | own

    def _replace(self, **changes: Any) -> "MergeRule":
        """The rule with other parts, by the names of the arguments."""
        return type(self)(**self._parts() | changes)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies are made of the parts; the tuple only holds what optax reads."""
        return _of_parts, (type(self), self._parts())


def _of_parts(cls: type[MergeRule], parts: dict[str, Any]) -> MergeRule:
    return cls(**parts)
