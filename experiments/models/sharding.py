"""How the transformer is divided between the devices of a worker."""

from typing import Any

import jax
from jax.sharding import PartitionSpec

# By the module that has the parameter. What enters a layer is whole on every device
# of "tensor", and what leaves its first matrix is divided by heads or hidden channels.
_ROLES = {
    # A vocabulary of bytes or characters is small, and any number. XLA aborts at a
    # lookup in a table that one of two axes divides.
    "embedding": PartitionSpec(None, ("fsdp", "tensor")),
    "qkv": PartitionSpec("fsdp", "tensor"),
    "gate": PartitionSpec("fsdp", "tensor"),
    "up": PartitionSpec("fsdp", "tensor"),
    "out": PartitionSpec("tensor", "fsdp"),
    "down": PartitionSpec("tensor", "fsdp"),
    "before_attention": PartitionSpec(None),
    "before_feed_forward": PartitionSpec(None),
    "norm": PartitionSpec(None),
}


def divide_batch(x: jax.Array) -> jax.Array:
    """The same array, its first axis divided between the devices of a worker.

    Outside of a mesh with the axis "fsdp" it does nothing. Within one a compiler that
    is left to itself may divide channels, and move whole activations for it.
    """
    if "fsdp" not in jax.sharding.get_abstract_mesh().axis_names:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec("fsdp"))


def partition_specs(params: Any) -> Any:
    """The specification of each parameter, over the axes "fsdp" and "tensor".

    Args:
      params: those of :func:`experiments.models.transformer.build`, or their shapes.

    Returns:
      A tree like ``params``.

    Raises:
      ValueError: when the transformer has no such parameter.
    """

    def spec(path: tuple[Any, ...], leaf: Any) -> PartitionSpec:
        role = str(path[-2].key) if len(path) > 1 else ""
        if role not in _ROLES:
            name = jax.tree_util.keystr(path)
            raise ValueError(f"params{name} is none of {sorted(_ROLES)}.")
        return _ROLES[role]

    return jax.tree.map_with_path(spec, params)
