"""Workers of several devices: what each device has of its worker's parameters.

The parts of one leaf are on several devices, and a flat buffer of whole leaves would
have to be gathered from all of them. So every device ravels the parts that it has, and
sends them to the devices of the other workers that have the same parts.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from cocod_jax._trees import varying_axes
from cocod_jax._typing import AxisName, ExchangeState, Sent, Tree, Weight
from cocod_jax.exchanges._base import Exchange
from cocod_jax.exchanges._wire import ravel, unravel


@dataclasses.dataclass(frozen=True)
class Shards:
    """How the devices of each worker share its parameters.

    Attributes:
      mesh: of all devices, or those of one worker.
      axes: the axes of the mesh that are within a worker.
      specs: of every leaf of the parameters, by its path, which axes share it.
    """

    mesh: Mesh | AbstractMesh
    axes: tuple[str, ...]
    specs: tuple[tuple[str, PartitionSpec], ...]

    @property
    def each(self) -> PartitionSpec:
        """The spec of a flat buffer of which each device has its own part."""
        return PartitionSpec(self.axes)

    def specs_of(self, tree: Tree) -> Tree:
        """The spec of every leaf of a tree like the parameters, or like a part of them.

        Raises:
          ValueError: when a leaf is none of the parameters'.
        """
        known = dict(self.specs)

        def spec(path: Any, leaf: Any) -> PartitionSpec:
            name = jax.tree_util.keystr(path)
            if name not in known:
                raise ValueError(
                    f"a tree with the leaf {name or 'of the root'} is exchanged, which "
                    "is none of the parameters'. Between workers of several devices "
                    "a rule sends trees like the parameters alone."
                )
            return known[name]

        return jax.tree.map_with_path(spec, tree)

    def on_each_device(
        self, function: Callable, *args: Any, in_specs: Any, out_specs: Any
    ) -> Any:
        """The function of one device, whose arrays are the parts that it has."""
        mapped = jax.shard_map(
            function,
            mesh=None if _within_workers() else self.mesh,
            in_specs=in_specs,
            out_specs=out_specs,
            axis_names=set(self.axes),
            check_vma=False,  # that devices with equal parts agree cannot be shown
        )
        if not _within_workers():  # else some axes may not be left to the compiler
            return jax.jit(mapped)(*args)
        return _vary_over_workers(mapped(*args))

    def ravel(self, tree: Tree) -> dict[str, jax.Array]:
        """The floating-point leaves as ``{dtype: buffer}``, each device's own."""
        specs = self.specs_of(tree)
        return self.on_each_device(ravel, tree, in_specs=(specs,), out_specs=self.each)

    def unravel(self, buffers: dict[str, jax.Array], like: Tree) -> Tree:
        """The tree that was raveled, with the buffers' numbers."""
        specs = self.specs_of(like)
        return self.on_each_device(
            unravel, buffers, like, in_specs=(self.each, specs), out_specs=specs
        )


def between_shards(exchange: Exchange, shards: Shards) -> Exchange:
    """The exchange between workers of several devices; no leaf is gathered for it."""
    if exchange.block is not None:
        return by_each_device(exchange, shards, shards.specs_of)

    def init(tree: Tree) -> ExchangeState:
        return exchange.init(shards.ravel(tree))

    def send(
        state: ExchangeState, tree: Tree, weight: Weight | None = None
    ) -> tuple[Sent, ExchangeState]:
        return exchange.send(state, shards.ravel(tree), weight)

    def receive(sent: Sent, like: Tree) -> Tree:
        return shards.unravel(exchange.receive(sent, shards.ravel(like)), like)

    return exchange._replace(init=init, send=send, receive=receive)


