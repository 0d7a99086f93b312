"""The figure of the benchmark, drawn from its log."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from experiments import logbook

# Okabe and Ito's colours, which colour-blind readers can tell apart.
OURS, THEIRS = "#D55E00", "#999999"


def bars(log: Path, out: Path) -> None:
    """Seconds per local step of every algorithm, a panel for each rate.

    Raises:
      ValueError: when the log has no result.
    """
    results = logbook.read(log).get("result")
    if not results:
        raise ValueError(f"{log} has no result to draw.")
    rates = list(dict.fromkeys(record["rate"] for record in results))
    figure, axes = plt.subplots(
        1, len(rates), figsize=(5.2 * len(rates), 3.8), layout="constrained"
    )
    for axis, rate in zip([axes] if len(rates) == 1 else axes, rates, strict=True):
        rows = [r for r in results if r["rate"] == rate and r["is_algorithm"]][::-1]
        names = [f"{r['algorithm']} ({r['side']})" for r in rows]
        values = [r["seconds_per_step"] for r in rows]
        colours = [OURS if "CoCoD" in name else THEIRS for name in names]
        drawn = axis.barh(names, values, color=colours)
        axis.bar_label(drawn, fmt="%.2f s", padding=3, fontsize=9)
        compute = next(
            r["seconds_per_step"]
            for r in results
            if r["rate"] == rate and r["algorithm"] == "local steps"
        )
        axis.axvline(compute, color="#000000", linestyle=":", linewidth=1)
        axis.set(xlabel="seconds per local step (dotted: computation alone)")
        axis.set_title(f"{rate} links", fontsize=11)
        axis.set_xlim(0, 1.18 * max(values))
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(out, dpi=160)
    plt.close(figure)
