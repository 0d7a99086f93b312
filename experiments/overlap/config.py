"""The configuration of the benchmark of the overlap.

``python -m experiments.overlap --balance 0.5,1,2,4 --repeats 3 --peers torch`` chooses
links by what they cost here: machines differ in speed from day to day, ratios less.
``--rate 1gbit,500mbit,200mbit`` made the README's table. Expected where Tm is one to
four times Tc: CoCoD-SGD, whole or streamed, is 1.4 to 4.7 times as fast as S-SGD, its
round takes max(k Tc, Tm) and a tenth more, and 90 % of its exchange runs beside local
steps.
"""

import dataclasses
import math
from pathlib import Path
from typing import Literal, get_args

from cocod_jax.style import ALGORITHMS
from experiments.cluster.network import Network
from experiments.config import Measured, Model
from experiments.options import Count, Options

Timed = Literal[Measured, "streamed_optimizer"]
"""What is timed: streamed as a round, and as an optimizer whose step is one program."""
NAMES = {key: name for key, (name, _) in ALGORITHMS.items()} | {
    "streamed_optimizer": "CoCoD-SGD, streamed, in one program",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class OverlapConfig(Options):
    """What is measured, and on which links."""

    rate: str = "500mbit,200mbit"
    """Rates of the links, as ``tc`` writes them, with commas; none for loopback."""
    balance: str | None = None
    """Tm / Tc in place of rates, with commas: each link's rate follows from the local
    steps and the bytes of an exchange, measured first."""
    workers: Count = 2
    """Processes, each on its core."""
    model: Model = "resnet18"
    """The network, on images of 32 x 32 pixels."""
    width: Count = 64
    """Channels of its first stage."""
    batch_size: Count = 16
    """Images in a local batch."""
    period: Count = 4
    """Local steps in a round."""
    repeats: Count = 5
    """Interleaved measurements of each algorithm; their median counts."""
    algorithms: tuple[Timed, ...] = get_args(Timed)
    """Which of this library's algorithms."""
    peers: Literal["none", "torch"] = "none"
    """Whether PyTorch runs on the same links, in a virtual environment of its own."""
    peers_environment: Path = Path(".venv-torch")
    """Where that environment is, or will be made."""
    out: Path = Path("runs/overlap")
    """Folder for the log and the figure."""

    def __post_init__(self):
        super().__post_init__()
        if self.workers < 2:
            raise ValueError(
                f"workers={self.workers} must be 2 or more: they exchange."
            )
        own = (self.model, self.width, self.batch_size)
        if self.peers == "torch" and own != ("resnet18", 64, 16):
            raise ValueError(
                "peers='torch' has ResNet-18 of width 64 and batch size 16, not "
                f"{self.model} of width {self.width} and {self.batch_size}: leave "
                "these out, or the peers."
            )
        self.networks()  # the rates can be read
        self.balances()

    def balances(self) -> list[float]:
        """Tm / Tc of each link that is to be chosen; none where rates are given.

        Raises:
          ValueError: when one is no positive number.
        """
        words = [] if self.balance is None else self.balance.split(",")
        try:
            ratios = [float(word) for word in words]
        except ValueError:
            ratios = [math.nan]
        if not all(0 < ratio < math.inf for ratio in ratios):
            raise ValueError(
                f"balance={self.balance!r} must be positive numbers with commas, such "
                "as '0.5,1,2,4'."
            )
        return ratios

    def networks(self) -> list[Network]:
        """One for each rate, not entered."""
        rates = [None if rate == "none" else rate for rate in self.rate.split(",")]
        return [Network(self.workers, rate) for rate in rates]
