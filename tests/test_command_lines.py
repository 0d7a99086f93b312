"""What a command line gets wrong is a few lines, and not a traceback."""

import dataclasses
import re
import runpy
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import jax
import pytest
import tyro
from hypothesis import HealthCheck, given, settings

from experiments import command
from tests.waiting import left_behind

ROOT = Path(__file__).parent.parent
STUDIES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
    for path in sorted((ROOT / "experiments").rglob("*.py"))
    if "    command.run(" in path.read_text() and "results" not in path.parts
]
MISSING = [
    ("experiments.clock", "nowhere"),
    ("experiments.evaluate", "nowhere"),
    ("experiments.resize", "nowhere --workers 2"),
    ("experiments.train", "--data cifar10 --data-dir nowhere --workers 2"),
    ("experiments.train", "--task text --data-file nowhere --workers 2"),
    ("experiments.paper", "--overlap nowhere"),
    ("experiments.conformance", "--data-file nowhere"),
]
# By the kind of number, what is none.
JUNK = {"int": ["x", "-1", "0.5", "nan"], "float": ["x", "-1", "nan", "inf"]}


def said(module: str, arguments: list[str], capsys: Any) -> tuple[Any, str]:
    """The exit status of a command line in this process, and what it said."""
    sys.argv = [module, *arguments]
    with pytest.raises(SystemExit) as left:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    return left.value.code, capsys.readouterr().err


@pytest.fixture(autouse=True)
def nothing_left(tmp_path, monkeypatch):
    """Runs in an empty folder, which stays so, and ends what it starts."""
    processes = left_behind()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv)
    before = signal.getsignal(signal.SIGPIPE)
    yield
    signal.signal(signal.SIGPIPE, before)  # a command may die of a reader that goes
    assert not list(tmp_path.iterdir())
    assert left_behind() <= processes


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
@pytest.mark.parametrize(("module", "arguments"), MISSING)
def test_a_missing_file_is_named(module, arguments, monkeypatch, capsys):
    start = lambda workers, *_: jax.devices()[:workers]
    monkeypatch.setattr("experiments.job.devices.start_devices", start)
    status, words = said(module, arguments.split(), capsys)
    # A file that cannot be read while a job begins is an error of the system.
    assert status == (1 if "cifar10" in arguments else 2)
    assert "Traceback" not in words
    assert "nowhere" in words
    in_a_box = module in ("experiments.paper", "experiments.conformance")  # tyro's
    assert len(words.splitlines()) == 1 or (in_a_box and len(words.splitlines()) < 8)


@pytest.fixture(scope="module")
def options():
    """By module, the class of its options, and what is required of them."""
    found = {}

    def keep(main, config_type, description, args=None):
        found[module] = config_type
        raise SystemExit(0)

    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*found in sys.modules")
        patch.setattr(command, "run", keep)
        for module in STUDIES:
            patch.setattr(sys, "argv", [module])
            with pytest.raises(SystemExit):
                runpy.run_module(module, run_name="__main__", alter_sys=True)
    return found


REQUIRED = {
    "experiments.clock": ["log.jsonl"],
    "experiments.evaluate": ["model"],
    "experiments.launch": ["-n", "2", "true"],
    "experiments.resize": ["run", "--workers", "2"],
    "experiments.paper": ["--overlap", str(ROOT / "README.md")],
    "experiments.soak.load": [
        *("--load", "vmap", "--workers", "2", "--calls", "6", "--samples", "6"),
        *("--save-rounds", "0", "--out", "runs"),
    ],
}


def read(config_type, arguments, capsys):
    """The exit status of reading a command line, 0 where it can be read."""
    status: Any = 0
    try:
        tyro.cli(config_type, args=arguments)
    except SystemExit as left:
        status = left.code
    return status, capsys.readouterr().err


@pytest.mark.parametrize("module", STUDIES)
def test_numbers_out_of_their_range_are_refused_by_name(module, options, capsys):
    config_type, required = options[module], REQUIRED.get(module, [])
    assert read(config_type, required, capsys)[0] == 0
    for field in dataclasses.fields(config_type):
        kind = re.search(r"\b(int|float)\b", str(field.type))
        flag = f"--{field.name.replace('_', '-')}"
        if kind is None or flag in required:
            continue
        for junk in JUNK[kind[1]]:
            status, words = read(config_type, [*required, flag, junk], capsys)
            assert status == 2, (flag, junk)
            assert field.name in words.replace("-", "_"), (flag, junk)


@pytest.mark.parametrize("module", STUDIES)
@settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_any_words_are_read_or_refused(module, options, capsys, data):
    """By tyro: an exception of another kind would be a traceback."""
    config_type = options[module]
    flags = [f"--{f.name.replace('_', '-')}" for f in dataclasses.fields(config_type)]
    junk = st.sampled_from(["", "0", "-1", "1e999", "nan", "x", "--", "-x", "é", "a b"])
    words = st.lists(st.one_of(st.sampled_from(flags), junk), max_size=6)
    required = REQUIRED.get(module, [])
    status, said = read(config_type, [*required, *data.draw(words)], capsys)
    assert status in (0, 2)
    assert "Traceback" not in said


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_a_module_that_is_not_there_is_named(capsys):
    status, words = said("cocod_jax.certify", ["experiments.nowhere"], capsys)
    assert status == 2
    assert "there is no module 'experiments.nowhere'" in words
