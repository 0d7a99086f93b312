"""The picture of the packages: what stands on what, read from the imports.

A package may import those on lower layers only. ``tests/test_house.py`` holds the code
to it; here is the order, and the drawing.
"""

import ast
import graphlib
from collections import defaultdict
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from cocod_jax import style

PACKAGE = Path(__file__).parent.parent / "cocod_jax"

# From the ground up. Packages of one layer do not import each other.
LAYERS = (
    ("_text", "_typing", "_meshes", "style"),
    ("_checks", "_parts"),
    ("_trees",),
    ("theory", "timeline"),
    ("exchanges",),
    ("rules",),
    ("rounds",),
    ("per_step", "workers"),
    ("execution",),
    ("certify",),
    ("observe",),
    ("testing", "measurement"),
    ("advice",),
    ("__init__",),
    ("__main__",),
)

Arrows = dict[str, set[str]]


def modules(root: Path = PACKAGE) -> dict[str, Path]:
    """Every module by its dotted name; a package goes by that of its folder."""
    named = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root.parent).with_suffix("").parts
        named[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return named


def imports(root: Path = PACKAGE) -> Arrows:
    """What each module imports of the library, wherever in the file it does so.

    Imports inside functions and for type checkers count as well: they tie two modules
    together as much as others do.
    """
    known, arrows = modules(root), {}
    for name, path in known.items():
        arrows[name] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            arrows[name] |= _imported(node, name, known)
    return arrows


def _imported(node: ast.AST, module: str, known: dict[str, Path]) -> set[str]:
    """The library's modules that a statement imports."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names if alias.name in known}
    if not isinstance(node, ast.ImportFrom):
        return set()
    if node.level:
        raise ValueError(f"{module} has a relative import; write the name in full.")
    if node.module not in known:
        return set()
    # `from package import name` is of a module where there is one of that name.
    whole = (f"{node.module}.{alias.name}" for alias in node.names)
    return {name if name in known else node.module for name in whole}


def package_of(module: str) -> str:
    """The part of the library that a module belongs to."""
    _, _, rest = module.partition(".")
    return rest.partition(".")[0] or "__init__"


def packages(arrows: Arrows) -> Arrows:
    """The arrows between packages."""
    between = defaultdict(set)
    for module, imported in arrows.items():
        own = package_of(module)
        between[own] |= {package_of(name) for name in imported} - {own}
    return dict(between)


def upward(arrows: Arrows) -> list[str]:
    """The imports that do not go down, in words, by module."""
    height = {name: level for level, row in enumerate(LAYERS) for name in row}
    return [
        f"{module} imports {name}"
        for module, imported in sorted(arrows.items())
        for name in sorted(imported)
        if package_of(name) != package_of(module)
        and height[package_of(name)] >= height[package_of(module)]
    ]


def circle(arrows: Arrows) -> list[str]:
    """Modules, or packages, that import each other; empty where there are none."""
    try:
        graphlib.TopologicalSorter(arrows).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def shortened(arrows: Arrows) -> Arrows:
    """Without arrows that follow from others: what is drawn stays readable."""

    def reached(start: str) -> set[str]:
        found: set[str] = set()
        waiting = list(arrows.get(start, ()))
        while waiting:
            name = waiting.pop()
            if name not in found:
                found.add(name)
                waiting += arrows.get(name, ())
        return found

    return {
        name: {
            to
            for to in direct
            if not any(to in reached(other) for other in direct - {to})
        }
        for name, direct in arrows.items()
    }


def picture() -> Figure:
    """The layers from the ground up, with the arrows that do not follow from others."""
    figure, axis = plt.subplots(figsize=(7, 9), layout="constrained")
    axis.set(xlim=(0, 1), ylim=(-0.6, len(LAYERS) - 0.4))
    axis.set_axis_off()
    at = {
        name: ((column + 0.5) / len(row), level)
        for level, row in enumerate(LAYERS)
        for column, name in enumerate(row)
    }
    box = {"boxstyle": "round,pad=0.4", "fc": "white", "ec": style.BLUE}
    boxes = {
        name: axis.text(
            x, y, name, ha="center", va="center", family="monospace", zorder=2, bbox=box
        )
        for name, (x, y) in at.items()
    }
    figure.canvas.draw()  # arrows end where the boxes do, which only now have a size
    for start, targets in shortened(packages(imports())).items():
        for end in sorted(targets):
            (x, high), (to, low) = at[start], at[end]
            # A long arrow passes beside the boxes between its ends.
            bend = 0.35 if high - low > 1 and x == to else 0.0
            arrow = {
                "arrowstyle": "-|>",
                "color": style.GREY,
                "patchA": boxes[start].get_bbox_patch(),
                "patchB": boxes[end].get_bbox_patch(),
                "connectionstyle": f"arc3,rad={bend}",
            }
            axis.annotate("", at[end], at[start], arrowprops=arrow, zorder=1)
    return figure
