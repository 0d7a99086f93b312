"""The pages of the studies of streaming say what their logs say."""

from collections import Counter
from typing import Any

import numpy as np
import pytest

from cocod_jax.observe.loggers import read_jsonl
from docs.generate import DOCS, RESULTS
from experiments.streaming import report, results
from experiments.streaming.config import StreamingConfig
from experiments.streaming.results import Setting, verdicts
from tests.published import check_sentence, shown

CLOCK = RESULTS / "20261129_streaming_clock"
STUDY = RESULTS / "20261129_streaming_study"
BUT_ONE_CLASS = ("iid", "dirichlet:0.3")


@pytest.fixture(scope="module")
def clock():
    """The page and the log of the clock."""
    return (CLOCK / "README.md").read_text(), read_jsonl(CLOCK / "scale.jsonl")


def test_the_clock_says_where_streaming_loses(clock):
    page, log = clock
    ratios = {
        (r["network"][:3], r["jitter"], r["parameters"], r["workers"]): (
            r["streamed_seconds_per_step"] / r["whole_seconds_per_step"]
        )
        for r in log["clock"]
    }
    worst = lambda network, jitter, **only: max(
        ratio
        for (n, j, _, workers), ratio in ratios.items()
        if (n, j) == (network, jitter) and workers <= only.get("workers", 4096)
    )
    check_sentence(
        page,
        "among 4,096 workers (# times the seconds). With jitter it costs up to #",
        [worst("400", 0.0), worst("400", 0.1)],
    )
    assert worst("400", 0.0, workers=1024) < 1.0001
    assert worst("10 ", 0.0, workers=32) < 1.005
    words = "As fast up to 32 workers, # times at 128, and up to # times at 4,096"
    check_sentence(page, words, [worst("10 ", 0.0, workers=128), worst("10 ", 0.0)])
    check_sentence(page, "of 35 sizes, by up to # times", [worst("200", 0.0)])
    for jitter, words in (
        (0.0, "Within 5 % of a whole exchange are #, # and # of 35 sizes without"),
        (0.1, "of 35 sizes without jitter, and #, # and # with it"),
    ):
        counts = [
            sum(
                ratio <= 1.05
                for (n, j, *_), ratio in ratios.items()
                if (n, j) == (network, jitter)
            )
            for network in ("400", "10 ", "200")
        ]
        check_sentence(page, words, counts)


def test_the_clock_has_a_table_of_arrays(clock):
    page, log = clock
    programs = {(r["leaves"], r["step"]): r for r in log["program"]}
    copies = 4 * log["run"][0]["config"]["measured"]
    for leaves in log["run"][0]["config"]["leaves"]:
        local, streamed = programs[leaves, "local"], programs[leaves, "streamed"]
        (row,) = [x for x in page.splitlines() if x.startswith(f"| {leaves} | ")]
        values = [
            streamed["instructions"] - local["instructions"],
            local["bytes_accessed"] / copies,
            streamed["bytes_accessed"] / copies,
            local["compile_seconds"],
            streamed["compile_seconds"],
        ]
        for cell, value in zip(row.strip("| ").split(" | ")[1:], values, strict=True):
            assert shown(cell, value), f"{row}: {cell} is {value}"


@pytest.fixture(scope="module")
def study():
    """The page, the configuration, and what came out."""
    config = StreamingConfig(out=STUDY)
    return (STUDY / "README.md").read_text(), config, results.cells_of(config)


def of_most(found):
    """What is of the settings that a rule is told for."""
    return {key: v for key, v in found.items() if key[0].partition in BUT_ONE_CLASS}


def test_the_tables_of_the_study_are_those_of_its_logs(study):
    page, config, _ = study
    text = report.report(config)
    assert text == (STUDY / "tables.md").read_text()
    tables = [part.split("\n\n")[1] for part in text.split("### ")[1:4]]
    assert all(table in page for table in tables)
    measurements = (DOCS / "measurements.md").read_text()
    assert tables[0] in measurements


def test_the_study_counts_its_verdicts(study):
    page, _, cells = study
    told = {
        measure: Counter(
            (name, verdict.better)
            for (_, name), verdict in of_most(verdicts(cells, measure)).items()
            if verdict.told_apart
        )
        for measure in ("train_loss", "test_accuracy")
    }
    losses, accuracies = told["train_loss"], told["test_accuracy"]
    values = [losses["cocod", False], accuracies["cocod", False]]
    check_sentence(
        page,
        "in #, and never with a higher one; with a higher accuracy in #",
        values,
    )
    in_time = losses["just_in_time", False]
    words = "training loss is lower in # and not told apart in #"
    check_sentence(page, words, [in_time, 16 - in_time])
    check_sentence(page, "in # of 16, and the accuracies", [losses["ssgd", True]])
    # Nothing else is told apart there.
    assert set(losses) == {("cocod", False), ("just_in_time", False), ("ssgd", True)}
    assert set(accuracies) == {("cocod", False)}


