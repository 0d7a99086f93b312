"""What the README shows runs as it stands."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_examples_run(number, capsys):
    """All but the script, which has a test of its own, run in this process."""
    block = BLOCKS[number]
    if block == (ROOT / "experiments" / "minimal_pmap.py").read_text():
        return
    exec(compile(block, f"README.md, example {number}", "exec"), {"__name__": "readme"})
    if number == 0:
        printed = [float(x) for x in re.findall(r"-?\d+\.\d+", capsys.readouterr().out)]
        assert printed == pytest.approx([1, -2, 3], abs=0.05)


def test_the_script_is_the_one_in_the_repository():
    script = (ROOT / "experiments" / "minimal_pmap.py").read_text()
    assert script in BLOCKS
    assert len(script.splitlines()) < 60


def test_files_that_are_linked_exist():
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    local = [target for target in targets if "://" not in target]
    assert local
    for target in local:
        assert (ROOT / target).exists(), target
