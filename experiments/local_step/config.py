"""The configuration of the study of a local step.

``python -m experiments.local_step``. Expected: PyTorch takes a tenth to a quarter less
time than XLA, which brings arrays into other layouts around its convolutions.
"""

import dataclasses
from pathlib import Path

from experiments.options import Count, Options, Whole


@dataclasses.dataclass(frozen=True, kw_only=True)
class LocalStepConfig(Options):
    """What is timed: ResNet-18 by SGD with momentum, on 32 x 32 images, on one core."""

    width: Count = 64
    """Channels of its first stage."""
    images: Count = 16
    """In a local batch."""
    steps: Count = 4
    """Local steps in a measurement."""
    repeats: Count = 5
    """Measurements of each program, by turns; ratios are of one turn."""
    core: Whole = 0
    """The core that all run on, one at a time."""
    peers_environment: Path = Path(".venv-torch")
    """Where PyTorch's virtual environment is, or will be made."""
    out: Path = Path("runs/local_step")
    """Folder for the log."""
