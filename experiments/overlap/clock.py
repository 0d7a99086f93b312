"""The clock against the stopwatch: ``python -m experiments.overlap.clock LOG``.

Predicts what a step of each algorithm takes with ``cocod_jax.timeline``, from the
local steps and the exchange that ``experiments.overlap`` measured alone, and sets it
beside what the same log says that it took.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import cocod_jax as cj
from cocod_jax.loggers import read_jsonl
from cocod_jax.timeline import (
    SSGD,
    Algorithm,
    CoCoDSGD,
    Compute,
    Link,
    LocalSGD,
    PipeSGD,
    simulate,
)

STEPS = 240  # of a prediction: the start and the end of it hardly count
_PARTS_OF_AN_EXCHANGE = (
    "move to the exchange",
    "the core's work for an exchange",
    "move back",
)


@dataclasses.dataclass(frozen=True)
class Clock:
    """What was measured at one rate, and the clock that runs on it.

    Attributes:
      rate: of the links.
      workers: that it was measured with.
      period: k.
      compute: Tc, seconds of a local step alone.
      exchange: Tm, seconds of an exchange alone.
      busy: seconds for which an exchange keeps a worker's core busy, its moves between
        the worker's devices included; with other numbers of workers the same share.
      measured: seconds of a step of each algorithm.
      delay: of CoCoD-SGD just in time.
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
        """Those that were measured."""
        every = {
            "S-SGD": SSGD(),
            "Pipe-SGD": PipeSGD(),
            "Local SGD": LocalSGD(self.period),
            "CoCoD-SGD": CoCoDSGD(self.period),
            "CoCoD-SGD, just in time": CoCoDSGD(self.period, self.delay),
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
    ) -> cj.timeline.Timeline:
        """Of so many workers on a ring of these links; None is as measured."""
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


def read_clocks(log: Path) -> dict[str, Clock]:
    """A clock for each rate in a log of ``experiments.overlap``.

    Raises:
      ValueError: when the log has no result.
    """
    records = read_jsonl(log)
    if "result" not in records:
        raise ValueError(f"{log} has no result.")
    config = records["run"][0]["config"]
    clocks = {}
    for rate in dict.fromkeys(r["rate"] for r in records["result"]):
        ours = {
            r["algorithm"]: r
            for r in records["result"]
            if r["rate"] == rate and r["side"] == "ours"
        }
        compute, exchange = ours.pop("local steps"), ours.pop("exchange")
        busy = [
            r["seconds"]
            for r in records.get("part", [])
            if r["rate"] == rate and r["name"] in _PARTS_OF_AN_EXCHANGE
        ]
        clocks[rate] = Clock(
            rate=rate,
            workers=config["workers"],
            period=config["period"],
            compute=compute["seconds_per_step"],
            exchange=exchange["seconds_per_round"],
            busy=sum(busy) / config["workers"],
            measured={name: r["seconds_per_step"] for name, r in ours.items()},
            delay=max(r["delay"] or 0 for r in ours.values()),
        )
    return clocks


def table(clocks: dict[str, Clock]) -> str:
    """Predicted and measured seconds of a step, as a Markdown table."""
    lines = [
        "| links | algorithm | predicted [s] | measured [s] | error |",
        "|---|---|---|---|---|",
    ]
    for clock in clocks.values():
        for name, algorithm in clock.algorithms.items():
            predicted = clock.timeline(algorithm).seconds_per_step
            measured = clock.measured[name]
            lines.append(
                f"| {clock.rate} | {name} | {predicted:.3f} | {measured:.3f} | "
                f"{predicted / measured - 1:+.1%} |"
            )
    return "\n".join(lines) + "\n"


def main(log: Path) -> None:
    """Prints the table and leaves it beside the log."""
    text = table(read_clocks(log))
    log.with_name("clock.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
