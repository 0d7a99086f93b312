"""The parts of a run's page: each draws what the log has, or says what it lacks."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from cocod_jax._text import human_bytes
from cocod_jax.observe import _html as html
from cocod_jax.observe._curves import mean_curve, of_each_worker
from cocod_jax.observe._run import Run


def learning(run: Run) -> str:
    """Loss and accuracy."""
    drawn = [
        mean_curve(run.rounds, "loss", "training loss", "Training loss by local step"),
        *(
            mean_curve(run.epochs, name, label, f"{label.capitalize()} by epoch")
            for name, label in (
                ("test_accuracy", "test accuracy [%]"),
                ("test_loss", "test loss"),
            )
        ),
    ]
    found = [figure for figure in drawn if figure]
    if not found:
        return html.paragraph("The log has no loss: no records of rounds or epochs.")
    return html.figures(found)


def throughput(run: Run) -> str:
    """How fast it went."""
    speeds = sorted({n for row in run.epochs for n in row if n.endswith("_per_second")})
    drawn = [
        mean_curve(
            run.step_seconds, "step_seconds", "seconds", "Seconds of a local step", True
        ),
        *(
            mean_curve(run.epochs, name, name.replace("_", " "), "Speed by epoch")
            for name in speeds
        ),
    ]
    found = [figure for figure in drawn if figure]
    if not found:
        return html.paragraph(
            'The log has no times: no "seconds" in its rounds, and no speed in its '
            "epochs."
        )
    return html.figures(found)


def communication(run: Run) -> str:
    """What a worker sends, and how much of that time no steps hide."""
    return _sent(run) + _exposed(run)


def _sent(run: Run) -> str:
    rows = [row for row in run.rounds if "sent_bytes" in row]
    if not rows:
        return html.paragraph(
            'The log does not say what was sent: its rounds have no "sent_bytes".'
        )
    total = sum(row["sent_bytes"] for row in rows)
    said = f"Each worker put {human_bytes(total)} into exchanges"
    if (steps := run.rounds[-1]["step"]) > 0:
        said += (
            f" in {steps:,.0f} local steps: {human_bytes(total / steps)} in each step "
            "on average"
        )
    return html.paragraph(f"{said}.")


def _exposed(run: Run) -> str:
    found = [_measured_lanes(run.records.get("timeline", []))]
    if (alone := _alone(run)) is not None:
        step = float(np.median([row["step_seconds"] for row in run.step_seconds]))
        exposed = max(0.0, step - alone)
        found.append(
            html.paragraph(
                f"A local step took {step:.3g} s (median); without any exchange it "
                f"was measured at {alone:.3g} s before the run. The exchange, and all "
                f"else that a loop does, cost {exposed:.3g} s a step: "
                f"{exposed / step:.0%} of the time."
            )
        )
    return "".join(found) or html.paragraph(
        "Exposed seconds of communication were not measured: nothing in the log says "
        "how long a step takes without an exchange."
    )


def _alone(run: Run) -> float | None:
    """Seconds of a step that sends nothing, where a forecast has measured it."""
    for record in run.records.get("forecast", []):
        measured = record.get("measured")
        if isinstance(measured, dict) and run.step_seconds:
            return measured.get("tc")
    return None


def _measured_lanes(records: Sequence[dict[str, Any]]) -> str:
    """A row for each measured timeline that says how much of its exchanges is hidden.

    The other fields that name it, such as the rate of its link, are a column.
    """
    rows = []
    for record in records:
        share, spans = record.get("hidden"), record.get("intervals", [])
        if isinstance(share, int | float):
            sent = sum(end - start for lane, start, end in spans if lane == "exchange")
            named = [record[n] for n in ("rate", "name", "worker") if n in record]
            words = ", ".join(map(str, named))
            exposed = f"{(1 - share) * sent:.3g}"
            rows.append((words, f"{sent:.3g}", exposed, f"{share:.0%}"))
    if not rows:
        return ""
    names = ("measured timeline", "seconds of exchanges", "exposed", "hidden")
    return html.table(names, rows)


def forecast(run: Run) -> str:
    """What advise said before the run, and how far off it was."""
    records = run.records.get("forecast", [])
    if not records:
        return html.paragraph(
            "No forecast was made before the run; the main job makes one with "
            "--forecast."
        )
    said = records[0]
    seconds = said.get("seconds_per_step")
    sentences = html.preformatted("\n".join(map(str, said.get("advice", []))))
    if not run.step_seconds or not seconds:
        return sentences + html.paragraph("The log has no seconds to compare it with.")
    step = float(np.median([row["step_seconds"] for row in run.step_seconds]))
    return sentences + html.facts(
        {
            "forecast, seconds of a local step": f"{seconds:.3g}",
            "measured, median": f"{step:.3g}",
            "off by": f"{step / seconds - 1:+.0%} of the forecast",
        }
    )


def workers(run: Run) -> str:
    """How far each worker was from the others, and which way it went."""
    drawn = [
        figure
        for name, label in (
            ("distance", "distance from the mean"),
            ("alignment", "alignment"),
            ("loss", "training loss"),
        )
        if (figure := of_each_worker(run, name, label))
    ]
    if drawn:
        return html.figures(drawn)
    means = [
        mean_curve(run.rounds, name, label, f"{label.capitalize()}, mean of workers")
        for name, label in (
            ("distance", "distance from the mean"),
            ("alignment", "alignment"),
        )
    ]
    return html.paragraph(
        'The log has no records "workers", with a number for each of them; '
        "cj.loggers.per_worker makes them."
    ) + html.figures(figure for figure in means if figure)
