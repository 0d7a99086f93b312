"""The tables of the comparisons: theirs, ours."""

import numpy as np

from cocod_jax.observe.loggers import read_jsonl
from experiments import markdown
from experiments.conformance import published, utilisation
from experiments.conformance.config import ConformanceConfig

TITLES = {"ssgd": "S-SGD", "local_sgd": "Local SGD", "vrl_sgd": "VRL-SGD"}
MEASURES = {
    "train_loss": "training loss",
    "train_accuracy": "training accuracy [%]",
    "test_loss": "test loss",
    "test_accuracy": "test accuracy [%]",
}


def text_table(config: ConformanceConfig) -> str:
    """Validation losses of DiLoCo on Tiny Shakespeare."""
    names = {False: "ours", True: "ours, AdamW reset in every round"}
    head = ["k", "outer rate", "theirs", *(names[reset] for reset in config.resets)]
    rows = []
    for period, (rate, theirs) in published.TEXT.items():
        ours = (text_loss(config, period, reset) for reset in config.resets)
        cells = (f"{loss:.3f}" for loss in (theirs, *ours))
        rows.append([period, f"{rate:g}", *cells])
    return markdown.table(head, rows)


def text_loss(config: ConformanceConfig, period: int, reset: bool) -> float:
    """The validation loss at the end, the mean over the seeds."""
    logs = [
        read_jsonl(run.log)["result"][0]
        for run in config.text_runs()
        if (run.period, run.reset) == (period, reset)
    ]
    return float(np.mean([log["validation_losses"][-1] for log in logs]))


def labels_table(config: ConformanceConfig) -> str:
    """LeNet-5 on digits that are sorted by their labels: theirs / ours."""
    rows = []
    for name in ("start", *TITLES):
        theirs, row = published.LABELS[name], [TITLES.get(name, "start")]
        for key in MEASURES:
            scale, digits = (100, 1) if "accuracy" in key else (1, 3)
            ours = scale * labels_value(config, name, key)
            row.append(f"{getattr(theirs, key):.{digits}f} / {ours:.{digits}f}")
        rows.append(row)
    return markdown.table(["algorithm", *MEASURES.values()], rows)


def labels_value(config: ConformanceConfig, name: str, key: str) -> float:
    """A measure at the end of an algorithm, or at the start of all; mean over seeds."""
    # Every algorithm has the same start.
    algorithm, when = ("ssgd", 0) if name == "start" else (name, -1)
    results = [r for run in config.labels_runs() for r in read_jsonl(run.log)["result"]]
    return float(
        np.mean([r[key][when] for r in results if r["algorithm"] == algorithm])
    )


def utilisation_table() -> str:
    """Percent of the time in which a GPU computes, measured and on the clock."""
    rates = [f"{rate} Mbit/s" for rate in published.MEGABITS]
    rows = []
    for (algorithm, period), measured in published.UTILISATION.items():
        cells = [
            f"{theirs:.2f} / {utilisation.predicted(algorithm, period, rate):.2f}"
            for theirs, rate in zip(measured, published.MEGABITS, strict=True)
        ]
        title = {"diloco": "DiLoCo"}.get(algorithm, "Local SGD")
        rows.append([title, period, *cells])
    return markdown.table(["algorithm", "k", *rates], rows)


def tables(config: ConformanceConfig) -> dict[str, str]:
    """All of them, by the names that the site's page uses."""
    return {
        "text": text_table(config),
        "labels": labels_table(config),
        "utilisation": utilisation_table(),
    }


def report(config: ConformanceConfig) -> str:
    """All of them, as Markdown."""
    heads = {
        "text": "Tiny Shakespeare: validation loss",
        "labels": "Digits sorted by their labels, after five epochs: theirs / ours",
        "utilisation": "Utilisation [%]: measured / on the clock",
    }
    return "\n".join(f"## {heads[k]}\n\n{v}" for k, v in tables(config).items())
