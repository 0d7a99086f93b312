"""Fragments: rules that each merge a part of the model, and take turns."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax

from cocod_jax._checks import check_sequence, check_takes
from cocod_jax._parts import Mask, part_by, whole_of
from cocod_jax._text import shown
from cocod_jax._typing import AxisName, Params, Tree
from cocod_jax.exchanges._base import Exchange
from cocod_jax.exchanges.mean import as_exchange
from cocod_jax.rules._base import MergeRule


def fragments(
    make: Callable[[Exchange], MergeRule],
    axis_or_exchange: AxisName | Exchange,
    masks: Sequence[Mask],
) -> tuple[MergeRule, ...]:
    r"""One rule for each part of the model, with one state for all of them.

    A round of the p-th rule exchanges and merges the leaves of the p-th mask, and
    leaves all others alone. Rounds that take turns, each with a period and a delay of
    its own, exchange the whole model once in the sum of their periods, at an even load:
    with :func:`cocod_jax.rules.diloco` this is Streaming DiLoCo, whose fragments are
    layers. ``streamed=True`` cuts all leaves into pieces instead, which are equally
    large, and exchanges one in every step.

    Args:
      make: ``(exchange) -> rule``, of a rule that knows one fragment as its model.
      axis_or_exchange: the name of the workers' axis, or an
        :class:`cocod_jax.Exchange` without state.
      masks: one for each fragment: a tree of bools, a prefix of the parameters', or a
        predicate, ``(leaf) -> bool`` or ``(path, leaf) -> bool``. Each leaf belongs to
        one of them (shared).

    Returns:
      As many rules as masks, for rounds that take the same state: a tuple of the
      states of all fragments.

    Raises:
      TypeError: as :func:`cocod_jax.mean`; when ``make`` is not a function of an
        exchange or returns no :class:`cocod_jax.MergeRule`, or a mask is not one.
      ValueError: when there is no mask, or the exchange heals workers; in ``init``,
        naming a leaf that belongs to no fragment or to several, or when the exchange
        has a state: fragments cannot share it.

    Examples:
      >>> loss = lambda params, batch: sum(jnp.mean((w - batch) ** 2) for w in params)
      >>> rules = cj.rules.fragments(
      ...     cj.rules.diloco, "workers", [(True, False), (False, True)]
      ... )
      >>> rounds = [cj.make_round(loss, optax.sgd(0.1), r, period=4) for r in rules]
      >>> state = cj.replicate(rounds[0].init((jnp.zeros(3), jnp.zeros(5))), 2)
      >>> [cj.summary(round_, state).sent_bytes for round_ in rounds]
      [{'float32': 12}, {'float32': 20}]

    References:
      Douillard et al., `Streaming DiLoCo with overlapping communication
      <https://arxiv.org/abs/2501.18512>`_, 2025.
    """
    check_takes(("exchange",), make=make)
    check_sequence("one mask for each fragment", masks=masks)
    masks = tuple(masks)
    if not masks:
        raise ValueError("masks is empty; give one for each fragment.")
    rule = make(as_exchange(axis_or_exchange))
    if not isinstance(rule, MergeRule):
        raise TypeError(f"make returned {shown(rule)}, and not a MergeRule.")
    if rule.exchange.heals:
        raise ValueError(
            "a fragment's merge brings a part of the model, and this exchange heals a "
            "worker by the whole; take another one, such as cj.mean, or streamed=True."
        )
    parts = [part_by(mask, f"masks[{p}]") for p, mask in enumerate(masks)]

    def init(params: Params) -> tuple[Any, ...]:
        own = [part(params) for part in parts]
        _check_cover(own, params)
        states: list[Any] = [rule.init(part) for part in own]
        if any(jax.tree.leaves(state.exchange_state) for state in states):
            raise ValueError(
                "the exchange keeps a state, which fragments cannot share; take one "
                "without, such as cj.mean, or streamed=True."
            )
        return tuple(state.rule_state for state in states)

    def outgoing(p: int, state: Any, snapshot: Params) -> Tree:
        return rule.outgoing(state[p], parts[p](snapshot))

    def merge(
        p: int, arriving: Tree, params: Params, state: Any, snapshot: Params
    ) -> tuple[Params, tuple[Any, ...]]:
        own = parts[p](params), state[p], parts[p](snapshot)
        merged, after = rule.apply(arriving, *own)
        return whole_of(merged, params), (*state[:p], after, *state[p + 1 :])

    def correct(state: Any, gradient: optax.Updates) -> optax.Updates:
        for own, part in zip(state, parts, strict=True):
            gradient = whole_of(rule.corrected(own, part(gradient)), gradient)
        return gradient

    of_one = functools.partial(
        MergeRule,
        rule.exchange,
        init=init,
        correct=None if rule.correct is None else correct,
        streams=False,
    )
    return tuple(
        of_one(
            lambda arriving, params, state, snapshot, p=p: merge(
                p, arriving, params, state, snapshot
            ),
            outgoing=functools.partial(outgoing, p),
        )
        for p in range(len(parts))
    )


def _check_cover(parts: Sequence[Params], params: Params) -> None:
    """Raises ValueError unless each leaf belongs to one of the parts."""
    owners = [
        {jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(part)}
        for part in parts
    ]
    for path, _ in jax.tree.leaves_with_path(params):
        name = jax.tree_util.keystr(path)
        own = [p for p, names in enumerate(owners) if name in names]
        if len(own) != 1:
            which = f"fragments {own}" if own else "no fragment"
            raise ValueError(
                f"params{name} belongs to {which}; each leaf belongs to one."
            )
