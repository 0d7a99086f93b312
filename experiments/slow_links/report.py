"""What the runs on slow links came to, from their logs alone."""

import itertools
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from cocod_jax.observe.loggers import read_jsonl
from cocod_jax.style import ALGORITHMS
from experiments import markdown
from experiments.cluster.network import links_of
from experiments.figures import records_of, title


class Trained(NamedTuple):
    """A run, as it is compared.

    Attributes:
      name: of the algorithm, and of the numbers that travel.
      period: k.
      links: what they are, for people.
      seed: of the run.
      step_seconds: a local step's, its part of the exchange included; without the
        first round, which compiles.
      seconds: of training up to the end of each epoch, with compilation and without
        evaluations and checkpoints.
      losses: of the consensus on the test data, after each epoch.
    """

    name: str
    period: int
    links: str
    seed: int
    step_seconds: float
    seconds: list[float]
    losses: list[float]

    def seconds_to(self, loss: float) -> float | None:
        """Seconds of training until a test loss is reached, if it is."""
        there = (s for s, x in zip(self.seconds, self.losses, strict=True) if x <= loss)
        return next(there, None)


def trained(path: Path) -> list[Trained]:
    """The runs that the study's log names; their own logs are beside it."""
    (named,) = records_of(path, "trained")
    found = []
    for each in named:
        log = read_jsonl(path.with_name(each["log"]))
        config, rounds = log["run"][0]["config"], log["round"]
        name, _ = ALGORITHMS[config["algorithm"]]
        if config["numbers"]:
            name += f" in {config['numbers']}"
        # The seconds of rounds begin anew with every epoch.
        ends = [a for a, b in itertools.pairwise(rounds) if b["seconds"] < a["seconds"]]
        seconds = [*itertools.accumulate(r["seconds"] for r in [*ends, rounds[-1]])]
        first, steps = rounds[0], rounds[-1]["step"] - rounds[0]["step"]
        run = Trained(
            name=name,
            period=config["period"],
            links=links_of(each["rate"]),
            seed=config["seed"],
            step_seconds=(seconds[-1] - first["seconds"]) / steps,
            seconds=seconds,
            losses=[epoch["test_loss"] for epoch in log["epoch"]],
        )
        found.append(run)
    return found


def table(path: Path) -> str:
    """All runs of a log, as Markdown: what they took, and where they came."""
    (measured,) = records_of(path, "measured")
    links = links_of(measured[0]["rate"])
    periods = markdown.table(
        ["numbers", "Tc, ms", f"Tm on {links}, s", "Tm / Tc", "period"],
        [
            [
                m["numbers"],
                f"{1000 * m['tc']:.0f}",
                f"{m['tm']:.2f}",
                f"{m['tm'] / m['tc']:.1f}",
                m["chosen"],
            ]
            for m in measured
        ],
    )
    rows, runs = [], trained(path)
    goals = {run.seed: run.losses[-1] for run in runs if run.name == "S-SGD"}
    for run in runs:
        there = run.seconds_to(goals[run.seed])
        period = f", period {run.period}" if run.name != "S-SGD" else ""
        cells = [
            f"{run.name}{period}, {run.links}",
            run.seed,
            f"{1000 * run.step_seconds:.0f}",
            f"{run.seconds[-1]:.0f}",
            f"{run.losses[-1]:.4f}",
            "not reached" if there is None else f"{there:.0f}",
        ]
        rows.append(cells)
    head = ["run", "seed", "ms a step", "training, s", "test loss"]
    runs_table = markdown.table([*head, "S-SGD's loss after, s"], rows)
    return f"{periods}\n{runs_table}"


def draw(path: Path, out: Path) -> None:
    """The test loss of every run against its seconds of training."""
    runs, colors = trained(path), itertools.cycle(plt.rcParams["axes.prop_cycle"])
    by_name: dict[str, str] = {}
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for run in runs:
        label = f"{run.name}, {run.links}"
        shown = None if label in by_name else label
        color = by_name.setdefault(label, next(colors)["color"])
        axes.plot(run.seconds, run.losses, color=color, marker="o", label=shown)
    config = read_jsonl(path.with_name(records_of(path, "trained")[0][0]["log"]))
    axes.set_title(title(config["run"][0]["config"]))
    axes.set_xlabel("seconds of training")
    axes.set_ylabel("test loss of the consensus")
    axes.set_yscale("log")
    axes.legend(frameon=False)
    figure.savefig(out, dpi=160)
    plt.close(figure)
