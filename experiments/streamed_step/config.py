"""The configuration of the study of a streamed step.

``python -m experiments.streamed_step`` takes less than six minutes on one quiet core.
Hoped for: a streamed step takes at most 1.03 times as long as the plain optimizer's.
"""

import dataclasses
from pathlib import Path
from typing import Literal

from experiments.options import Count, NonNegative, Options


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamedStepConfig(Options):
    """What is measured, on the first device."""

    models: tuple[Literal["resnet18", "transformer"], ...] = ("resnet18", "transformer")
    """What is trained."""
    period: Count = 4
    """k, local steps in a round, and pieces."""
    width: Count = 64
    """Channels of the first stage of ResNet-18; 64 have 11.2 M parameters."""
    images: Count = 16
    """Images in a batch of ResNet-18."""
    model_width: Count = 512
    """Features of the transformer's three layers; 512 have 10 M parameters."""
    sequences: Count = 8
    """Sequences of 128 tokens in a batch of the transformer."""
    repeats: Count = 5
    """Measurements of each program, in turn; their ratios are of one turn."""
    seconds: NonNegative = 2.0
    """For which a program runs in a measurement, one round at least."""
    out: Path = Path("runs/streamed_step")
    """Folder for the log and the table."""
