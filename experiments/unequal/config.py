"""The configuration of the study of unequal workers.

``python -m experiments.unequal --width 16 --pause 0.05 --interval 0.5 --repeats 8``
is the latest study. Expected: shares in proportion see 1.3 times the images per second
of equal shares, and short pauses cost CoCoD-SGD a third of what they cost S-SGD.
"""

import dataclasses
from pathlib import Path

from experiments.options import Count, LinkRate, NonNegative, Options, Positive


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnequalConfig(Options):
    """What is measured."""

    rate: LinkRate = "500mbit"
    """The rate of the links, as ``tc`` writes it; none for loopback."""
    workers: Count = 2
    """Processes, each on its core; the last one is slow."""
    width: Count = 32
    """Channels of the first stage of ResNet-18."""
    batch_size: Count = 8
    """Images in a micro-batch."""
    micro_batches: Count = 12
    """Micro-batches that all workers together take in a local step."""
    period: Count = 4
    """Local steps in a round."""
    pause: NonNegative = 0.5
    """Seconds of a random pause of a worker."""
    interval: Positive = 2.0
    """Seconds from a pause of a worker to its next one, on average."""
    repeats: Count = 5
    """Interleaved measurements: their median counts for shares, their mean for
    pauses."""
    out: Path = Path("runs/unequal")
    """Folder for the log and the figure."""
