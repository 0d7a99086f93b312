"""A state as the arrays that a checkpoint has, by their names, and back."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, PartitionSpec

from cocod_jax._trees import is_key
from cocod_jax.rounds._types import RoundState


class Unlike(ValueError):
    """A checkpoint is whole, and of something else."""


def _by_name(state: RoundState) -> dict[str, jax.Array]:
    """The leaves by their path."""
    named: dict[str, jax.Array] = {}
    for path, leaf in jax.tree.leaves_with_path(state):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        if name in named:
            raise ValueError(f"two leaves of the state have the name {name!r}.")
        named[name] = leaf
    return named


def to_save(state: RoundState) -> dict[str, jax.Array]:
    """The leaves by their path; PRNG keys as the integers that they are.

    Those that hold no number are left out: Orbax refuses them.
    """
    return {
        name: jax.random.key_data(leaf) if is_key(leaf) else leaf
        for name, leaf in _by_name(state).items()
        if leaf.size
    }


def restored_like(found: Mapping[str, jax.Array], like: RoundState) -> RoundState:
    """The state with the leaves by their path."""
    own = _of_own_process(dict(found), to_save(like))

    def back(name: str, leaf: jax.Array) -> jax.Array:
        if not is_key(leaf):
            return own[name] if leaf.size else leaf.copy()
        return jax.random.wrap_key_data(own[name], impl=jax.random.key_impl(leaf))

    leaves, treedef = jax.tree.flatten(like)
    return jax.tree.unflatten(treedef, map(back, _by_name(like), leaves))


def abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _spread(leaf: Any) -> bool:
    """Whether an array is that of all processes."""
    return isinstance(leaf, jax.Array) and not leaf.is_fully_addressable


def _own_mesh(workers: int) -> Mesh:
    """A device for each worker, of all processes."""
    devices = [
        device
        for process in range(jax.process_count())
        for device in jax.local_devices(process_index=process)[:workers]
    ]
    return Mesh(np.array(devices), "workers")


def of_all_processes(named: dict[str, Any]) -> dict[str, Any]:
    """Arrays of this process's workers as a part of those of all."""
    if jax.process_count() == 1 or all(map(_spread, named.values())):
        return named
    mesh = _own_mesh(len(next(iter(named.values()))))
    to_global = multihost_utils.host_local_array_to_global_array
    return to_global(jax.device_get(named), mesh, PartitionSpec("workers"))


def _of_own_process(named: dict[str, Any], like: dict[str, Any]) -> dict[str, Any]:
    """The opposite: what this process's workers have."""
    if jax.process_count() == 1 or all(map(_spread, like.values())):
        return named
    mesh = _own_mesh(len(next(iter(like.values()))))
    to_local = multihost_utils.global_array_to_host_local_array
    return to_local(named, mesh, PartitionSpec("workers"))


def check_same_arrays(saved: Any, wanted: Mapping[str, Any], name: str) -> None:
    """Raises ValueError unless both have the same arrays, naming those that differ."""
    kind = lambda leaf: (tuple(leaf.shape), np.dtype(leaf.dtype))
    have = {key: kind(leaf) for key, leaf in saved.items()}
    want = {key: kind(leaf) for key, leaf in wanted.items()}
    lines = [f"{key} is missing" for key in want.keys() - have.keys()]
    lines += [f"{key} is unknown here" for key in have.keys() - want.keys()]
    lines += [
        f"{key} is {have[key][1]}{list(have[key][0])}, and {want[key][1]}"
        f"{list(want[key][0])} is asked for"
        for key in have.keys() & want.keys()
        if have[key] != want[key]
    ]
    if lines:
        shown = "; ".join(sorted(lines)[:5]) + ("; ..." if len(lines) > 5 else "")
        raise Unlike(
            f"{name} is of another model, optimizer, rule or number of workers: "
            f"{shown}."
        )
