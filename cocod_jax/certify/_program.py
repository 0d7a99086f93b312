"""Any function as one traced program over all workers."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import export
from jax.extend.core import ClosedJaxpr, Jaxpr, Var, jaxpr_as_fun
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from cocod_jax._meshes import outside_of_meshes


class Program(NamedTuple):
    """A program over all workers, traced and ready to be compiled.

    Attributes:
      exported: the program on flat arrays; it knows how many devices it wants.
      jaxpr: the same program, for its data flow.
      mesh: the axes that it is spread over.
      shardings: how each input is spread.
      donated: indices of the inputs that it may overwrite.
    """

    exported: export.Exported
    jaxpr: Jaxpr
    mesh: Mesh | AbstractMesh
    shardings: tuple[NamedSharding, ...]
    donated: tuple[int, ...]

    def worker_of_device(self, axis_name: str) -> tuple[int, ...]:
        """The worker that each device belongs to; without that axis, one each."""
        sizes, names = self.mesh.axis_sizes, self.mesh.axis_names
        if axis_name not in names:
            return tuple(range(self.exported.nr_devices))
        return tuple(np.indices(sizes)[names.index(axis_name)].ravel().tolist())


def over_workers(
    fn: Callable[..., Any],
    axis_name: str,
    mesh: Mesh | AbstractMesh,
    *,
    donate: bool,
) -> Callable[..., Any]:
    """One worker's function over all workers, as ``jax.pmap`` would run it.

    The other axes of the mesh are devices inside a worker, and left to the compiler.
    """

    def one_worker(*args: Any) -> Any:
        out = fn(*jax.tree.map(lambda x: x[0], args))
        return jax.tree.map(lambda x: jax.numpy.asarray(x)[None], out)

    run = jax.shard_map(
        one_worker,
        mesh=mesh,
        in_specs=PartitionSpec(axis_name),
        out_specs=PartitionSpec(axis_name),
        axis_names={axis_name},
        check_vma=False,  # as pmap does: fn need not say what varies with the worker
    )
    return outside_of_meshes()(jax.jit(run, donate_argnums=0 if donate else ()))


def mesh_of_workers(args: Any, axis_name: str) -> Mesh | AbstractMesh | None:
    """The mesh that arrays are spread over, if its workers have several devices."""
    shardings = [getattr(x, "sharding", None) for x in jax.tree.leaves(args)]
    meshes = [s.mesh for s in shardings if isinstance(s, NamedSharding)]
    is_inside = lambda mesh: mesh.size > mesh.shape.get(axis_name, mesh.size)
    return next((mesh for mesh in meshes if is_inside(mesh)), None)


def for_workers(args: Any, devices: int) -> Any:
    """The shapes of ``args`` with a leading axis of as many workers."""
    shape = lambda x: jax.ShapeDtypeStruct((devices, *x.shape[1:]), x.dtype)
    return jax.tree.map(shape, args)


def trace(fn: Callable[..., Any], args: tuple[Any, ...], platform: str) -> Program:
    """Traces a jitted or pmapped function for a platform, with its donations."""
    leaves, treedef = jax.tree.flatten(args)
    run = jax.jit(lambda *leaves: fn(*jax.tree.unflatten(treedef, leaves)))
    closed = jaxpr_of(run, *leaves)
    jaxpr = closed.jaxpr
    inputs = _Inputs(leaves)
    inputs.visit(jaxpr, {v: i for i, v in enumerate(jaxpr.invars)})
    shardings = inputs.all_shardings()
    run = jax.jit(jaxpr_as_fun(closed))  # what is traced already
    shapes = spread([v.aval for v in jaxpr.invars], shardings)
    with outside_of_meshes():  # a mesh that was set is in the traced program
        exported = export.export(run, platforms=[platform])(*shapes)
    donated = tuple(sorted(inputs.donated))
    return Program(exported, jaxpr, inputs.mesh, shardings, donated)


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
            "them, and the options to certify: certify(..., compiler_options=...)."
        ) from error


def spread(
    avals: Sequence[Any], shardings: Sequence[NamedSharding]
) -> list[jax.ShapeDtypeStruct]:
    """The shapes of ``avals``, each spread by its sharding."""
    return [
        jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding)
        for a, sharding in zip(avals, shardings, strict=True)
    ]


def one_axis(devices: int, axis_name: str) -> AbstractMesh:
    """A mesh of workers with one device each."""
    # Since JAX 0.11 axes are explicit unless told otherwise, in types and in shapes.
    return AbstractMesh((devices,), (axis_name,), axis_types=(AxisType.Auto,))


class _Inputs:
    """How a program's inputs are spread and donated; inputs are known by index.

    The sharding that ``jit`` or an array gives is the one that the program runs with.
    The specs of a ``shard_map`` count where neither gives any: they leave out the axes
    that it does not map over.
    """

    def __init__(self, leaves: list[Any]) -> None:
        self.mesh: Mesh | AbstractMesh = one_axis(1, "devices")
        self.shardings: dict[int, NamedSharding] = {}
        self.count = len(leaves)
        self.donated: set[int] = set()
        for i, leaf in enumerate(leaves):
            self.spread(i, getattr(leaf, "sharding", None))

    def all_shardings(self) -> tuple[NamedSharding, ...]:
        whole = NamedSharding(self.mesh, PartitionSpec())
        return tuple(self.shardings.get(i, whole) for i in range(self.count))

    def spread(self, i: int, sharding: Any) -> None:
        """Notes how input i is spread, if it is over a mesh."""
        if isinstance(sharding, NamedSharding):
            self.mesh, self.shardings[i] = sharding.mesh, sharding

    def visit(self, jaxpr: Jaxpr, inputs: dict[Var, int]) -> None:
        """Looks for the ``jit`` and ``shard_map`` that take the inputs."""
        for eqn in jaxpr.eqns:
            known = [inputs.get(v) if isinstance(v, Var) else None for v in eqn.invars]
            if eqn.primitive.name == "shard_map":
                self.mesh = eqn.params["mesh"]
                for i, spec in zip(known, eqn.params["in_specs"], strict=True):
                    if i is not None:
                        self.shardings.setdefault(i, NamedSharding(self.mesh, spec))
            elif "donated_invars" in eqn.params:
                flags = zip(known, eqn.params["donated_invars"], strict=True)
                self.donated |= {i for i, yes in flags if yes and i is not None}
                for i, sharding in zip(known, eqn.params["in_shardings"], strict=True):
                    if i is not None:
                        self.spread(i, sharding)
                inner = eqn.params["jaxpr"].jaxpr
                passed = zip(inner.invars, known, strict=True)
                self.visit(inner, {v: i for v, i in passed if i is not None})
