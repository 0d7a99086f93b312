"""The configuration of the study of a local step.

``python -m experiments.local_step``. Expected: PyTorch takes a tenth to a quarter less
time than XLA, which brings arrays into other layouts around its convolutions.
"""

import dataclasses
from pathlib import Path


@dataclasses.dataclass(frozen=True, kw_only=True)
class LocalStepConfig:
    """What is timed: ResNet-18 by SGD with momentum, on 32 x 32 images, on one core."""

    width: int = 64
    """Channels of its first stage."""
    images: int = 16
    """In a local batch."""
    steps: int = 4
    """Local steps in a measurement."""
    repeats: int = 5
    """Measurements of each program, by turns; ratios are of one turn."""
    core: int = 0
    """The core that all run on, one at a time."""
    peers_environment: Path = Path(".venv-torch")
    """Where PyTorch's virtual environment is, or will be made."""
    out: Path = Path("runs/local_step")
    """Folder for the log."""
