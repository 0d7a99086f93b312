"""The page of the study of the theory says what its log says."""

from collections import defaultdict

import numpy as np
import pytest

from cocod_jax.observe.loggers import read_jsonl
from docs.generate import RESULTS
from tests.published import check_sentence


@pytest.fixture(
    scope="module",
    params=sorted(RESULTS.glob("*_iterations")),
    ids=lambda folder: folder.name,
)
def study(request):
    """The page and the log."""
    folder = request.param
    return (folder / "README.md").read_text(), read_jsonl(folder / "iterations.jsonl")


def test_errors_and_bounds(study):
    page, log = study
    for record in log["slope"]:
        if record["dissimilarity"] == 0:
            slopes = record["of_error"]
            values = [-np.mean(slopes), np.std(slopes, ddof=1)]
            check_sentence(page, "at a slope of -# ± #", values)
    loose = [r["bound"] / np.mean(r["errors"]) for r in log["error"] if r["bound"]]
    check_sentence(page, "loose, # to # times", [min(loose), max(loose)])


def test_steps_needed(study):
    page, log = study
    slopes, needed = defaultdict(list), {}
    for record in log["slope"]:
        slopes[record["dissimilarity"]].append(-np.mean(record["of_steps"]))
        spread = np.std(record["of_steps"], ddof=1)
        check_sentence(page, "Each is ± #, the standard deviation", [spread])
        if record["dissimilarity"] == 0:
            needed[record["algorithm"]] = np.mean(record["steps_needed"], axis=1)
    words = "slope -# (S-SGD), -# (Local SGD) and -# (CoCoD-SGD)"
    check_sentence(page, words, slopes[0.0])
    check_sentence(page, "(ζ = 6) with -#, -# and -#", slopes[6.0])
    more = 100 * (needed["cocod"] / needed["ssgd"] - 1)
    words = "no more than # % more steps than S-SGD; with 8 workers it needs # % more"
    check_sentence(page, words, [max(more[:3]), more[3]])
    values = [more[-1], needed["cocod"][-1], needed["ssgd"][-1]]
    check_sentence(page, "and with 32 workers # % more: #, not #", values)


def test_drift(study):
    page, log = study
    drifts = {
        (r["dissimilarity"], r["period"], r["delay"]): r for r in log["deviation"]
    }
    ratios = [np.mean(r["deviations"]) / r["expected"] for r in drifts.values()]
    check_sentence(page, "is # to # of expected", [min(ratios), max(ratios)])
    drift = lambda period, delay: np.mean(drifts[0.0, period, delay]["deviations"])
    values = [drift(period, period) / drift(period, 0) for period in (2, 4, 8, 16)]
    check_sentence(page, "is #, #, # and # times Local SGD's", values)


def test_cost(study):
    page, log = study
    costs = defaultdict(list)
    for record in log["cost"]:
        if record["period"] in (4, 16):  # first of equal workers, then of others
            more = 100 * (np.mean(record["relative_errors"]) - 1)
            costs[record["algorithm"]].append(more)
    words = "# % of error at period 4 and # % at period 16, or # % and # % with ζ = 6"
    check_sentence(page, words, costs["cocod"])
    check_sentence(page, "Local SGD # % and # %, or # % and # %", costs["local_sgd"])


def test_seconds(study):
    page, log = study
    losses = {(r["network"][:4], r["algorithm"]): r for r in log["loss"]}
    to_goal = lambda network, *names: [
        losses[network, name]["seconds_to_goal"] for name in names
    ]
    words = "reaches a loss of 0.05 in # s, Local SGD in # s, S-SGD in # s"
    check_sentence(page, words, to_goal("wide", "cocod", "local_sgd", "ssgd"))
    words = "nothing is gained: # s, # s and # s, and # s for S-SGD that sends"
    names = ("cocod", "local_sgd", "ssgd", "ssgd_backward")
    check_sentence(page, words, to_goal("data", *names))
    check_sentence(page, "does not help (# s)", to_goal("data", "just_in_time"))
    pair = [losses["data", name] for name in ("cocod", "ssgd")]
    words = "CoCoD-SGD, # s against S-SGD's # s, but it needs # of them and not #"
    steps = [r["steps_to_goal"] for r in pair]
    check_sentence(page, words, [r["seconds_per_step"] for r in pair] + steps)
    rates = {(r["algorithm"], r["period"]): r["best_rate"] for r in log["training"]}
    values = [rates[r["algorithm"], r["period"]] for r in reversed(pair)]
    check_sentence(page, "S-SGD bears #, CoCoD-SGD #.", values)
    clock = {
        (r["network"][:4], r["algorithm"]): r["seconds_per_step"]
        for r in log["clock"]
        if r["workers"] == 4096
    }
    words = "a step takes # s with CoCoD-SGD and # s with S-SGD in the data centre"
    check_sentence(page, words, [clock["data", "cocod"], clock["data", "ssgd"]])
    words = "# s and # s over the wide area"
    check_sentence(page, words, [clock["wide", "cocod"], clock["wide", "ssgd"]])
