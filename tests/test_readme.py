"""What the README and the documentation show runs as it stands.

The README's blocks of Python stand alone; the blocks of a page run one after the other.
A block of text that follows one is what it prints.
"""

import re
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

import cocod_jax as cj
from docs import generate
from experiments import sweep

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SCRIPT = (ROOT / "experiments" / "minimal_pmap.py").read_text()
HOW_TO = generate.DOCS / "how-to"


class Block(NamedTuple):
    """A block of Python, and the text that follows it, if one does."""

    code: str
    printed: str | None


def blocks(text: str) -> list[Block]:
    """The blocks of Python of a page, in their order, with what they print."""
    found = re.findall(
        r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```)?", text, re.M | re.S
    )
    return [Block(code, printed or None) for code, printed in found]


def pages() -> dict[str, str]:
    """All pages of the documentation that are written or made from docstrings."""
    tracked = [*generate.DOCS.glob("*.md"), *generate.DOCS.glob("[!_]*/*.md")]
    written = {path: path.read_text() for path in tracked} | generate.algorithm_pages()
    return {str(path.relative_to(ROOT)): text for path, text in sorted(written.items())}


EXAMPLES = {
    f"README.md, example {number}": [block]
    for number, block in enumerate(blocks(README))
} | {name: blocks(text) for name, text in pages().items() if blocks(text)}


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_run(name, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "example"}
    for block in EXAMPLES[name]:
        exec(compile(block.code, name, "exec"), names)
        printed = capsys.readouterr().out
        if block.printed is not None:
            assert printed == block.printed


def test_the_readme_is_short():
    assert len(README.splitlines()) < 200


def test_the_fifteen_lines_find_the_answer(capsys):
    (block,) = blocks(README.partition("## Fifteen lines")[2].partition("\n## ")[0])
    exec(block.code, {})
    printed = [float(x) for x in re.findall(r"-?\d+\.\d+", capsys.readouterr().out)]
    assert printed == pytest.approx([1, -2, 3], abs=0.05)


def test_the_flax_example_fits():
    """It stops before it has data."""
    (code,) = [
        block.code
        for block in blocks((HOW_TO / "flax.md").read_text())
        if "(nn.Module" in block.code
    ]
    names: dict[str, Any] = {}
    exec(code, names)
    batches = (np.zeros([2, 4, 8, 64]), np.zeros([2, 4, 8], int))
    state = cj.replicate(names["state"], 2)
    jax.eval_shape(cj.distribute(names["round_"], via="vmap"), state, batches)


def test_the_script_is_shown_whole():
    page = HOW_TO / "plain-pmap.md"
    (path,) = re.findall(r"^```\{literalinclude\} (.*)$", page.read_text(), re.M)
    assert (HOW_TO / path).read_text() == SCRIPT
    assert len(SCRIPT.splitlines()) < 60


def test_the_tables_are_those_of_the_logs_and_of_the_documentation():
    assert not re.search(r"@[A-Z]+@", README), "a placeholder was left"
    folder = ROOT / "experiments" / "results" / "20261123_mnist5k"
    measurements = (generate.DOCS / "measurements.md").read_text()
    assert sweep.table(sorted(folder.glob("*.jsonl"))) in measurements
    assert generate.algorithm_table() in README
