"""What the README shows runs as it stands."""

import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import cocod_jax as cj
from experiments import compare

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_examples_run(number, capsys):
    """All but the script, which has a test of its own, run in this process."""
    block = BLOCKS[number]
    if block == (ROOT / "experiments" / "minimal_pmap.py").read_text():
        return
    names: dict[str, Any] = {"__name__": "readme"}
    exec(compile(block, f"README.md, example {number}", "exec"), names)
    if number == 0:
        printed = [float(x) for x in re.findall(r"-?\d+\.\d+", capsys.readouterr().out)]
        assert printed == pytest.approx([1, -2, 3], abs=0.05)
    if "cj.advise" in block:
        assert capsys.readouterr().out in README
    if "Net" in names:  # the Flax example stops before it has data: it must fit
        batches = (np.zeros([2, 4, 8, 64]), np.zeros([2, 4, 8], int))
        state = cj.replicate(names["state"], 2)
        jax.eval_shape(cj.distribute(names["round_"], via="vmap"), state, batches)


def test_the_script_is_the_one_in_the_repository():
    script = (ROOT / "experiments" / "minimal_pmap.py").read_text()
    assert script in BLOCKS
    assert len(script.splitlines()) < 60


def test_the_table_is_that_of_the_logs():
    assert not re.search(r"@[A-Z]+@", README), "a placeholder was left"
    folder = ROOT / "experiments" / "results" / "20261123_mnist5k"
    assert compare.table(sorted(folder.glob("*.jsonl"))) in README


def test_files_that_are_linked_exist():
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    local = [target for target in targets if "://" not in target]
    assert local
    for target in local:
        assert (ROOT / target).exists(), target
