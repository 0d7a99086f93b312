"""Type aliases, and which trees are per worker and which are shared.

Every function of this library that runs *inside* ``pmap``, ``shard_map`` or
``vmap`` sees the trees of one worker. *Outside* of them the same trees carry a
leading axis of length N, the number of workers.

==================  ==========================================================
Tree                Who holds it
==================  ==========================================================
``Params``          per worker: x_i, the parameters; s_i, the snapshot
``ModelState``      per worker: batch statistics and other non-parameters
``optax.OptState``  per worker: the inner optimizer's state, the rule's state
``ExchangeState``   per worker: what an exchange remembers, such as its error
``Sent``            per worker: what an exchange has in flight, as it travels
``Batch``           per worker: one local batch; ``Batches`` has a leading axis
                    of length k, the period
arriving, m         what the exchange received: equal on all workers for a
                    mean, per worker for gossip
==================  ==========================================================

Scalars named ``count`` advance in step on all workers.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax

# A pytree is a tree of the user's own making: no narrower type would be true.
Tree: TypeAlias = Any
Params: TypeAlias = Any
ModelState: TypeAlias = Any
ExchangeState: TypeAlias = Any
Sent: TypeAlias = Any
Batch: TypeAlias = Any
Batches: TypeAlias = Any

AxisName: TypeAlias = str | tuple[str, ...]
"""The name, or names, of the mapped axis of the workers."""

LossFn: TypeAlias = Callable[..., Any]
"""``(params, batch) -> loss``, or, for a stateful round,
``(params, model_state, batch, key) -> (loss, model_state)``."""

Weight: TypeAlias = jax.Array | float
"""One worker's share p_i, a positive scalar; all shares have sum 1."""
