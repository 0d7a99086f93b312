"""Notebooks are pairs: the .py is the source, the .ipynb its copy without outputs."""

import json
import re
from pathlib import Path
from typing import Any

import jupytext
import pytest

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(path.stem for path in FOLDER.glob("*.py"))


def read(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))


def source(name: str) -> str:
    return (FOLDER / f"{name}.py").read_text(encoding="utf-8")


def test_every_notebook_is_a_pair():
    assert len(NOTEBOOKS) >= 5
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == NOTEBOOKS


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_both_halves_hold_the_same_cells(name):
    cells = []
    for suffix in (".py", ".ipynb"):
        half: Any = jupytext.read(FOLDER / f"{name}{suffix}")
        cells.append([(cell["cell_type"], cell["source"]) for cell in half["cells"]])
    assert cells[0] == cells[1], f"run: jupytext --sync notebooks/{name}.py"


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_no_output_is_kept(name):
    code = [cell for cell in read(name)["cells"] if cell["cell_type"] == "code"]
    assert code
    for cell in code:
        assert cell["outputs"] == []
        assert cell["execution_count"] is None


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_any_python_3_kernel_will_do(name):
    assert read(name)["metadata"]["kernelspec"]["name"] == "python3"
    assert "name: python3" in source(name)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_nothing_of_one_machine_is_in_it(name):
    text = source(name) + json.dumps(read(name), ensure_ascii=False)
    absolute = r"(?<![\w.:/])/(?:home|mnt|opt|root|tmp|usr|work|Users)/|\b[A-Z]:\\"
    assert not re.search(absolute, text)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_first_cell_says_what_it_is_and_how_to_install(name):
    first = read(name)["cells"][0]
    text = "".join(first["source"])
    assert first["cell_type"] == "markdown"
    assert text.startswith("# ")
    assert "pip install -e '.[notebooks]'" in text


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_cells_are_short(name):
    """One idea each. The script of several processes is a file in a string."""
    for cell in read(name)["cells"]:
        lines = "".join(cell["source"]).splitlines()
        limit = 50 if "SCRIPT = " in lines[0] else 32
        assert len(lines) <= limit, lines[0]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_code_is_not_cut_at_the_edge_of_the_site(name):
    for cell in read(name)["cells"]:
        if cell["cell_type"] == "code":
            for line in "".join(cell["source"]).splitlines():
                assert len(line) <= 79, line
