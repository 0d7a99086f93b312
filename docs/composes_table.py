"""The tables of the page "What composes", made from the log of the sweep over optax."""

from pathlib import Path
from typing import Any

from cocod_jax.observe.loggers import read_jsonl
from experiments.composes.cases import CASES, GROUPS
from experiments.composes.probe import Facts
from experiments.composes.verdict import YES, verdict


def tables(log: Path) -> dict[str, str]:
    """By the groups: what composes in a sentence, and a table of the rest."""
    found = {r["code"]: r for r in read_jsonl(log)["case"]}
    return {group: _table(group, found) for group in GROUPS}


def source(log: Path) -> str:
    """Where the tables come from."""
    run = read_jsonl(log)["run"][0]
    versions = ", ".join(f"{name} {run['versions'][name]}" for name in ("optax", "jax"))
    page = f"results/{log.parent.name}.md"
    return f"It was found with {versions}, by `{run['command']}` ([log]({page}))."


def _table(group: str, found: dict[str, dict[str, Any]]) -> str:
    fine, rows = [], ["| optimizer | | what to know |", "|---|---|---|"]
    for case in CASES:
        if case.group == group and case.code in found:
            record = found[case.code]
            facts = {d: Facts(**record[d]) for d in ("float32", "bfloat16")}
            answer, sentence = verdict(case, facts)
            if answer == YES:
                fine.append(f"`{case.code}`")
            else:
                rows.append(f"| `{case.code}` | {answer} | {sentence} |")
    return f"These compose: {', '.join(fine)}.\n\n" + "\n".join(rows)
