"""The mesh that a user has set, and programs that bring their own."""

import contextlib
from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh


@contextlib.contextmanager
def outside_of_meshes() -> Iterator[None]:
    """No mesh is set in here.

    Under ``jax.set_mesh`` JAX refuses every ``shard_map`` and ``pmap`` over another
    mesh than that.
    """
    if jax.sharding.get_abstract_mesh().empty:
        yield
        return
    try:
        no_mesh = jax.set_mesh(Mesh(np.empty([], object), ()))
    except ValueError:  # while JAX traces, only the abstract mesh can be left
        no_mesh = jax.sharding.use_abstract_mesh(AbstractMesh((), ()))
    with no_mesh:
        yield
