"""The mesh that a user has set, and programs that bring their own."""

import contextlib
from collections.abc import Iterator

import jax
from jax.sharding import AbstractMesh


@contextlib.contextmanager
def outside_of_meshes() -> Iterator[None]:
    """No mesh is set in here.

    Under ``jax.set_mesh`` JAX refuses every ``shard_map`` and ``pmap`` over another
    mesh than that.
    """
    with jax.sharding.use_abstract_mesh(AbstractMesh((), ())):
        yield
