"""Curves of a run for its page, each with its caption."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from cocod_jax.observe._run import Row, Run, thinned
from cocod_jax.observe._svg import panel
from cocod_jax.observe.plots import curve
from cocod_jax.style import BLUE, OTHERS

_FEW = len(OTHERS)  # workers that can be told apart by colour


def of_each_worker(run: Run, name: str, label: str) -> str:
    """A curve for each worker; empty where the log has none."""
    records = [(step, values[name]) for step, values in run.workers if name in values]
    if not records:
        return ""
    count = max(len(values) for _, values in records)
    rows: list[Row] = [
        {"step": step} | {str(i): value for i, value in enumerate(values)}
        for step, values in records
    ]
    few, size = thinned(rows, "step")

    def draw(ax: Any) -> None:
        for i in range(count):
            own = [row for row in few if str(i) in row]
            colour = OTHERS[i] if count <= _FEW else BLUE
            ax.plot(
                [row["step"] for row in own],
                [row[str(i)] for row in own],
                color=colour,
                linewidth=1.3,
                alpha=1.0 if count <= _FEW else 0.35,
                label=f"worker {i}" if count <= _FEW else None,
            )

    values = np.array([v for row in few for name, v in row.items() if name != "step"])
    return panel(
        draw,
        x="local steps",
        y=label,
        alt=f"{label.capitalize()} of each of {count} workers by local step",
        caption=f"{label.capitalize()} of each worker{_means(size)}",
        log_scale=_by_factors(values),
    )


def mean_curve(
    rows: Sequence[Row], name: str, label: str, caption: str, log: bool | None = None
) -> str:
    """A curve; empty where no row has the value."""
    own = [row for row in rows if name in row]
    if not own:
        return ""
    kind, count, x = "epoch", "epoch", "epochs"
    if "epoch" not in own[0]:
        kind, count, x = "round", "step", "local steps"
    few, size = thinned(own, count)
    values = np.array([row[name] for row in few])
    is_loss = name.endswith("loss") if log is None else log
    draw = lambda ax: curve(ax, [{kind: few}], name, label, BLUE)
    return panel(
        draw,
        x=x,
        y=label,
        alt=f"{caption}: from {values[0]:.3g} to {values[-1]:.3g}",
        caption=caption + _means(size),
        log_scale=is_loss and _by_factors(values),
    )


def _means(size: int) -> str:
    return f"; means of {size} that follow each other." if size > 1 else "."


def _by_factors(values: np.ndarray) -> bool:
    """Whether values are 0 or more and differ by factors."""
    finite = values[np.isfinite(values)]
    positive = finite[finite > 0]
    return bool(
        positive.size and finite.min() >= 0 and positive.max() > 5 * positive.min()
    )
