"""What befell a run, and under which circumstances, for its page."""

import json
from collections.abc import Mapping
from typing import Any

from cocod_jax.observe import _html as html
from cocod_jax.observe._curves import mean_curve
from cocod_jax.observe._run import Run

# What other parts of the page tell.
_TOLD = frozenset(
    [
        "run",
        "round",
        "epoch",
        "workers",
        "end",
        "forecast",
        "timeline",
        "data",
        "sample",
    ]
)
_MOST = 50  # records of a kind in a table


def participation(run: Run) -> str:
    """How many workers took part, from where on, and each one's share."""
    if not run.sizes:
        return html.paragraph("The log does not say how many workers there were.")
    body = html.table(("from step", "workers"), run.sizes)
    shares = run.config.get("micro_batches")
    if isinstance(shares, list) and shares:
        named = {f"worker {i}": n / sum(shares) for i, n in enumerate(shares)}
        body += html.table(
            ("worker", "share of the mean"),
            [(name, f"{share:.1%}") for name, share in named.items()],
        )
    else:
        body += html.paragraph("All workers count the same.")
    counted = [row["participants"] for row in run.rounds if "participants" in row]
    if len(set(counted)) > 1:
        caption = "Workers in each round"
        drawn = mean_curve(run.rounds, "participants", "workers", caption)
        return body + html.figures([drawn])
    if counted:
        count = f"{counted[0]:g} workers took part in each of {len(counted):,} rounds."
        return body + html.paragraph(count)
    return body + html.paragraph(
        'The rounds do not count who took part (no "participants"): a round has the '
        "workers of its run, or it does not end."
    )


def faults(run: Run) -> str:
    """Alarms, restarts, and all records that no other part knows."""
    rows = []
    for kind in sorted(run.records.keys() - _TOLD):
        records = run.records[kind]
        rows += [_event(kind, record) for record in records[:_MOST]]
        if len(records) > _MOST:
            rest = len(records) - _MOST
            rows.append(("", kind, f"and {rest:,} more, which the log has"))
    rows.sort(key=lambda row: row[0] if isinstance(row[0], int | float) else -1)
    ends = run.records.get("end", [])
    status = ends[-1].get("status") if ends else None
    ending = (
        f"The run says how it ended: {status}."
        if ends
        else "The log does not say how the run ended: it goes on, or was killed."
    )
    resumed = len(run.records.get("resumed", []))
    words = f"{ending} It was resumed {resumed} times." if resumed else ending
    if not rows:
        return html.paragraph(f"{words} No alarm, fault or restart is in the log.")
    return html.paragraph(words) + html.table(("step", "what", "said"), rows)


def _event(kind: str, record: Mapping[str, Any]) -> tuple[Any, str, str]:
    """A row: the step, the kind, and the rest, but for circumstances said before."""
    if kind == "resumed":
        return record.get("step", ""), "resumed", str(record.get("time", ""))
    if set(record) == {"step", "sentence"}:
        return record["step"], kind, str(record["sentence"])
    told = ("step", "config") if kind == "resized" else ("step",)
    rest = {name: value for name, value in record.items() if name not in told}
    return record.get("step", ""), kind, _words(rest)


def _words(value: Any) -> str:
    """A value of JSON for people; what is long is cut."""
    if isinstance(value, Mapping):
        return "; ".join(f"{name}: {_words(each)}" for name, each in value.items())
    if isinstance(value, list):
        value = ", ".join(map(_words, value))
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 500 else f"{text[:500]} ..."


def notes(run: Run) -> str:
    """Sentences on the data, and what the model wrote."""
    said = [note for record in run.records.get("data", []) for note in record["notes"]]
    body = "".join(map(html.paragraph, said))
    for record in run.records.get("sample", []):
        body += html.preformatted(record["text"])
    return body


def circumstances(run: Run) -> str:
    """What a result depends on: command, versions, machine, configuration."""
    if not run.circumstances:
        return html.paragraph('The log has no record "run", and so no configuration.')
    first = run.circumstances
    command = html.code(first["command"]) if "command" in first else ""
    versions = first.get("versions", {})
    flat = {
        name: _words(value)
        for name, value in first.items()
        if name not in ("command", "config", "versions")
    }
    config = {name: _words(value) for name, value in run.config.items()}
    return (
        command
        + html.facts(flat)
        + ("<h3>Configuration</h3>" + html.facts(config) if config else "")
        + ("<h3>Versions</h3>" + html.facts(versions) if versions else "")
    )
