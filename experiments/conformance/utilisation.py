"""Published utilisation of GPUs on slow links, and what the clock predicts of it."""

from cocod_jax.timeline import Compute, Link, LocalSGD, simulate
from experiments.conformance import published

WORKERS = 4


def predicted(algorithm: str, period: int, megabits: int) -> float:
    """Percent of the time in which a worker computes, in the window that was measured.

    The clock is given the seconds of a local step, the bytes and the nominal bandwidth,
    and nothing of how long an exchange took.
    """
    whole = published.WINDOWS[period]
    first, last = published.SHORTER.get((period, megabits), whole)
    timeline = simulate(
        LocalSGD(period),  # DiLoCo exchanges when Local SGD does
        Compute(published.STEP_SECONDS[algorithm], WORKERS),
        link=Link(latency=0.0, bandwidth=megabits * 1e6 / 8),
        size=4.0 * published.PARAMETERS,
        steps=last,
    )
    ends = timeline.step_ends[0]
    computing = (last - first) * published.STEP_SECONDS[algorithm]
    return 100 * computing / (ends[-1] - ends[first - 1])


def ratios() -> dict[tuple[str, int, int], float]:
    """Predicted over measured, by algorithm, period and Mbit/s."""
    return {
        (algorithm, period, megabits): predicted(algorithm, period, megabits) / measured
        for (algorithm, period), row in published.UTILISATION.items()
        for megabits, measured in zip(published.MEGABITS, row, strict=True)
    }
