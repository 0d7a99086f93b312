"""The packages stand on each other in one order, and nothing goes round in circles."""

import ast
import sys
from pathlib import Path

import pytest

from docs import house

ARROWS = house.imports()


def write(root: Path, **sources: str) -> house.Arrows:
    """The imports of a small library: paths with ``__`` for ``/``."""
    package = root / "cocod_jax"
    for name, text in {"init": "", **sources}.items():
        path = package / f"{name.replace('_in_', '/')}.py"
        path = path.with_stem("__init__") if path.stem == "init" else path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return house.imports(package)


def test_every_package_has_its_layer():
    placed = [name for layer in house.LAYERS for name in layer]
    assert len(placed) == len(set(placed))
    assert set(placed) == {house.package_of(module) for module in ARROWS}


def test_no_arrow_points_upward():
    assert not house.upward(ARROWS)


def test_there_is_no_circle():
    assert not house.circle(house.packages(ARROWS))
    assert not house.circle(ARROWS)


@pytest.mark.parametrize("package", ["theory", "timeline"])
def test_theory_and_timeline_stand_on_numpy_alone(package):
    """With all that they import of the library, also inside functions."""
    found: set[str] = set()
    waiting = [module for module in ARROWS if house.package_of(module) == package]
    while waiting:
        module = waiting.pop()
        if module not in found:
            found.add(module)
            waiting += ARROWS[module]
    assert "cocod_jax._checks" in found
    roots = set().union(*(roots_of(house.modules()[module]) for module in found))
    libraries = roots - set(sys.stdlib_module_names) - {"cocod_jax"}
    assert libraries <= {"numpy", "matplotlib"}


def roots_of(path: Path) -> set[str]:
    """The libraries that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize(
    "text",
    [
        "import cocod_jax.rounds.a\n",
        "from cocod_jax.rounds import a\n",
        "def late():\n    from cocod_jax.rounds.a import b\n",
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from cocod_jax.rounds.a import b\n",
    ],
)
def test_an_arrow_that_points_upward_is_found(tmp_path, text):
    arrows = write(tmp_path, rounds_in_init="", rounds_in_a="", rules_in_c=text)
    assert house.upward(arrows) == ["cocod_jax.rules.c imports cocod_jax.rounds.a"]


def test_packages_of_one_layer_do_not_know_each_other(tmp_path):
    text = "from cocod_jax.workers.b import c\n"
    arrows = write(tmp_path, workers_in_b="", per_step_in_a=text)
    assert house.upward(arrows) == ["cocod_jax.per_step.a imports cocod_jax.workers.b"]


def test_a_circle_inside_a_package_is_found(tmp_path):
    arrows = write(
        tmp_path,
        rules_in_init="from cocod_jax.rules.a import f\n",
        rules_in_a="from cocod_jax.rules.b import g\n",
        rules_in_b="def g():\n    from cocod_jax.rules.a import f\n",
    )
    assert not house.upward(arrows)
    assert {"cocod_jax.rules.a", "cocod_jax.rules.b"} == set(house.circle(arrows))


def test_the_picture_has_all_packages():
    shown = {text.get_text() for text in house.picture().axes[0].texts}
    assert {name for layer in house.LAYERS for name in layer} <= shown
