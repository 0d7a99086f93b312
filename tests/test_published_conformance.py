"""The page of conformance says what its logs, its clock and its fixtures say."""

import re

import numpy as np
import pytest

from cocod_jax.observe.loggers import read_jsonl
from cocod_jax.timeline import Compute, Link, LocalSGD, simulate
from docs.generate import DOCS, latest, substitutions
from experiments import sweep
from experiments.conformance import published, report, utilisation
from experiments.conformance.config import ConformanceConfig
from tests.published import check_sentence
from tests.test_conformance import FIXTURES, fragment

FOLDER = latest("conformance")
CONFIG = ConformanceConfig(out=FOLDER)
PAGE = (DOCS / "conformance.md").read_text()
README = (FOLDER / "README.md").read_text()


def test_all_runs_have_finished():
    for run in [*CONFIG.text_runs(), *CONFIG.labels_runs()]:
        assert sweep.finished(run), run.log


def test_tables_are_made_from_the_logs():
    assert (FOLDER / "tables.md").read_text() == report.report(CONFIG)
    shown_there = substitutions()["conformance"]
    used = re.findall(r'\{\{ conformance\["(\w+)"\] \}\}', PAGE)
    assert {*used} == {*shown_there}


def test_losses_on_text_are_as_close_as_the_pages_say():
    theirs = {period: loss for period, (_, loss) in published.TEXT.items()}
    ours = {period: report.text_loss(CONFIG, period, reset=False) for period in theirs}
    for losses in (theirs, ours):
        assert sorted(losses, key=losses.__getitem__) == [16, 64, 4, 1]
    apart = [ours[period] / theirs[period] - 1 for period in theirs]
    assert min(apart) < 0 < max(apart)
    for page in (PAGE, README):
        check_sentence(page, "within # % of", [100 * max(map(abs, apart))])


@pytest.mark.parametrize(
    ("words", "alpha"),
    [("overwrites", 0.0), ("keeps a half", 0.5), ("ignores the mean", 1.0)],
)
def test_rows_of_fixtures_are_torchfts(words, alpha):
    (row,) = re.findall(rf"^\| {words} \(alpha .*\) \| (.*) \|$", PAGE, re.M)
    assert [float(x) for x in row.split(", ")] == FIXTURES[1, alpha][0][:4]


def test_the_row_of_all_progress_is_ours():
    (row,) = re.findall(r"^\| keeps all progress, .* \| (.*) \|$", PAGE, re.M)
    local, _ = fragment(first_merge=3, delay=1, alpha=None)
    np.testing.assert_array_equal([float(x) for x in row.split(", ")], local[:4, 0])


def test_errors_of_the_clock_are_those_of_the_clock():
    ratios = utilisation.ratios()
    diloco = [r for (algorithm, *_), r in ratios.items() if algorithm == "diloco"]
    ends = lambda values: [min(values), max(values)]
    words = "off by factors of # to #, and of DiLoCo's 16 points by # to #"
    check_sentence(PAGE, words, [*ends(ratios.values()), *ends(diloco)])
    step = published.STEP_SECONDS["diloco"]
    whole = simulate(
        LocalSGD(128),
        Compute(step, 4),
        link=Link(0.0, 50e6 / 8),
        size=4.0 * published.PARAMETERS,
        steps=10 * 128,
    )
    values = [100 * (1 - whole.idle[0]), utilisation.predicted("diloco", 128, 50)]
    check_sentence(PAGE, "# % on the clock at 50 Mbit/s, in place of # %", values)
    steps = [1000 * s for s in published.STEP_SECONDS.values()]
    check_sentence(PAGE, "a step (# ms, and # ms of Local SGD)", steps)


def test_the_start_is_that_of_the_log():
    (run,) = CONFIG.labels_runs()
    (start,) = read_jsonl(run.log)["start"]
    accuracy = 100 * report.labels_value(CONFIG, "start", "train_accuracy")
    words = "after # steps, with # %"
    check_sentence(README, words, [start["steps"], accuracy])


def test_the_order_of_algorithms_is_the_published_one():
    order = "ssgd", "vrl_sgd", "local_sgd"
    ours = lambda key: [report.labels_value(CONFIG, name, key) for name in order]
    theirs = lambda key: [getattr(published.LABELS[name], key) for name in order]
    for key in report.MEASURES:
        worse_later = -1 if "accuracy" in key else 1
        for values in (ours(key), theirs(key)):
            assert (np.diff(values) * worse_later > 0).all(), key
    back = [
        100 * (local - vrl) / (local - ssgd)
        for ssgd, vrl, local in (theirs("train_loss"), ours("train_loss"))
    ]
    for page in (PAGE, README):
        check_sentence(page, "wins back # % there and # % here", back)
