"""What of the parameters one exchange is of: all that is trained, or a piece of it."""

import dataclasses
from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from cocod_jax._parts import whole_of
from cocod_jax._trees import at, barrier, choose, is_float, put_at
from cocod_jax._typing import ExchangeState, Params, Sent, Tree, Weight
from cocod_jax.exchanges._base import Exchange, send_by
from cocod_jax.exchanges._shards import Shards, between_shards, by_each_device
from cocod_jax.exchanges._wire import check_floats, cut
from cocod_jax.rules import MergeRule, RuleState


class Arrival(NamedTuple):
    """What a merge is of.

    Attributes:
      sent: what the exchange brings.
      snapshot: what was taken when it began.
      filled: bool scalar, whether anything has arrived; None where that is sure.
    """

    sent: Sent
    snapshot: Tree
    filled: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class Portion:
    """All that is trained, in every exchange.

    Attributes:
      part_of: ``(params) -> part``, what is trained.
    """

    part_of: Callable[[Params], Params]

    def of_shards(
        self, shards: Shards | None, rule: MergeRule
    ) -> tuple["Portion", MergeRule]:
        """Portion and rule for workers whose devices share the parameters so."""
        if shards is None:
            return self, rule
        return self, rule._replace(exchange=between_shards(rule.exchange, shards))

    def take(self, params: Params, step: Any) -> Tree:
        """The portion of the parameters whose exchange begins with this step."""
        del step
        return self.part_of(params)

    def put(self, params: Params, step: Any, portion: Tree) -> Params:
        """The parameters with this portion."""
        del step
        return whole_of(portion, params)

    def init_state(self, rule: MergeRule, params: Params) -> RuleState:
        """The state of rule and exchange for all portions."""
        state: Any = rule.init(self.part_of(params))
        return state

    def take_state(self, state: Any, step: Any) -> Any:
        """What rule, or exchange, remember of the portion."""
        del step
        return state

    def put_state(self, state: Any, step: Any, own: Any) -> Any:
        """The state with what they remember of the portion now."""
        del state, step
        return own

    def depart(
        self,
        exchange: Exchange,
        state: Any,
        step: Any,
        outgoing: Tree,
        snapshot: Tree,
        weight: Weight | None,
    ) -> tuple[Sent, Any]:
        """What is in flight from this step on, and what its end makes a state of."""
        del snapshot
        own = self.take_state(state, step)
        sent, after = send_by(exchange.send, own, outgoing, weight)
        return sent, self.put_state(state, step, after)

    def land(self, exchange: Exchange, flying: Any, step: Any) -> ExchangeState:
        """The exchange's state after the step with which ``flying`` began."""
        del exchange, step
        return flying

    def arrived(self, sent: Sent, snapshot: Tree) -> Arrival:
        """What is merged with what ``depart`` sent and the snapshot of that step."""
        return Arrival(sent, snapshot)

    def correct(
        self, rule: MergeRule, state: Any, gradient: Tree, params: Params
    ) -> Tree:
        """The gradient as the rule corrects it, in every local step."""
        del params
        return rule.corrected(state, gradient)


