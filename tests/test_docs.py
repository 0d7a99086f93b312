"""The documentation names all that is public, and all that a certificate can say."""

import functools
import importlib
import inspect
import re
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

import cocod_jax as cj
from cocod_jax.certify import REASONS
from docs import generate
from docs.algorithm_table import ROWS, RULES

API = re.sub(
    r'\{\{ reference\["(\w+)"\] \}\}',
    lambda use: generate.reference(use[1]),
    "\n".join(path.read_text() for path in (generate.DOCS / "api").glob("*.md")),
)
TREE = (generate.DOCS / "api.md").read_text()
OVERLAP = (generate.DOCS / "overlap.md").read_text()


def documented(directive: str) -> list[str]:
    """What stands behind a directive in the reference."""
    return re.findall(rf"^\.\. {directive}:: ([\w.]+)$", API, re.M)


def test_every_public_name_is_in_the_reference_once():
    named = documented("autofunction") + documented("autoclass")
    assert len(named) == len(set(named))
    of = {path: functools.reduce(getattr, path.split(".")[1:], cj) for path in named}
    for package in (None, *generate.PACKAGES):
        home = f"cocod_jax.{package}" if package else "cocod_jax"
        for name, value in generate.public(importlib.import_module(home)).items():
            (path,) = [path for path, shown in of.items() if shown is value]
            assert path in (f"cocod_jax.{name}", f"{home}.{name}")
            # Its shortest name is the one that is shown.
            assert hasattr(cj, name) == (path == f"cocod_jax.{name}")
    whole = re.findall(r"^\.\. automodule:: (.*)\n   :members:", API, re.M)
    assert {"cocod_jax.theory", "cocod_jax.timeline"} <= set(whole)
    for name in whole:
        shown = generate.public(importlib.import_module(name)).values()
        assert not {*shown} & {*of.values()}, name


def test_every_public_module_is_in_the_reference():
    """The modules that come with the package, and the ones that users import."""
    source = inspect.getsource(cj)
    names = re.findall(r"^from cocod_jax import (\w+) as", source, re.M)
    modules = {f"cocod_jax.{name}" for name in [*names, "certify"]}
    modules |= {f"cocod_jax.observe.{name}" for name in ("loggers", "plots", "report")}
    assert modules <= set(documented("automodule"))
    pages = {path.stem for path in (generate.DOCS / "api").glob("*.md")}
    assert pages == set(re.findall(r"^api/([\w-]+)$", TREE, re.M))


@pytest.mark.parametrize("name", documented("automodule"))
def test_modules_in_the_reference_show_all_their_names(name):
    module = importlib.import_module(name)
    assert module.__doc__
    if name.endswith("__main__") or name.rpartition(".")[2] in generate.PACKAGES:
        return  # its names are listed beside it
    # A package has its names from its modules.
    imported = "   :imported-members:\n" if hasattr(module, "__path__") else ""
    assert f".. automodule:: {name}\n   :members:\n{imported}```" in API
    # What has no docstring would be left out without a word.
    assert all(getattr(module, member).__doc__ for member in generate.public(module))


@pytest.mark.parametrize("name", REASONS)
def test_every_reason_of_a_certificate_has_its_place(name):
    assert OVERLAP.count(f"\n(certificate-{name})=\n### ") == 1
    assert OVERLAP.count(f'{{{{ certificate["{name}"] }}}}') == 1
    words = generate.reason_box(name).replace("`", "")
    assert REASONS[name].why in words
    assert REASONS[name].cure in words


def test_the_page_has_no_reason_that_no_certificate_gives():
    assert set(re.findall(r"^\(certificate-(.*)\)=$", OVERLAP, re.M)) == set(REASONS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.slug)
def test_the_page_of_an_algorithm_has_a_rule_an_example_and_papers(row):
    page = generate.algorithm_pages()[generate.DOCS / "algorithms" / f"{row.slug}.md"]
    for part in (generate.describe(row.source), row.example, row.use, row.cost):
        assert part.strip() in page
    assert "Args:" not in page
    assert row.exchanges in ("1", "*k*")


def test_every_rule_and_every_exchange_is_shown_to_readers():
    """In the table of algorithms, or in that of exchanges."""
    shown = [made for row in ROWS for made in (row.source, row.references)]
    page = (generate.DOCS / "how-to" / "own-rule.md").read_text()
    for name, rule in generate.public(cj.rules).items():
        # Workers that share nothing are no algorithm.
        if inspect.isfunction(rule) and rule is not cj.independent:
            assert rule in shown, name
    for path in generate.reference_names("exchanges"):
        if path != "cocod_jax.Exchange":
            assert f"| {{func}}`{path.replace('cocod_jax', 'cj')} <{path}>` |" in page


OPTIONS = {"VRL-SGD": {"learning_rate": 0.1, "period": 2}}
WHOLE_COPIES = [row for row in RULES if row.memory.isdigit()]


@pytest.mark.parametrize("row", WHOLE_COPIES, ids=lambda row: row.slug)
def test_the_copies_in_the_table_are_those_of_a_round(row):
    """Of the snapshot, of what is in flight, and of what rule and exchange keep."""
    rule: Any = row.source  # with its defaults, where it has them
    rule = rule("workers", **OPTIONS.get(row.name, {}))
    round_ = cj.make_round(lambda w, b: w.sum(), optax.sgd(0.1), rule, period=2)
    state = cj.replicate(round_.init(jnp.zeros(1000)), 2)
    kept = jax.tree.leaves((state.rule_state, state.exchange_state))
    each = sum(leaf.nbytes for leaf in kept) / 2 + cj.summary(round_, state).kept_bytes
    assert round(each / 4000, 1) == float(row.memory)


def test_results_have_a_page_and_a_row_each():
    folders = {path.name for path in generate.RESULTS.iterdir() if path.is_dir()}
    assert {path.stem for path in generate.study_pages()} == folders
    rows = (generate.RESULTS / "README.md").read_text()
    assert set(re.findall(r"^\| \[(\w+)\]", rows, re.M)) == folders


@pytest.mark.parametrize(
    ("executed", "warns"),
    [
        ({"exec_data": {"runtime": 89.0}}, False),
        ({"exec_data": {"runtime": 91.0}}, True),
        ({"exec_data": {"runtime": None}}, False),
        ({}, False),
    ],
)
def test_a_notebook_beyond_its_time_is_a_warning(executed, warns, caplog):
    pytest.importorskip("sphinx")
    env = SimpleNamespace(
        docname="tutorials/01", nb_metadata={"tutorials/01": executed}
    )
    app = SimpleNamespace(env=env, config=SimpleNamespace(notebook_seconds=90))
    generate.warn_of_slow_notebook(app, None)
    said = [record.getMessage() for record in caplog.records]
    assert [text.startswith("tutorials/01 took 91 s") for text in said] == [
        True
    ] * warns


def test_a_study_without_a_readme_names_its_first_log(tmp_path):
    for name in "bca":
        with cj.loggers.to_jsonl(tmp_path / f"{name}.jsonl") as log:
            log.write("run", command=f"run {name}")
    assert "The first of its logs: `run a`." in generate._plain_study(tmp_path)
