"""Optimizers of optax in rounds: the page says what they do.

All of them take 10 minutes: ``-m matrix``. A few stand for their kinds.
"""

import pytest

from cocod_jax.observe.loggers import read_jsonl
from docs import composes_table
from docs.generate import latest
from experiments.composes import __main__ as study
from experiments.composes.cases import CASES, CAVEATS, Case, factories, named
from experiments.composes.config import ComposesConfig
from experiments.composes.probe import Facts, probe
from experiments.composes.verdict import NO, WITH_CAVEAT, YES, unexplained, verdict

LOG = {r["code"]: r for r in read_jsonl(latest("composes") / "composes.jsonl")["case"]}
NAMED = set().union(*(named(case.code) for case in CASES))
BY_CODE = {case.code: case for case in CASES}

# One for each kind of answer.
FEW = {
    "optax.polyak_sgd()": YES,  # takes the loss's value
    "optax.contrib.schedule_free_sgd(0.1)": WITH_CAVEAT,
    "optax.contrib.sophia(0.1)": NO,
}
DTYPES = "float32", "bfloat16"


def logged(record):
    return {dtype: Facts(**record[dtype]) for dtype in DTYPES}


def check(case):
    found = {dtype: probe(case, dtype) for dtype in DTYPES}
    assert unexplained(case, found) == []
    assert verdict(case, found) == verdict(case, logged(LOG[case.code]))


def test_every_public_factory_has_a_case():
    """One that optax gains is to be added to the cases."""
    assert factories() - NAMED == set()


def test_caveats_are_of_cases():
    assert set(CAVEATS) <= NAMED | set(BY_CODE)
    assert len(BY_CODE) == len(CASES)


@pytest.mark.parametrize("code", FEW)
def test_a_few_do_what_the_page_says(code):
    check(BY_CODE[code])
    assert verdict(BY_CODE[code], logged(LOG[code]))[0] == FEW[code]


@pytest.mark.matrix
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.code)
def test_all_do_what_the_page_says(case):
    if not case.exists:
        pytest.skip("this optax does not have it")
    check(case)


def test_the_log_is_of_these_cases_and_all_is_explained():
    assert list(LOG) == [case.code for case in CASES]
    for case in CASES:
        assert unexplained(case, logged(LOG[case.code])) == []


def test_the_log_can_be_read_back(tmp_path, monkeypatch):
    case = BY_CODE["optax.contrib.sophia(0.1)"]
    monkeypatch.setattr(study, "CASES", (case,))
    study.sweep(ComposesConfig(out=tmp_path))
    (record,) = read_jsonl(tmp_path / "composes.jsonl")["case"]
    assert logged(record) == logged(LOG[case.code])


def test_the_tables_have_every_case_and_every_caveat():
    tables = "".join(
        composes_table.tables(latest("composes") / "composes.jsonl").values()
    )
    for case in CASES:
        assert f"`{case.code}`" in tables
        assert case.caveat in tables


@pytest.mark.parametrize(
    "worse",
    [
        {"finite": False},
        {"stable": False},
        {"off": 0.1},
        {"kept": 0.5},
        {"errors": {"every": "no"}},
    ],
    ids=lambda worse: next(iter(worse)),
)
def test_what_is_found_needs_a_sentence(worse):
    good = {"errors": {}, "finite": True, "stable": True, "off": 0.0, "kept": 1.0}
    adam = BY_CODE["optax.adam(0.1)"]
    found = {"float32": Facts(**good), "bfloat16": Facts(**good)}
    assert unexplained(adam, found) == []
    assert verdict(adam, found) == (YES, "")
    found["float32"] = Facts(**good | worse)
    assert unexplained(adam, found) or verdict(adam, found)[0] == NO
    named_caveat = Case("contrib", "optax.contrib.madgrad(0.1)")
    assert verdict(named_caveat, found)[0] != YES
