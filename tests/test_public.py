"""The public interface: documented, typed, light to import."""

import importlib.metadata
import inspect
import re
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

import cocod_jax as cj

PACKAGE = Path(cj.__file__).parent
HOME = "cocod_jax"
PACKAGES = (
    *(cj.exchanges, cj.rules, cj.rounds, cj.workers, cj.execution),
    cj.testing,
)

# Each public name as a user writes it; the modules below the package have their own.
PUBLIC = (
    {
        name: value
        for name, value in vars(cj).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    | {
        f"{package.__name__.removeprefix('cocod_jax.')}.{name}": value
        for package in PACKAGES
        for name, value in vars(package).items()
        if (inspect.isfunction(value) or inspect.isclass(value))
        and not hasattr(cj, name)
    }
    | {
        f"{module.__name__.removeprefix('cocod_jax.')}.{name}": value
        for module in (cj.loggers, cj.plots, cj.observe.page, cj.style)
        for name, value in vars(module).items()
        if (inspect.isfunction(value) or inspect.isclass(value))
        and value.__module__ == module.__name__
        and not name.startswith("_")
    }
)
FUNCTIONS = {name: f for name, f in PUBLIC.items() if inspect.isfunction(f)}
CLASSES = {name: c for name, c in PUBLIC.items() if inspect.isclass(c)}
TUPLES: dict[str, Any] = {
    name: c for name, c in CLASSES.items() if hasattr(c, "_fields")
}


def section(function, title):
    """The text of a section of a docstring, empty when it is not there."""
    found = re.search(
        rf"^{title}:\n(.*?)(?=^\S|\Z)", inspect.getdoc(function) or "", re.M | re.S
    )
    return found[1] if found else ""


def test_the_public_names_are_all_functions_and_classes():
    assert set(PUBLIC) == set(FUNCTIONS) | set(CLASSES)
    assert {"make_round", "distribute", "replicate", "testing.check_rule"} <= set(
        FUNCTIONS
    )


@pytest.mark.parametrize("name", PUBLIC)
def test_every_name_says_what_it_is(name):
    # NamedTuple and Protocol write docstrings of their own, which say nothing.
    doc = PUBLIC[name].__dict__.get("__doc__") or PUBLIC[name].__doc__
    assert doc
    assert not doc.startswith(f"{name}(")
    assert doc.splitlines()[0].endswith((".", ":", "``"))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_argument_is_described_and_typed(name):
    signature = inspect.signature(FUNCTIONS[name])
    described = re.findall(r"^  \**(\w+):", section(FUNCTIONS[name], "Args"), re.M)
    assert described == list(signature.parameters)
    for parameter in signature.parameters.values():
        assert parameter.annotation is not inspect.Parameter.empty, parameter.name
    assert signature.return_annotation is not inspect.Signature.empty


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_says_what_it_returns_and_raises(name):
    function = FUNCTIONS[name]
    if inspect.signature(function).return_annotation is not None:
        assert section(function, "Returns")
    raised = set(re.findall(r"raise (\w+)\(", inspect.getsource(function)))
    for error in raised:
        assert error in section(function, "Raises")


@pytest.mark.parametrize("name", [*FUNCTIONS, "MergeRule"])
def test_every_function_has_an_example(name):
    # Doctests run them.
    assert ">>> " in section(PUBLIC[name], "Examples")


@pytest.mark.parametrize("name", TUPLES)
def test_every_field_is_described(name):
    described = re.findall(r"^  (\w+):", section(TUPLES[name], "Attributes"), re.M)
    # A MergeRule unpacks to (init, update), and documents its parts instead.
    parts = ["exchange", "merge", "outgoing", "correct"]
    parts += ["weights", "axis_name", "streams"]
    assert described == (parts if name == "MergeRule" else list(TUPLES[name]._fields))


def test_the_version_is_that_of_the_metadata():
    assert cj.__version__ == importlib.metadata.version("cocod-jax")


def test_the_package_is_typed():
    assert (PACKAGE / "py.typed").is_file()


def test_importing_the_library_imports_nothing_of_the_experiments():
    program = f"import sys, {HOME}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        cwd=PACKAGE.parent,
    )
    assert done.returncode == 0, done.stderr
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert HOME in loaded
    heavy = {"experiments", "flax", "grain", "matplotlib", "rich", "sklearn", "tyro"}
    heavy |= {"tensorboardX"}
    assert not loaded & heavy


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_only_the_public_interface_of_jax_is_used(path):
    source = path.read_text()
    assert not re.search(
        r"\bjax\._src\b|\bfrom jax import _|\b(from|import) jaxlib\b", source
    )


def test_every_module_says_what_it_is():
    for path in PACKAGE.rglob("*.py"):
        assert path.read_text().startswith(('"""', 'r"""')), path
