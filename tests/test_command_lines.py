"""What a command line gets wrong is a few lines, and not a traceback."""

import runpy
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from experiments import command

ROOT = Path(__file__).parent.parent
STUDIES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
    for path in sorted((ROOT / "experiments").rglob("*.py"))
    if "    command.run(" in path.read_text() and "results" not in path.parts
]
MISSING = {
    "experiments.clock": ["nowhere.jsonl"],
    "experiments.evaluate": ["nowhere"],
}


def said(module: str, arguments: list[str], capsys: Any) -> tuple[Any, str]:
    """The exit status of a command line in this process, and what it said."""
    sys.argv = [module, *arguments]
    with pytest.raises(SystemExit) as left:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    return left.value.code, capsys.readouterr().err


@pytest.fixture(autouse=True)
def nothing_left(tmp_path, monkeypatch):
    """Runs in an empty folder, which stays so."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv)
    before = signal.getsignal(signal.SIGPIPE)
    yield
    signal.signal(signal.SIGPIPE, before)  # a command may die of a reader that goes
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("module", [*STUDIES, "cocod_jax.certify"])
def test_an_unknown_option_and_a_wrong_type_are_said(module, monkeypatch, capsys):
    def read_alone(main, config_type, description, args=None):
        real(lambda config: 0, config_type, description, args)

    real = command.run
    monkeypatch.setattr(command, "run", read_alone)
    for arguments in (["--no-such-option=3"], ["--out"], ["--seeds=x", "--repeats=x"]):
        status, words = said(module, arguments, capsys)
        assert status == 2
        assert "Traceback" not in words
        assert len(words.splitlines()) < 40
        assert words.strip()


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("module", MISSING)
def test_a_missing_file_is_named_in_one_line(module, capsys):
    status, words = said(module, MISSING[module], capsys)
    assert status == 2
    assert MISSING[module][0] in words
    assert len(words.splitlines()) == 1


def test_a_module_that_is_not_there_is_named(capsys):
    status, words = said("cocod_jax.certify", ["experiments.nowhere"], capsys)
    assert status == 2
    assert "there is no module 'experiments.nowhere'" in words