def test_the_study_says_what_one_class_does(study):
    page, _, cells = study
    accuracy = lambda name: (
        100 * cells[Setting("sgd", "by_class", 8), name].values["test_accuracy"].mean()
    )
    words = "ends at # % where Local SGD has # % and S-SGD # %; the just-in-time merge"
    names = ("streamed", "local_sgd", "ssgd")
    check_sentence(page, words, map(accuracy, names))
    words = "has # %, with a lower training loss. CoCoD-SGD ends at # %"
    check_sentence(page, words, map(accuracy, ("just_in_time", "cocod")))
    found = verdicts(cells, "train_loss")[Setting("sgd", "by_class", 8), "just_in_time"]
    assert found == (True, True)


def test_the_study_says_how_far_workers_drift(study):
    page, config, _ = study
    drifts = {key: v.mean() for key, v in of_most(results.drifts_of(config)).items()}
    span = lambda name: [
        of(
            value / drifts[setting, "streamed"]
            for (setting, each), value in drifts.items()
            if each == name
        )
        for of in (min, max)
    ]
    words = "workers drift # to # times as far as streamed ones"
    check_sentence(page, words, span("cocod"))
    words = "merge # to # times, and Local SGD's # to # times"
    check_sentence(page, words, span("just_in_time") + span("local_sgd"))
    ratios = [
        np.mean(r["deviations"]) / r["expected"]
        for r in read_jsonl(STUDY / "quadratic.jsonl")["deviation"]
        if r["algorithm"] == "streamed"
    ]
    words = "workers drift # to # times as far as `theory.expected_deviation`"
    check_sentence(page, words, [min(ratios), max(ratios)])


def test_the_study_says_what_the_clock_says(study):
    page, config, _ = study
    pace = lambda name, period, ratio: (
        results.clock(config, name, period, ratio).seconds_per_step
    )
    words = "a step takes # Tc streamed, # with CoCoD-SGD, # with the just-in-time"
    check_sentence(page, words, [pace(n, 8, 8.0) for n in ("streamed", "cocod")] + [
        pace("just_in_time", 8, 8.0)
    ])  # fmt: skip


def test_the_study_counts_rates_at_an_edge(study):
    page, config, cells = study
    grids = {"sgd": config.sgd_rates, "adamw": config.adamw_rates}
    edges = Counter(
        setting.partition in BUT_ONE_CLASS
        for (setting, _), cell in cells.items()
        if cell.rate in (min(grids[setting.optimizer]), max(grids[setting.optimizer]))
    )
    words = "in # cells on equal and Dirichlet data, and in # with"
    check_sentence(page, words, [edges[True], edges[False]])


def test_slow_links_say_what_the_log_says():
    folder = RESULTS / "20261129_overlap_slow_links"
    page, log = (folder / "README.md").read_text(), read_jsonl(folder / "overlap.jsonl")
    steps: dict[str, dict[str, float]] = {}
    hidden: dict[str, dict[str, Any]] = {}
    for r in log["result"]:
        name = r["algorithm"] if r["side"] == "ours" else f"torch {r['algorithm']}"
        steps.setdefault(r["rate"], {})[name] = r["seconds_per_step"]
        hidden.setdefault(r["rate"], {})[name] = r.get("hidden")
    both = list(steps.values())
    ratios = lambda name, base: [links[name] / links[base] for links in both]
    cocod, streamed = "CoCoD-SGD", "CoCoD-SGD, streamed"
    faster = [*ratios("S-SGD", cocod), *ratios("S-SGD", streamed)]
    words = "a step is # and # times as fast for CoCoD-SGD, # and # times streamed"
    check_sentence(page, words, faster)
    shares = [100 * links[n] for n in (cocod, streamed) for links in hidden.values()]
    words = (
        "# % and # % of CoCoD-SGD's ran beside local steps, # % and # % of the streamed"
    )
    check_sentence(page, words, shares)
    own = zip(*(ratios(n, "local steps") for n in (cocod, streamed)), strict=True)
    best = [min(pair) for pair in own]
    check_sentence(page, "It came to # and #.", best)
    peer = "torch partial averaging, a step late"
    words = "Over its own local steps it takes # and # of them"
    check_sentence(page, words, ratios(peer, "torch local steps"))
