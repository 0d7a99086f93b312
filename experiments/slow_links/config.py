"""The configuration of the study of slow links.

``python -m experiments.slow_links`` takes half an hour on 2 quiet CPU cores, as root.
Expected: S-SGD's loss on fast links, reached on links fifty times slower in less time.
"""

import dataclasses
from pathlib import Path
from typing import Literal

from experiments.options import Count, LinkRate, Options, Positive, Seed

Numbers = Literal["float32", "int8", "int4"]
"""What travels; float32 is what the parameters are."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SlowLinksConfig(Options):
    """Which links, and what runs on them."""

    fast: LinkRate = "1gbit"
    """The links of S-SGD, as ``tc`` writes a rate."""
    slow: LinkRate = "20mbit"
    """Those of streamed CoCoD-SGD."""
    numbers: tuple[Numbers, ...] = ("int8", "int4")
    """What streamed CoCoD-SGD sends; a run for each."""
    longer: Positive = 1.5
    """How many times the epochs of S-SGD streamed CoCoD-SGD trains for: its steps take
    less time."""
    workers: Count = 2
    """Processes, each on its core."""
    seeds: tuple[Seed, ...] = (0,)
    """Everything runs once for each."""
    out: Path = Path("runs/slow_links")
    """Folder for the logs, the table and the figure."""

    def __post_init__(self):
        super().__post_init__()
        if self.workers < 2:
            raise ValueError(
                f"workers={self.workers} must be 2 or more: they exchange."
            )
