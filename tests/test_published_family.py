"""The page of the study of the family says what its logs say."""

import json

import pytest

from cocod_jax.observe.loggers import read_jsonl
from docs.generate import RESULTS
from experiments.compare import report
from experiments.compare.config import CompareConfig
from experiments.compare.methods import METHODS
from tests.published import check_sentence

STUDY = RESULTS / "20261130_family"
CONFIG = CompareConfig(out=STUDY)


@pytest.fixture(scope="module")
def study():
    """The page, and the mean accuracy in percent by algorithm and split."""
    found = report.best(CONFIG)
    means = {key: 100 * own.accuracy.mean() for key, own in found.items()}
    return (STUDY / "README.md").read_text(), means


def test_the_table_is_that_of_the_logs():
    assert (STUDY / "tables.md").read_text() == report.report(CONFIG)


def test_the_logs_are_those_of_the_defaults():
    for run in CONFIG.runs(tuple(METHODS)):
        (record,) = read_jsonl(run.log)["run"]
        plain = json.loads(json.dumps(run.__dict__, default=str))
        assert record["config"] | {"out": ""} == plain | {"out": ""}


def test_the_page_says_what_came_out(study):
    page, means = study
    below = lambda name, split: means["ssgd", split] - means[name, split]
    skewed = "dirichlet:0.3"
    check_sentence(
        page,
        "ends # points below S-SGD with equal data and # points with skewed data",
        [below("cocod", "iid"), below("cocod", skewed)],
    )
    for split in ("iid", skewed):
        assert abs(below("streamed", split)) < 0.5
    unstable = [means[name, "iid"] for name in ("eager_diloco", "co2")]
    check_sentence(page, "the edge of the grid: # and # %", unstable)
    slower = [means[f"{name}_slower", "iid"] for name in ("eager_diloco", "co2")]
    check_sentence(page, "rate 0.5 they reach # and # %", slower)
    gain = means["diloco_slower", "iid"] - means["diloco", "iid"]
    check_sentence(page, "DiLoCo gains # points from", [gain])
    vrl = [means["vrl_sgd", split] for split in ("iid", skewed)]
    check_sentence(page, "ends at # % with equal and at # % with skewed data", vrl)
    for name in ("int4", "sparse_loco", "loscar"):
        assert abs(means[name, "iid"] - means["cocod", "iid"]) < 0.5
    found = report.best(CONFIG)
    assert report.told_apart(found) == {("eager_diloco", skewed)}
    assert len(found) - len(CONFIG.partitions) == 44
    for name in ("eager_diloco", "co2"):
        assert found[name, "iid"].rate == min(CONFIG.rates)
