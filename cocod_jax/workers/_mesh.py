"""Workers that have several devices each: one axis of a mesh, and the rest of it."""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from cocod_jax._checks import check_sequence
from cocod_jax._text import shown
from cocod_jax._trees import is_key


def check_devices(**values: Any) -> None:
    """Raises unless all are sequences of devices, at least one in each, none twice."""
    check_sequence("one device for each worker", **values)
    for name, devices in values.items():
        if not len(devices):
            raise ValueError(f"{name} is empty; give one for each worker, or None.")
        for i, device in enumerate(devices):
            if not isinstance(device, jax.Device):
                raise TypeError(
                    f"{name}[{i}]={shown(device)} must be one of jax.devices()."
                )
        if len(set(devices)) != len(devices):
            raise ValueError(
                f"{name} has a device twice: {[*devices]}; each worker needs one of "
                "its own, or via='vmap' to share one."
            )


def check_mesh(mesh: Any, axis_name: str) -> None:
    """Raises unless it is a mesh with an axis of workers."""
    if not isinstance(mesh, Mesh):
        raise TypeError(f"mesh={shown(mesh)} must be a jax.sharding.Mesh.")
    if axis_name not in mesh.axis_names:
        raise ValueError(
            f"the mesh has the axes {mesh.axis_names}, and none of them is "
            f"{axis_name!r}, the axis of the workers; name one so, or make the rule "
            "for an axis that it has."
        )


def within_worker(mesh: Mesh, axis_name: str, leaf: Any) -> PartitionSpec:
    """How the devices of a worker share one worker's array.

    Raises:
      ValueError: when it is shared over an axis that the mesh has not within a worker.
    """
    sharding = getattr(leaf, "sharding", None)
    if not isinstance(sharding, NamedSharding):
        return PartitionSpec()
    for name in jax.tree.leaves(tuple(sharding.spec)):
        if name == axis_name or name not in mesh.axis_names:
            raise ValueError(
                f"an array of shape {leaf.shape} is sharded over {name!r}; the axes "
                f"within a worker are {set(mesh.axis_names) - {axis_name}}."
            )
    return sharding.spec


def place_on(mesh: Mesh, axis_name: str, tree: Any) -> Any:
    """Arrays of all workers on the mesh; those that are on it stay as they are."""
    default = NamedSharding(mesh, PartitionSpec(axis_name))

    def is_there(leaf: Any) -> bool:
        sharding = getattr(leaf, "sharding", None)
        if not isinstance(sharding, NamedSharding) or sharding.mesh != mesh:
            return False
        return sharding.spec[:1] == (axis_name,)

    put = lambda leaf: leaf if is_there(leaf) else _put(leaf, default)
    return (
        tree if all(map(is_there, jax.tree.leaves(tree))) else jax.tree.map(put, tree)
    )


def _put(leaf: Any, sharding: NamedSharding) -> jax.Array:
    """An array on devices of other processes too, all of which have it whole."""
    if sharding.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    if is_key(leaf):
        data = _put(jax.random.key_data(leaf), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    whole = np.asarray(leaf)
    return jax.make_array_from_callback(
        whole.shape, sharding, lambda index: whole[index]
    )


def explicit_mesh(leaf: Any) -> Mesh | None:
    """The mesh of an array, where its axes are explicit."""
    is_traced = isinstance(leaf, jax.core.Tracer)
    sharding = None if is_traced else getattr(leaf, "sharding", None)
    if not isinstance(sharding, NamedSharding) or not isinstance(sharding.mesh, Mesh):
        return None
    return sharding.mesh if AxisType.Explicit in sharding.mesh.axis_types else None


def with_axes(kind: AxisType, tree: Any) -> Any:
    """The same arrays where they are, on meshes whose axes are of one kind."""

    def move(leaf: jax.Array) -> jax.Array:
        sharding = leaf.sharding
        if not isinstance(sharding, NamedSharding):
            return leaf
        mesh, kinds = sharding.mesh, (kind,) * len(sharding.mesh.axis_names)
        own = Mesh(mesh.devices, mesh.axis_names, axis_types=kinds)
        return jax.device_put(leaf, NamedSharding(own, sharding.spec))

    return jax.tree.map(move, tree)
