"""The clock against the stopwatch: ``python -m experiments.clock LOG``.

Predicts what a step of each algorithm takes with ``cocod_jax.timeline``, from the
local steps and the exchange that ``experiments.overlap`` measured alone, without and
with the work that an exchange is for a core, and sets it beside what the same log says
that it took.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import tyro

from cocod_jax.observe.loggers import read_jsonl
from cocod_jax.style import ALGORITHMS
from cocod_jax.timeline import (
    SSGD,
    Algorithm,
    Compute,
    Link,
    LocalSGD,
    Streamed,
    Streaming,
    Timeline,
    simulate,
)
from experiments import command, markdown
from experiments.algorithms import RECIPES
from experiments.overlap.config import NAMES

STEPS = 240  # enough that a prediction's start and end hardly count
DDP = (
    "DDP",
    "DDP, 5 MB buckets",
    "DDP, 1 MB buckets",
    "DDP, 1 MB buckets, no broadcast",
)
LOCAL_SGD = ("local SGD", "local SGD without DDP")
PARTIAL = "partial averaging, a step late"
_PARTS_OF_AN_EXCHANGE = (
    "move to the exchange",
    "the core's work for an exchange",
    "move back",
)


@dataclasses.dataclass(frozen=True)
class Clock:
    """What was measured at one rate, and the clock that runs on it.

    Attributes:
      rate: the links' rate, as ``tc`` writes it.
      workers: how many there were.
      period: k.
      compute: Tc, seconds of a local step alone.
      exchange: Tm, seconds of an exchange alone.
      busy: seconds for which an exchange keeps a worker's core busy, moves between the
        worker's devices included. Other numbers of workers get the same share.
      measured: seconds of a step of each algorithm.
      delay: d of CoCoD-SGD just in time.
    """

    rate: str
    workers: int
    period: int
    compute: float
    exchange: float
    busy: float
    measured: dict[str, float]
    delay: int

    @property
    def algorithms(self) -> dict[str, Algorithm]:
        """The algorithms that were measured, by their names in figures."""
        ours = {
            ALGORITHMS[key][0]: recipe.clock(self.period, self.delay)
            for key, recipe in RECIPES.items()
        }
        every = {
            **ours,
            # PyTorch sends gradients from the end of the forward pass on.
            **dict.fromkeys(DDP, SSGD(sends_after=1 / 3)),
            **dict.fromkeys(LOCAL_SGD, LocalSGD(self.period)),
            PARTIAL: Streamed(self.period),
            # In one program on a CPU every piece is exchanged before its step.
            NAMES["streamed_optimizer"]: Streaming(self.period, self.period, delay=0),
        }
        return {name: every[name] for name in self.measured}

    def exchange_of(self, workers: int) -> float:
        """Seconds of an exchange of so many workers on a ring of these links."""
        link = Link(latency=0, bandwidth=1)
        return self.exchange * link.seconds(1, workers) / link.seconds(1, self.workers)

    def timeline(
        self,
        algorithm: Algorithm,
        workers: int | None = None,
        speeds: Sequence[float] | None = None,
        steps: int = STEPS,
    ) -> Timeline:
        """So many workers on a ring of these links; None takes those of the log."""
        workers = workers or self.workers
        exchange = self.exchange_of(workers)
        return simulate(
            algorithm,
            Compute(self.compute, workers, speeds=speeds),
            exchange,
            steps=steps,
            # The core moves and adds as many more bytes as the link carries.
            busy=exchange * (self.busy / self.exchange),
        )


def read_clocks(log: Path, side: str = "ours") -> dict[str, Clock]:
    """A clock for each rate in a log of ``experiments.overlap``.

    Args:
      log: its ``overlap.jsonl``.
      side: whose results: "ours" or "PyTorch". What PyTorch's exchange is for the
        core was not measured: ``busy`` is 0. Older logs lack its exchange, and so have
        no clock of PyTorch.

    Raises:
      ValueError: when the log has no result.
    """
    records = read_jsonl(log)
    if "result" not in records:
        raise ValueError(f"{log} has no result.")
    config = records["run"][0]["config"]
    clocks = {}
    of_side = [r for r in records["result"] if r["side"] == side]
    for rate in dict.fromkeys(r["rate"] for r in of_side):
        results = {r["algorithm"]: r for r in of_side if r["rate"] == rate}
        if "exchange" not in results:
            continue
        compute, exchange = results.pop("local steps"), results.pop("exchange")
        busy = [
            r["seconds"]
            for r in records.get("part", [])
            if side == "ours"
            and r["rate"] == rate
            and r["name"] in _PARTS_OF_AN_EXCHANGE
        ]
        clocks[rate] = Clock(
            rate=rate,
            workers=config["workers"],
            period=config["period"],
            compute=compute["seconds_per_step"],
            exchange=exchange["seconds_per_round"],
            busy=sum(busy) / config["workers"],
            measured={name: r["seconds_per_step"] for name, r in results.items()},
            delay=max(r.get("delay") or 0 for r in results.values()),
        )
    return clocks


def table(log: Path) -> str:
    """Predicted and measured seconds of a step, as a Markdown table.

    This library's are predicted twice: from Tc and Tm alone, and with the core's work
    for an exchange besides.
    """
    head = ["links", "algorithm", "measured [s]", "from Tc and Tm [s]", "error"]
    head += ["with the core's work [s]", "error"]
    rows = []
    for clock in read_clocks(log).values():
        rows += _rows(clock, busy=(0.0, clock.busy))
    for clock in read_clocks(log, "PyTorch").values():
        rows += [[*cells, "", ""] for cells in _rows(clock, busy=(0.0,))]
    return markdown.table(head, rows)


def _rows(clock: Clock, busy: Sequence[float]) -> list[list[str]]:
    rows = []
    for name, algorithm in clock.algorithms.items():
        cells = [clock.rate, name, f"{clock.measured[name]:.3f}"]
        for seconds in busy:
            timeline = dataclasses.replace(clock, busy=seconds).timeline(algorithm)
            error = timeline.seconds_per_step / clock.measured[name] - 1
            cells += [f"{timeline.seconds_per_step:.3f}", f"{error:+.1%}"]
        rows.append(cells)
    return rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClockConfig:
    """Which log."""

    log: tyro.conf.Positional[Path]
    """What `experiments.overlap` has left, such as overlap.jsonl."""


def main(config: ClockConfig) -> None:
    """Prints the table and leaves it beside the log."""
    try:
        text = table(config.log)
    except (OSError, ValueError, KeyError) as error:
        raise command.UsageError(
            f"log={str(config.log)!r} is no log of experiments.overlap: {error}."
        ) from None
    config.log.with_name("clock.md").write_text(text)
    print(text)


if __name__ == "__main__":
    command.run(main, ClockConfig, __doc__)
