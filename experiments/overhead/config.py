"""The configuration of the study of overheads.

``python -m experiments.overhead``, five minutes. Hoped for on CPUs: a local step of a
round takes at most 1.05 times as long as a plain one, and no program of a model of many
leaves takes more than twice the plain one's time to compile. Expected: the MLP of
8 x 512 takes more for its exchange, and ``every`` two and a half times to compile.
"""

import dataclasses
from pathlib import Path

from experiments.options import Count, NonNegative, Options


@dataclasses.dataclass(frozen=True, kw_only=True)
class OverheadConfig(Options):
    """What is measured."""

    workers: Count = 2
    """Devices, one for each worker."""
    period: Count = 8
    """Local steps in a round."""
    width: Count = 16
    """Channels of the first stage of ResNet-18."""
    batch_size: Count = 8
    """Images in a local batch of ResNet-18."""
    repeats: Count = 7
    """Measurements of each program, by turns; their ratios are of one turn."""
    seconds: NonNegative = 1.0
    """For which a program runs in a measurement, one round at least."""
    leaves: tuple[Count, ...] = (1000,)
    """Numbers of arrays in the models that are compiled; () compiles none."""
    compiled: tuple[str, ...] = ("plain", "step", "send", "merge", "round", "every")
    """Which programs are compiled, for models whose compilation takes long."""
    out: Path = Path("runs/overhead")
    """Folder for the log."""
