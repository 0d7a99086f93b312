"""Where streaming loses to one message: ``python -m experiments.streaming.scale``.

The clock of ``cocod_jax.timeline`` with up to 4,096 workers and 10 billion parameters
on three networks, and what the pieces cost a step of real programs with few and with
many arrays. It takes 5 minutes on 2 CPU cores. Expected: streaming is as fast within a
machine room up to hundreds of workers, and loses where a message's latency, or steps
that vary, are longer than what a step hides.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from cocod_jax import style
from cocod_jax.observe.loggers import Logbook
from cocod_jax.timeline import CoCoDSGD, Compute, Link, Streamed, simulate
from experiments import command, logbook, progress
from experiments.figures import records_of
from experiments.job.devices import start_devices
from experiments.options import Count, NonNegative, Options, Positive
from experiments.streaming.leaves import measure

NETWORKS = {
    "400 Gbit/s, 5 µs": Link(5e-6, 5e10, "fastest"),
    "10 Gbit/s, 50 µs": Link(50e-6, 1.25e9, "fastest"),
    "200 Mbit/s, 20 ms": Link(20e-3, 2.5e7, "fastest"),
}
STEP_SECONDS = 0.2
STEPS = 256  # on the clock, or as many as whole rounds have
COLOURS = (style.SKY_BLUE, style.BLUE, style.GREEN, style.ORANGE, style.VERMILION)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScaleConfig(Options):
    """Which sizes."""

    workers: tuple[Count, ...] = (2, 8, 32, 128, 512, 1024, 4096)
    """N on the clock."""
    parameters: tuple[Positive, ...] = (1e6, 1e7, 1e8, 1e9, 1e10)
    """How many, of 4 bytes each."""
    jitters: tuple[NonNegative, ...] = (0.0, 0.1)
    """How much steps vary: their coefficient of variation."""
    longest: Count = 64
    """The longest period; shorter ones that hide the exchange are taken."""
    leaves: tuple[Count, ...] = (1, 10, 100, 300)
    """Arrays among which the parameters of the measured programs are divided."""
    measured: Count = 1_000_000
    """Parameters of the measured programs."""
    repeats: Count = 5
    """Interleaved measurements; their median counts."""
    out: Path = Path("runs/streaming_clock")
    """Folder for the log and the figure."""


def compare(
    config: ScaleConfig, network: str, parameters: float, workers: int, jitter: float
) -> dict[str, Any]:
    """A step of the same period, its exchange whole and streamed, on the clock.

    The period is the smallest that hides the exchange, 2 to the longest.
    """
    link, size = NETWORKS[network], 4 * parameters
    exchange = link.seconds(size, workers)
    period = min(max(2, math.ceil(exchange / STEP_SECONDS)), config.longest)
    compute = Compute(STEP_SECONDS, workers if jitter else 1, jitter)
    own: dict[str, Any] = (
        {"link": link, "size": size}
        if jitter
        # One worker stands for all, and does not know how many there are.
        else {
            "exchange_seconds": exchange,
            "latency": _latency(link, size, workers, period),
        }
    )
    steps = max(1, STEPS // period) * period
    seconds = {
        name: simulate(algorithm, compute, steps=steps, **own).seconds_per_step
        for name, algorithm in (
            ("whole", CoCoDSGD(period)),
            ("streamed", Streamed(period)),
        )
    }
    return {
        "network": network,
        "parameters": parameters,
        "workers": workers,
        "jitter": jitter,
        "period": period,
        "exchange_seconds": exchange,
        "piece_seconds": link.seconds(size / period, workers),
        **{f"{name}_seconds_per_step": value for name, value in seconds.items()},
    }


def _latency(link: Link, size: float, workers: int, period: int) -> float:
    """With it, a k-th takes what it takes on the link, which may change its tree."""
    whole, piece = link.seconds(size, workers), link.seconds(size / period, workers)
    return max(0.0, (piece - whole / period) / (1 - 1 / period))


def run(config: ScaleConfig, log: Logbook, show: progress.Reporter) -> None:
    """The clock for every size, then the programs."""
    for network in NETWORKS:
        for workers in config.workers:
            show.now(f"clock: {network}, {workers} workers")
            for parameters in config.parameters:
                for jitter in config.jitters:
                    result = compare(config, network, parameters, workers, jitter)
                    log.write("clock", **result)
    for leaves in config.leaves:
        show.now(f"programs: {leaves} arrays")
        for result in measure(config.measured, leaves, config.repeats):
            log.write("program", **result)


def figure(log: Path, out: Path) -> None:
    """A step streamed over a step whole, against workers; a column a network.

    Raises:
      ValueError: when the log has no clock.
    """
    (records,) = records_of(log, "clock")
    jitters = sorted({r["jitter"] for r in records})
    sizes = sorted({r["parameters"] for r in records})
    drawn, axes = plt.subplots(
        len(jitters),
        len(NETWORKS),
        figsize=(11, 3.2 * len(jitters)),
        layout="constrained",
        sharex=True,
        squeeze=False,
    )
    for row, jitter in zip(axes, jitters, strict=True):
        for axis, network in zip(row, NETWORKS, strict=True):
            for parameters, colour in zip(sizes, COLOURS, strict=False):
                own = [
                    r
                    for r in records
                    if (r["network"], r["jitter"], r["parameters"])
                    == (network, jitter, parameters)
                ]
                ratios = [
                    r["streamed_seconds_per_step"] / r["whole_seconds_per_step"]
                    for r in own
                ]
                workers = [r["workers"] for r in own]
                label = f"{parameters / 1e6:,g} million"
                axis.plot(
                    workers, ratios, "o-", color=colour, label=label, markersize=3
                )
            axis.axhline(1, color=style.GREY, linewidth=0.8, linestyle="--")
            axis.set(
                xscale="log", yscale="log", title=f"{network}, jitter {jitter:.0%}"
            )
            axis.set_ylim(0.9, max(2, axis.get_ylim()[1]))
            style.tidy(axis)
    for axis in axes[-1]:
        axis.set_xlabel("workers N")
    for axis in axes[:, 0]:
        axis.set_ylabel("step, streamed / whole")
    axes[0, 0].legend(frameon=False, fontsize=8, title="parameters")
    drawn.savefig(out, dpi=150)
    plt.close(drawn)


def main(config: ScaleConfig) -> None:
    """Leaves a log and a figure."""
    start_devices(2)
    path = config.out / "scale.jsonl"
    with progress.report() as show:
        with logbook.opened(path, config) as log:
            run(config, log, show)
        figure(path, config.out / "scale.png")


if __name__ == "__main__":
    command.run(main, ScaleConfig, __doc__)
