"""What one training run is: its configuration, on the command line or in Python.

``python -m experiments.train`` is the main job: it takes the defaults, 2 to 6 minutes
on 2 CPU cores. Expected: a test accuracy near 98 % after 10 epochs; the last
digit depends on the processor, and on how the merge rounds.
"""

import dataclasses
import hashlib
import re
from pathlib import Path
from typing import Literal

Algorithm = Literal["ssgd", "pipe_sgd", "local_sgd", "cocod", "streamed"]
"""What is trained; CoCoD-SGD at any delay."""
Measured = Literal[Algorithm, "just_in_time"]
"""What is timed: the delay just in time is an algorithm of its own there."""
Model = Literal["resnet18", "vgg16", "cnn"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run; the defaults take 2 to 6 minutes on 2 CPU cores."""

    algorithm: Algorithm = "cocod"
    """What workers exchange, and when."""
    workers: int | None = None
    """Number of workers; None takes all GPUs, or 4 CPU devices."""
    micro_batches: tuple[int, ...] | None = None
    """For unequal workers: micro-batches in a local step of each, in proportion to its
    speed. Each has batch_size examples; data and weights follow. Default: one each."""
    period: int = 4
    """k, local steps in a round."""
    delay: int | None = None
    """d, local steps that the exchange of cocod may take; default: the period."""
    warmup_rounds: int = 0
    """Rounds of one synchronous step each, before the others."""

    model: Model = "resnet18"
    """The network."""
    width: int | None = 12
    """Channels of its first stage; None is the width in the literature."""

    data: Literal["mnist5k", "digits", "cifar10", "cifar100"] = "mnist5k"
    """The data set; mnist5k and digits need no download."""
    data_dir: Path | None = None
    """Where the CIFAR archives are; for cifar10 and cifar100 only."""
    partition: str = "iid"
    """How the training data are split: iid, by_class, or dirichlet:ALPHA (skewed)."""

    epochs: int = 10
    """Passes over the training data."""
    batch_size: int = 25
    """Examples in one local batch of one worker, or in one of its micro-batches."""
    learning_rate: float = 0.2
    """The rate for a total batch of 256; it grows linearly with the total batch."""
    warmup_epochs: float = 1.0
    """The learning rate grows linearly from one worker's to all workers'."""
    decay: Literal["cosine", "step"] = "cosine"
    """How the rate falls after the warm-up: to zero, or by 10 after 50 % and 75 %."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """The local optimizer."""
    momentum: float = 0.9
    """That of sgd; its buffers stay with their worker."""
    nesterov: bool = True
    """Whether the momentum is Nesterov's."""
    weight_decay: float = 5e-4
    """Decays kernels, in adamw besides the gradient; leaves biases and batch norm
    alone."""

    seed: int = 0
    """Draws the initial model, the order of the data and the augmentation."""
    via: Literal["pmap", "shard_map"] = "pmap"
    """What maps the round over the devices."""
    execution: Literal["fused", "split"] | None = None
    """One program per round, which is the default, or one per step."""
    out: Path = Path("runs")
    """Folder for the log and the figure."""

    def __post_init__(self):
        if self.data_dir is not None and not self.data.startswith("cifar"):
            raise ValueError(
                f"data_dir={str(self.data_dir)!r} is for data='cifar10' or 'cifar100', "
                f"not for {self.data!r}, which needs no files; choose one of them, or "
                "leave it out."
            )

    @property
    def log(self) -> Path:
        """The log of this run; the figure is beside it.

        Its name has every option that influences the run and differs from its default,
        so that runs that differ do not share a log: ``digits-cnn-ssgd-period=8-seed0``.
        """
        return self.out / f"{self._name()}.jsonl"

    def _name(self) -> str:
        first = (self.data, self.model, self.algorithm)
        named = {"data", "model", "algorithm", "seed", *WITHOUT_INFLUENCE}
        options = [
            f"{field.name}={_word(getattr(self, field.name))}"
            for field in dataclasses.fields(self)
            if field.name not in named and getattr(self, field.name) != field.default
        ]
        words = "-".join([*first, *options])
        if len(words) > LONGEST_NAME:
            rest = hashlib.sha256(words.encode()).hexdigest()[:12]
            words = f"{words[:LONGEST_NAME]}-{rest}"
        return f"{words}-seed{self.seed}"


WITHOUT_INFLUENCE = ("data_dir", "out")
"""Options that say where files are: the run is the same elsewhere."""
LONGEST_NAME = 160
"""Characters before a name is cut; file systems allow 255."""


def _word(value: object) -> str:
    """The value of an option as a part of a file's name."""
    if isinstance(value, tuple):
        return "+".join(map(_word, value))
    return re.sub(r"[^\w.+-]", "_", str(value))
