"""Any function as one traced program over all workers."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax import export
from jax.extend.core import ClosedJaxpr, Jaxpr, Var, jaxpr_as_fun
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec


class Program(NamedTuple):
    """A program over all workers, traced and ready to be compiled.

    Attributes:
      exported: the program on flat arrays; it knows how many devices it wants.
      jaxpr: the same program, for its data flow.
      mesh: the axes that it is spread over.
      specs: how each input is spread.
      donated: indices of the inputs that it may overwrite.
    """

    exported: export.Exported
    jaxpr: Jaxpr
    mesh: Mesh | AbstractMesh
    specs: tuple[PartitionSpec, ...]
    donated: tuple[int, ...]


def over_workers(
    fn: Callable[..., Any], axis_name: str, devices: int, *, donate: bool
) -> Callable[..., Any]:
    """One worker's function over all workers, as ``jax.pmap`` would run it."""

    def one_worker(*args: Any) -> Any:
        out = fn(*jax.tree.map(lambda x: x[0], args))
        return jax.tree.map(lambda x: jax.numpy.asarray(x)[None], out)

    run = jax.shard_map(
        one_worker,
        mesh=_mesh(devices, axis_name),
        in_specs=PartitionSpec(axis_name),
        out_specs=PartitionSpec(axis_name),
        check_vma=False,  # as pmap does: fn need not say what varies with the worker
    )
    return jax.jit(run, donate_argnums=0 if donate else ())


def for_workers(args: Any, devices: int) -> Any:
    """The shapes of ``args`` with a leading axis of as many workers."""
    shape = lambda x: jax.ShapeDtypeStruct((devices, *x.shape[1:]), x.dtype)
    return jax.tree.map(shape, args)


def trace(fn: Callable[..., Any], args: tuple[Any, ...]) -> Program:
    """Traces a jitted or pmapped function, with the donations it chose."""
    leaves, treedef = jax.tree.flatten(args)
    run = jax.jit(lambda *leaves: fn(*jax.tree.unflatten(treedef, leaves)))
    closed = jaxpr_of(run, *leaves)
    jaxpr = closed.jaxpr
    door = _FrontDoor(leaves)
    door.visit(jaxpr, {v: i for i, v in enumerate(jaxpr.invars)})
    specs = tuple(door.specs.get(i, PartitionSpec()) for i in range(len(leaves)))
    inputs = spread([v.aval for v in jaxpr.invars], door.mesh, specs)
    run = jax.jit(jaxpr_as_fun(closed))  # what is traced already
    exported = export.export(run, platforms=["cuda"])(*inputs)
    return Program(exported, jaxpr, door.mesh, specs, tuple(sorted(door.donated)))


def jaxpr_of(fn: Callable[..., Any], *args: Any) -> ClosedJaxpr:
    """The jaxpr of a function that may have been jitted.

    Raises:
      ValueError: when it was jitted with options of the compiler, which cannot be seen.
    """
    try:
        return jax.make_jaxpr(fn)(*args)
    except ValueError as error:
        if "compiler_options" not in str(error):
            raise
        raise ValueError(
            "fn was jitted with compiler_options, which JAX hides; give it without "
            "them, and latency_hiding=True where they turn the scheduler on."
        ) from error


def spread(
    avals: Sequence[Any], mesh: Mesh | AbstractMesh, specs: Sequence[PartitionSpec]
) -> list[jax.ShapeDtypeStruct]:
    """The shapes of ``avals``, each spread over the mesh by its spec."""
    return [
        jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=NamedSharding(mesh, spec))
        for a, spec in zip(avals, specs, strict=True)
    ]


def _mesh(devices: int, axis_name: str) -> AbstractMesh:
    # Since JAX 0.11 axes are explicit unless told otherwise, in types and in shapes.
    return AbstractMesh((devices,), (axis_name,), axis_types=(AxisType.Auto,))


class _FrontDoor:
    """How a program's inputs are spread and donated; inputs are known by index."""

    def __init__(self, leaves: list[Any]) -> None:
        self.mesh: Mesh | AbstractMesh = _mesh(1, "devices")
        self.specs: dict[int, PartitionSpec] = {}
        self.donated: set[int] = set()
        for i, leaf in enumerate(leaves):
            self.spread(i, getattr(leaf, "sharding", None))

    def spread(self, i: int, sharding: Any) -> None:
        """Notes how input i is spread, if it is over a mesh."""
        if isinstance(sharding, NamedSharding):
            self.mesh, self.specs[i] = sharding.mesh, sharding.spec

    def visit(self, jaxpr: Jaxpr, inputs: dict[Var, int]) -> None:
        """Looks for the ``jit`` and ``shard_map`` that take the inputs."""
        for eqn in jaxpr.eqns:
            known = [inputs.get(v) if isinstance(v, Var) else None for v in eqn.invars]
            if eqn.primitive.name == "shard_map":
                self.mesh = eqn.params["mesh"]
                specs = zip(known, eqn.params["in_specs"], strict=True)
                self.specs |= {i: spec for i, spec in specs if i is not None}
            elif "donated_invars" in eqn.params:
                flags = zip(known, eqn.params["donated_invars"], strict=True)
                self.donated |= {i for i, yes in flags if yes and i is not None}
                for i, sharding in zip(known, eqn.params["in_shardings"], strict=True):
                    if i is not None:
                        self.spread(i, sharding)
                inner = eqn.params["jaxpr"].jaxpr
                passed = zip(inner.invars, known, strict=True)
                self.visit(inner, {v: i for v, i in passed if i is not None})
