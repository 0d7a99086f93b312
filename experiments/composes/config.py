"""The configuration of the sweep over optax.

``python -m experiments.composes`` takes 10 minutes on 2 CPU cores. Expected: nearly all
compose; those that keep a copy of the parameters, or call the loss, do not, or with a
caveat.
"""

import dataclasses
from pathlib import Path


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComposesConfig:
    """What is tried, and where the answers go."""

    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    """The parameters' dtypes; float32 has all ways to run, the others three of them."""
    out: Path = Path("runs/composes")
    """Folder for the log."""

    def __post_init__(self):
        if "float32" not in self.dtypes:
            raise ValueError(f"dtypes={self.dtypes} must hold 'float32'.")
