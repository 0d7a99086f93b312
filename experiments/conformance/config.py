"""The configuration of the comparisons with published results.

``python -m experiments.conformance --data-file tinyshakespeare.txt`` takes three
quarters of an hour on 2 CPU cores, most of it for the text.
"""

import dataclasses
from pathlib import Path


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConformanceConfig:
    """Where things are."""

    data_file: Path | None = None
    """Tiny Shakespeare, for the runs on text that are not finished."""
    seeds: tuple[int, ...] = (0, 1)
    """Each draws a network and batches, the same for all of its runs."""
    out: Path = Path("runs/conformance")
    """Folder for the logs and the tables."""

    def text_runs(self) -> list["TextRun"]:
        """The best outer rate of each period, as published."""
        best = {1: 0.1, 4: 0.1, 16: 0.3, 64: 0.1}
        return [
            TextRun(
                period=period, outer_rate=rate, reset=reset, seed=seed, out=self.out
            )
            for seed in self.seeds
            for reset in (False, True)
            for period, rate in best.items()
        ]


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
