"""Imports between the packages of the library point downward only."""

import ast
import sys
from pathlib import Path

import pytest

import cocod_jax as cj

PACKAGE = Path(cj.__file__).parent

# From the ground up. What shares a floor may not import each other.
FLOORS = (
    ("_text", "_typing", "style"),
    ("_checks",),
    ("_trees", "theory", "timeline"),
    ("exchanges",),
    ("rules",),
    ("rounds",),
    ("per_step", "workers"),
    ("execution",),
    ("certify",),
    ("observe",),
    ("testing", "advice"),
    ("__init__",),
    ("__main__",),
)
FLOOR = {name: height for height, names in enumerate(FLOORS) for name in names}
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def imported(path):
    """The modules that a file imports, also in functions and for types only."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            # A name of a package may be a module in it.
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def own(path):
    """Those of the library, by their names in ``MODULES``."""
    found = set()
    for name in imported(path):
        first, _, rest = name.partition(".")
        if first != "cocod_jax":
            continue
        parts = rest.split(".")
        candidates = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
        tries = [t for c in candidates for t in (c, f"{c}.__init__")]
        found.add(next((t for t in tries if t in MODULES), "__init__"))
    return found


@pytest.mark.parametrize("name", MODULES)
def test_arrows_point_downward(name):
    place = name.partition(".")[0]
    places = {other.partition(".")[0] for other in own(MODULES[name])} - {place}
    upward = {other for other in places if FLOOR[other] >= FLOOR[place]}
    assert not upward


def test_there_is_no_circle_in_a_package():
    arrows = {name: own(path) for name, path in MODULES.items()}
    waiting = dict(arrows)
    while waiting:
        free = [name for name, others in waiting.items() if not others & waiting.keys()]
        assert free, f"in a circle: {sorted(waiting)}"
        for name in free:
            del waiting[name]


def foundation(package):
    """The modules that a package consists of and stands on."""
    reached = set()
    waiting = {name for name in MODULES if name.startswith(f"{package}.")}
    while waiting:
        reached |= waiting
        waiting = set().union(*(own(MODULES[name]) for name in waiting)) - reached
    return reached


@pytest.mark.parametrize("package", ["theory", "timeline"])
def test_theory_and_timeline_do_not_stand_on_jax(package):
    found = {
        other.partition(".")[0]
        for name in foundation(package)
        for other in imported(MODULES[name])
    }
    libraries = found - set(sys.stdlib_module_names) - {"cocod_jax"}
    assert libraries <= {"numpy", "matplotlib"}
