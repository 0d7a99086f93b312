"""The configuration of the comparisons with published results.

``python -m experiments.conformance --data-file tinyshakespeare.txt`` takes about a
quarter of an hour on 2 quiet CPU cores, most of it for the text. Expected: losses on
text within two percent of the published ones, S-SGD before VRL-SGD before Local SGD on
digits that are sorted by their labels, and a clock that is a quarter off at 50 Mbit/s.
"""

import dataclasses
from pathlib import Path
from typing import Literal

from experiments.conformance import published
from experiments.options import File, Options, Seed

Compared = Literal["ssgd", "local_sgd", "vrl_sgd"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConformanceConfig(Options):
    """Where things are."""

    data_file: File | None = None
    """Tiny Shakespeare, for the runs on text that are not finished."""
    text_seeds: tuple[Seed, ...] = (0,)
    """Each draws a network and batches of text, the same for all of its runs."""
    labels_seeds: tuple[Seed, ...] = (0,)
    """The same, of digits."""
    resets: tuple[bool, ...] = (False,)
    """Whether AdamW begins anew in every round of text, as it did before the commit of
    the published grid; False True runs both."""
    out: Path = Path("runs/conformance")
    """Folder for the logs and the tables."""

    def text_runs(self) -> list["TextRun"]:
        """The best outer rate of each period, as published."""
        return [
            TextRun(
                period=period, outer_rate=rate, reset=reset, seed=seed, out=self.out
            )
            for seed in self.text_seeds
            for reset in self.resets
            for period, (rate, _) in published.TEXT.items()
        ]

    def labels_runs(self) -> list["LabelsRun"]:
        """All algorithms, once for each seed."""
        return [LabelsRun(seed=seed, out=self.out) for seed in self.labels_seeds]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextRun:
    """DiLoCo on Tiny Shakespeare, in the setting of smol_diloco."""

    period: int
    outer_rate: float
    reset: bool
    """Whether AdamW begins anew in every round."""
    seed: int
    out: Path
    workers: int = 4
    steps: int = 256
    batch_size: int = 32
    context: int = 128
    inner_rate: float = 1e-3
    outer_momentum: float = 0.9
    weight_decay: float = 0.01
    test_batches: int = 50

    @property
    def log(self) -> Path:
        """Its log."""
        inner = "reset" if self.reset else "kept"
        return self.out / f"text-k{self.period}-{inner}-seed{self.seed}.jsonl"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelsRun:
    """LeNet-5 on digits that are sorted by their label, in VRL-SGD's setting."""

    seed: int
    out: Path
    algorithms: tuple[Compared, ...] = ("ssgd", "local_sgd", "vrl_sgd")
    workers: int = 8
    period: int = 20
    rate: float = 0.005
    weight_decay: float = 1e-4
    batch_size: int = 32
    start_accuracy: float = 0.876
    """On the training data: S-SGD goes on until it is there, as published."""
    longest_start: int = 4000
    """Steps of it at most."""
    epoch: int = 240
    """Steps; 60,000 digits are 235, and these are whole rounds."""
    epochs: int = 5

    @property
    def log(self) -> Path:
        """Its log."""
        return self.out / f"labels-seed{self.seed}.jsonl"
