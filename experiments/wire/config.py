"""The configuration of the study of what passes a worker's link.

``python -m experiments.wire`` takes three minutes, Linux, root and iproute2. Expected:
what the exchanges say that they send, by the ring that gloo sends it over, is what the
interfaces count, to less than 1 %.
"""

import dataclasses
from pathlib import Path

from experiments.options import Count, LinkRate, Options


@dataclasses.dataclass(frozen=True, kw_only=True)
class WireConfig(Options):
    """What is exchanged, and between how many."""

    workers: tuple[Count, ...] = (2, 4)
    """Numbers of processes."""
    parameters: Count = 1_000_000
    """Numbers in the buffer that each exchanges, of float32."""
    exchanges: Count = 10
    """Of each kind, one after the other."""
    rate: LinkRate = "1gbit"
    """Of each link, as ``tc`` writes it."""
    out: Path = Path("runs/wire")
    """Folder for the log."""

    def __post_init__(self):
        super().__post_init__()
        for workers in self.workers:
            if workers < 2:
                raise ValueError(f"workers={workers} must be 2 or more: they exchange.")
