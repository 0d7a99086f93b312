"""Links that are as slow as it takes: from Tm / Tc to a rate, and back to ratios."""

from pathlib import Path
from typing import Any

from cocod_jax.timeline import Link
from experiments import markdown
from experiments.figures import records_of

_REACHED = 0.95
"""The part of a shaped rate that an all-reduce of two workers over gloo reaches."""


def rate_of(ratio: float, compute: float, sent_bytes: float, workers: int) -> str:
    """The rate of the links, as ``tc`` writes it, on which Tm is ``ratio`` times Tc.

    Args:
      ratio: Tm / Tc.
      compute: Tc, in seconds.
      sent_bytes: of one exchange, those of a worker's parameters.
      workers: on a ring of these links.

    Examples:
      >>> rate_of(2, compute=0.4, sent_bytes=44.7e6, workers=2)
      '471mbit'
    """
    on_the_ring = Link(latency=0, bandwidth=1).seconds(sent_bytes, workers)
    bytes_per_second = on_the_ring / (ratio * compute * _REACHED)
    return f"{max(1, round(8e-6 * bytes_per_second))}mbit"


def table(log: Path) -> str:
    """Seconds of a step over Tc of the same run, as Markdown: median, least, greatest.

    Tc is this library's, also in the rows of PyTorch, whose own is the last row. Links
    that an interrupted run did not come to are left out.

    Raises:
      ValueError: when the log has no result of chosen balances.
    """
    links, results = records_of(log, "balance", "result")
    measured_rates = {r["rate"] for r in results}
    chosen = [link for link in links if link["rate"] in measured_rates]
    columns = [
        {(r["side"], r["algorithm"]): r for r in results if r["rate"] == link["rate"]}
        for link in chosen
    ]
    steps = [column["ours", "local steps"]["seconds_per_step"] for column in columns]
    exchanges = [column["ours", "exchange"]["seconds_per_round"] for column in columns]
    measured = (f"{m / c:.2f}" for m, c in zip(exchanges, steps, strict=True))
    head = ["Tm / Tc asked for", *(f"{link['asked']:g}" for link in chosen)]
    rows = [["Tm / Tc measured", *measured]]
    algorithms = [key for key, r in columns[0].items() if r["is_algorithm"]]
    for side, name in [*algorithms, ("PyTorch", "local steps")]:
        if all((side, name) in column for column in columns):
            each = (
                _in_steps(column[side, name], step)
                for column, step in zip(columns, steps, strict=True)
            )
            rows.append([f"{name} ({side})", *each])
    return markdown.table(head, rows)


def _in_steps(result: dict[str, Any], step: float) -> str:
    """A result over Tc, and what its repeats are between."""
    period = result["seconds_per_round"] / result["seconds_per_step"]
    low, high = (end(result["repeats"]) / period / step for end in (min, max))
    return f"{result['seconds_per_step'] / step:.2f} ({low:.2f} to {high:.2f})"