def by_each_device(
    exchange: Exchange, shards: Shards, specs_of: Callable[[Tree], Any]
) -> Exchange:
    """The exchange of what each device has, with those that have the same.

    Every array of its state, and of what is in flight, is each device's own.

    Args:
      exchange: one with blocks.
      shards: how devices share the parameters.
      specs_of: how they share a tree that is sent.
    """
    each, block = shards.each, exchange.block or 1

    def padded(tree: Tree) -> Tree:
        """Raveled and filled up with zeros: each leaf begins a block."""
        fill = lambda leaf: jnp.pad(jnp.ravel(leaf), (0, -jnp.size(leaf) % block))
        return jax.tree.map(fill, tree)

    def init(tree: Tree) -> ExchangeState:
        return shards.on_each_device(
            lambda tree: exchange.init(padded(tree)),
            tree,
            in_specs=(specs_of(tree),),
            out_specs=each,
        )

    def sending(send: Callable) -> Callable:
        def own(state: ExchangeState, tree: Tree, weight: Weight | None = None) -> Any:
            return shards.on_each_device(
                lambda state, tree, weight: send(state, padded(tree), weight),
                *(state, tree, weight),
                in_specs=(each, specs_of(tree), PartitionSpec()),
                out_specs=each,
            )

        return own

    def receive(sent: Sent, like: Tree) -> Tree:
        def own(sent: Sent, like: Tree) -> Tree:
            arrived = exchange.receive(sent, padded(like))
            cut = lambda flat, leaf: flat[: jnp.size(leaf)].reshape(jnp.shape(leaf))
            return jax.tree.map(cut, arrived, like)

        specs = specs_of(like)
        return shards.on_each_device(
            own, sent, like, in_specs=(each, specs), out_specs=specs
        )

    phases = exchange.phases
    if phases is not None:
        on_each = functools.partial(shards.on_each_device, out_specs=each)
        first, turn, second = phases
        phases = (
            sending(first),
            functools.partial(on_each, turn, in_specs=(each, each)),
            functools.partial(on_each, second, in_specs=(each,)),
        )
    return exchange._replace(
        init=init, send=sending(exchange.send), receive=receive, phases=phases
    )


def shards_of(
    tree: Tree,
    axis_name: AxisName | None,
    *,
    specs: Tree | None = None,
    of_all: bool = False,
) -> Shards | None:
    """How the devices of a worker share its parameters, as the arrays tell.

    Args:
      tree: arrays, or shapes that have shardings.
      axis_name: the axis of the workers.
      specs: what arrays do not tell within a ``shard_map`` whose other axes are left to
        the compiler: a prefix of the tree.
      of_all: whether the arrays are those of all workers, on their first axis.

    Returns:
      None where no leaf is shared.
    """
    if specs is not None and _within_workers():
        each = jax.tree.broadcast(specs, tree, is_leaf=_is_spec)
        found = _by_path(each, is_leaf=_is_spec)
        mesh = jax.sharding.get_abstract_mesh()
        return (
            _shared(mesh, axis_name, found) if any(map(any, found.values())) else None
        )
    shardings = _by_path(jax.tree.map(_sharding_of, tree))
    found, mesh = {}, None
    for path, sharding in shardings.items():
        found[path] = PartitionSpec()
        if isinstance(sharding, NamedSharding):
            found[path] = PartitionSpec(*sharding.spec[of_all:])
            mesh = sharding.mesh if any(found[path]) else mesh
    return None if mesh is None else _shared(mesh, axis_name, found)


def _by_path(tree: Tree, is_leaf: Any = None) -> dict[str, Any]:
    leaves = jax.tree.leaves_with_path(tree, is_leaf=is_leaf)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def _shared(
    mesh: Mesh | AbstractMesh,
    axis_name: AxisName | None,
    specs: dict[str, PartitionSpec],
) -> Shards:
    workers = axis_name if isinstance(axis_name, tuple) else (axis_name,)
    manual = getattr(mesh, "manual_axes", ())
    outside = {*workers, *manual}
    axes = tuple(name for name in mesh.axis_names if name not in outside)
    for path, spec in specs.items():
        for name in jax.tree.leaves(tuple(spec)):
            if name not in axes:
                raise ValueError(
                    f"the parameters' {path or 'leaf'} is shared over {name!r}; the "
                    f"devices of a worker are those of the axes {axes}."
                )
    return Shards(mesh, axes, tuple(specs.items()))


def _is_spec(node: Any) -> bool:
    return isinstance(node, PartitionSpec)


def _sharding_of(leaf: Any) -> Any:
    """Of an array; while JAX traces, its type tells it of explicit axes alone."""
    is_traced = isinstance(leaf, jax.core.Tracer)
    return getattr(jax.typeof(leaf) if is_traced else leaf, "sharding", None)


def _vary_over_workers(tree: Tree) -> Tree:
    """The same arrays, with types that say that the workers' differ, if types do."""
    workers = jax.sharding.get_abstract_mesh().manual_axes
    checked = {name for name in workers if name in varying_axes(lax.axis_index(name))}

    def vary(leaf: jax.Array) -> jax.Array:
        missing = tuple(checked - varying_axes(leaf))
        return lax.pcast(leaf, missing, to="varying") if missing else leaf

    return jax.tree.map(vary, tree)


def _within_workers() -> bool:
    """Whether this is traced for one worker out of several."""
    return bool(jax.sharding.get_abstract_mesh().manual_axes)