@dataclasses.dataclass(frozen=True)
class Pieces(Portion):
    """A k-th in every exchange, each coordinate once in k local steps.

    Piece f holds the f-th k-th of every leaf, raveled: one flat buffer per dtype, of
    the same length for all f. A leaf whose size k does not divide is padded with
    zeros, which nothing reads back. Cut so, a step reads and writes a k-th of each
    leaf, wherever f is; one long buffer of all leaves, cut in k, would have to be
    written whole, or each leaf be searched for its share of the piece.

    The rule sees a piece as its tree. What rule and exchange remember has a leading
    axis [k], a row for each piece.

    Attributes:
      count: k.
      shards: how the devices of a worker share its parameters, each of which has
        pieces of its own parts; None where they do not.
      block: each leaf's share of a piece is filled up with zeros to a multiple of it.
    """

    count: int
    shards: Shards | None = None
    block: int = 1

    def of_shards(
        self, shards: Shards | None, rule: MergeRule
    ) -> tuple["Pieces", MergeRule]:
        """Pieces of what each device has; those are as they travel."""
        own, block = dataclasses.replace(self, shards=shards), rule.exchange.block
        if shards is None or block is None:
            return own, rule
        each = lambda piece: jax.tree.map(lambda _: shards.each, piece)
        exchange = by_each_device(rule.exchange, shards, each)
        return dataclasses.replace(own, block=block), rule._replace(exchange=exchange)

    def take(self, params: Params, step: Any) -> dict[str, jax.Array]:
        """``{dtype: [piece]}``."""
        part = self.part_of(params)
        return self.take_like(part, step, part)

    def take_like(self, tree: Tree, step: Any, part: Params) -> dict[str, jax.Array]:
        """The same of a tree like the part, such as a gradient, of other dtypes."""
        if self.shards is None:
            return self._own_take(tree, step, part)
        specs = self.shards.specs_of(part)
        return self.shards.on_each_device(
            self._own_take,
            *(tree, step, part),
            in_specs=(specs, PartitionSpec(), specs),
            out_specs=self.shards.each,
        )

    def _own_take(self, tree: Tree, step: Any, part: Params) -> dict[str, jax.Array]:
        """``take_like`` on one device."""
        buffers = defaultdict(list)
        for leaf, param in zip(*map(jax.tree.leaves, (tree, part)), strict=True):
            if not is_float(param):
                continue
            values, counted, _ = self._window(jnp.asarray(leaf), step)
            if counted is not None:
                values = choose(counted, values, jnp.zeros_like(values))
            values = jnp.pad(values, (0, -values.size % self.block))
            buffers[jnp.result_type(param).name].append(values)
        return {dtype: jnp.concatenate(parts) for dtype, parts in buffers.items()}

    def put(self, params: Params, step: Any, portion: Tree) -> Params:
        """The parameters with this piece; nothing else of them is written."""
        part = self.part_of(params)
        return whole_of(self.put_like(part, step, portion, part), params)

    def put_like(self, tree: Tree, step: Any, portion: Tree, part: Params) -> Tree:
        """The same for a tree like the part, such as updates, of other dtypes."""
        if self.shards is None:
            return self._own_put(tree, step, portion, part)
        specs = self.shards.specs_of(part)
        return self.shards.on_each_device(
            self._own_put,
            *(tree, step, portion, part),
            in_specs=(specs, PartitionSpec(), self.shards.each, specs),
            out_specs=specs,
        )

    def _own_put(self, tree: Tree, step: Any, portion: Tree, part: Params) -> Tree:
        """``put_like`` on one device."""
        sizes: dict[str, list[int]] = defaultdict(list)
        for param in filter(is_float, jax.tree.leaves(part)):
            length = self._length(param)
            sizes[jnp.result_type(param).name].append(length + -length % self.block)
        # One buffer, computed once: a compiler would fuse all of the merge into the
        # kernel of each leaf, which takes a part of it.
        portion = barrier(portion)
        own_parts = {name: iter(cut(portion[name], sizes[name])) for name in sizes}

        def write(leaf: jax.Array, param: jax.Array) -> jax.Array:
            if not is_float(param):
                return leaf
            values, counted, start = self._window(leaf, step)
            own = next(own_parts[jnp.result_type(param).name]).astype(leaf.dtype)
            own = own[: len(values)]
            own = own if counted is None else choose(counted, own, values)
            written = lax.dynamic_update_slice_in_dim(
                leaf.ravel(), own, start, 0, allow_negative_indices=False
            )
            return written.reshape(leaf.shape)

        return jax.tree.map(write, tree, part)

    def init_state(self, rule: MergeRule, params: Params) -> RuleState:
        """Rows of what the rule begins with for each piece."""
        if rule.axis_name is not None:
            check_floats(jax.tree.leaves(self.part_of(params)))
        rows: Any = [rule.init(self.take(params, f)) for f in range(self.count)]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)

    def take_state(self, state: Any, step: Any) -> Any:
        """The row of the step's piece."""
        return at(state, step % self.count)

    def put_state(self, state: Any, step: Any, own: Any) -> Any:
        """The rows with a new one."""
        return put_at(state, step % self.count, own)

    def correct(
        self, rule: MergeRule, state: Any, gradient: Tree, params: Params
    ) -> Tree:
        """Piece by piece: each has a row of the rule's state."""
        part = self.part_of(params)

        def one(f: jax.Array, gradient: Tree) -> Tree:
            piece = rule.corrected(at(state, f), self.take_like(gradient, f, part))
            return self.put_like(gradient, f, piece, part)

        return lax.fori_loop(0, self.count, one, gradient)

    def _length(self, leaf: jax.Array) -> int:
        """What a piece has of the leaf."""
        return -(-jnp.size(leaf) // self.count)

    def _window(
        self, leaf: jax.Array, step: Any
    ) -> tuple[jax.Array, jax.Array | None, jax.Array]:
        """The leaf's values where its share of the piece is, and where that begins.

        All windows have the same length. The last ones that hold anything may have to
        begin earlier than their share; what counts is then told by a mask.
        """
        length = self._length(leaf)
        begin = jnp.asarray(step, jnp.int32) % self.count * length
        start = jnp.minimum(begin, leaf.size - length)
        values = lax.dynamic_slice_in_dim(
            leaf.ravel(), start, length, allow_negative_indices=False
        )
        if length * self.count == leaf.size:
            return values, None, start
        return values, start + jnp.arange(length) >= begin, start
