"""The documentation names all that is public, and all that a certificate can say."""

import importlib
import inspect
import re
from types import ModuleType, SimpleNamespace

import pytest

import cocod_jax as cj
from cocod_jax.certify import REASONS
from docs import generate
from docs.algorithm_table import ROWS

API = "\n".join(path.read_text() for path in (generate.DOCS / "api").glob("*.md"))
OVERLAP = (generate.DOCS / "overlap.md").read_text()


def public(module: ModuleType) -> set[str]:
    """The functions and classes of the library that a module offers."""
    return {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isfunction(value) or inspect.isclass(value))
        and value.__module__.startswith("cocod_jax")
    }


def documented(directive: str) -> list[str]:
    """What stands behind a directive in the reference."""
    return re.findall(rf"^\.\. {directive}:: ([\w.]+)$", API, re.M)


PACKAGES = (
    "exchanges",
    "execution",
    "observe",
    "per_step",
    "rounds",
    "rules",
    "workers",
)


def test_every_public_name_is_in_the_reference_once():
    """Where users write it: what cj has not, by the name of its package."""
    named = documented("autofunction") + documented("autoclass")
    expected = public(cj) | {"cocod_jax.advice.Advice"}
    for package in PACKAGES:
        own = public(getattr(cj, package)) - public(cj)
        expected |= {f"cocod_jax.{package}.{name}" for name in own}
    assert sorted(named) == sorted(expected)


def test_every_public_module_is_in_the_reference():
    """Packages have their names on pages of their own."""
    source = inspect.getsource(cj)
    modules = re.findall(r"^from cocod_jax import (\w+) as", source, re.M)
    modules = {m for m in modules if m not in PACKAGES} | {"certify"}
    observe = {f"cocod_jax.observe.{m}" for m in ("loggers", "plots", "report")}
    public_modules = {f"cocod_jax.{m}" for m in modules} | observe
    assert public_modules <= set(documented("automodule"))


@pytest.mark.parametrize("name", documented("automodule"))
def test_modules_in_the_reference_show_all_their_names(name):
    module = importlib.import_module(name)
    assert module.__doc__
    if name.endswith("__main__"):
        return
    # A package has its names from its modules.
    imported = "   :imported-members:\n" if hasattr(module, "__path__") else ""
    assert f".. automodule:: {name}\n   :members:\n{imported}```" in API
    # What has no docstring would be left out without a word.
    assert all(getattr(module, member).__doc__ for member in public(module))


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


def test_results_have_a_page_each():
    folders = {path.name for path in generate.RESULTS.iterdir() if path.is_dir()}
    assert {path.stem for path in generate.study_pages()} == folders


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
