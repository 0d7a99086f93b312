"""What a round costs with more parameters and more workers.

``python -m experiments.scale --batch-size 2 --repeats 2``: ResNet-18 of several widths
on links of one rate, Local SGD and CoCoD-SGD. Four workers on two cores share them,
which slows the computation; compare within one number of workers. Expected: the larger
the model, the closer max(k Tc, Tm) is to a round of CoCoD-SGD, from 0.6 to 0.8 of it.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from cocod_jax import style
from experiments import command, logbook, models, progress
from experiments.cluster.network import Network
from experiments.cluster.processes import machine, run_program
from experiments.figures import records_of
from experiments.options import Count, LinkRate, Options

COMPARED = ("local_sgd", "cocod")
# By its name in the log: what a line is, and how it looks.
LINES = {
    "k Tc": ("local steps alone", style.COMPUTE, ":"),
    "Tm": ("exchange alone", style.EXCHANGE, ":"),
    **{style.ALGORITHMS[key][0]: (*style.ALGORITHMS[key], "-") for key in COMPARED},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScaleConfig(Options):
    """Which sizes."""

    rate: LinkRate = "500mbit"
    """The rate of the links, as ``tc`` writes it; none for loopback."""
    workers: tuple[Count, ...] = (2, 4)
    """Numbers of processes."""
    widths: tuple[Count, ...] = (19, 61, 135)
    """Channels of the first stage of ResNet-18: 1, 10 and 50 million parameters."""
    batch_size: Count = 4
    """Images in a local batch."""
    period: Count = 4
    """Local steps in a round."""
    repeats: Count = 3
    """Interleaved measurements; their median counts."""
    out: Path = Path("runs/scale")
    """Folder for the log and the figure."""


def measure(
    config: ScaleConfig, workers: int, width: int, show: progress.Reporter
) -> dict[str, Any]:
    """Seconds of a round and of its parts, for one network and number of workers."""
    with Network(workers, None if config.rate == "none" else config.rate) as network:
        records = run_program(
            network,
            [sys.executable, "-m", "experiments.overlap.worker"],
            timeout=3600,
            show=show.within(f"{workers} workers, width {width}"),
            width=width,
            batch_size=config.batch_size,
            period=config.period,
            repeats=config.repeats,
            algorithms=COMPARED,
            records="times",
        )
    measured = [r for r in records if "algorithm" in r and r["worker"] == 0]
    seconds = {r["algorithm"]: r["seconds_per_round"] for r in measured}
    network = models.build("resnet18", num_classes=10, channels=3, width=width)
    return {
        "workers": workers,
        "width": width,
        "parameters": models.parameter_count(network.init),
        "k Tc": seconds.pop("local steps"),
        "Tm": seconds.pop("exchange"),
        **seconds,
        "repeats": {r["algorithm"]: r["repeats"] for r in measured},
    }


def sentence(result: dict[str, Any]) -> str:
    """A result, for people."""
    seconds = ", ".join(
        f"{label} {result[name]:.2f} s" for name, (label, *_) in LINES.items()
    )
    millions = result["parameters"] / 1e6
    return f"{result['workers']} workers, {millions:.1f} million parameters: {seconds}"


def figure(log: Path, out: Path) -> None:
    """Seconds of a round against the parameters, a panel for each number of workers.

    Raises:
      ValueError: when the log has no result.
    """
    (results,) = records_of(log, "result")
    counts = sorted({r["workers"] for r in results})
    drawn, axes = plt.subplots(
        1, len(counts), figsize=(4.4 * len(counts), 3.6), layout="constrained"
    )
    for axis, workers in zip([axes] if len(counts) == 1 else axes, counts, strict=True):
        rows = [r for r in results if r["workers"] == workers]
        millions = [r["parameters"] / 1e6 for r in rows]
        for name, (label, colour, line) in LINES.items():
            values = [r[name] for r in rows]
            axis.plot(millions, values, line, color=colour, label=label, marker="o")
        axis.set(xscale="log", yscale="log", xlabel="million parameters")
        axis.set_title(f"{workers} workers", fontsize=11)
        style.tidy(axis)
    drawn.axes[0].set_ylabel("seconds per round")
    drawn.axes[0].legend(frameon=False)
    drawn.savefig(out, dpi=160)
    plt.close(drawn)


def main(config: ScaleConfig) -> None:
    """Measures every size; leaves a log and a figure."""
    path = config.out / "scale.jsonl"
    with progress.report() as show:
        with logbook.opened(path, config, machine=machine()) as log:
            for workers in config.workers:
                for width in config.widths:
                    result = measure(config, workers, width, show)
                    log.write("result", **result)
                    show.line(sentence(result))
        figure(path, config.out / "scale.png")


if __name__ == "__main__":
    command.run(main, ScaleConfig, __doc__)
