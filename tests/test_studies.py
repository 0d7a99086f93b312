"""Whole studies, on a small scale: what they leave, and what they do not repeat."""

import functools
import importlib
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tyro

from cocod_jax.observe.loggers import read_jsonl, to_jsonl
from experiments import logbook, sweep
from experiments.config import TrainConfig
from experiments.paper import __main__ as paper
from experiments.paper import config as study
from experiments.paper import figures

ROOT = Path(__file__).parent.parent
PNG = b"\x89PNG\r\n\x1a\n"
SMALL = ["--model=cnn", "--width=2", "--data=digits", "--batch-size=80", "--workers=2"]


def options(folder, **others):
    """A small run with an option of every kind."""
    small: dict[str, Any] = {
        "algorithm": "local_sgd",
        "workers": 2,
        "micro_batches": (3, 1),
        "warmup_rounds": 1,
        "model": "cnn",
        "width": 2,
        "data": "digits",
        "epochs": 1,
        "batch_size": 40,
        "nesterov": False,
        "seed": 1,
    }
    return TrainConfig(**small | others, out=folder)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The log of a real run, in a process of its own, as a study starts it."""
    run = options(tmp_path_factory.mktemp("trained"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_PLATFORMS", "cpu")
        # The default generator takes the compiler seconds for each shape.
        patch.setenv("JAX_DEFAULT_PRNG_IMPL", "rbg")
        patch.chdir(ROOT)
        assert sweep.train_all([run]) == [run.log]
    return run


@pytest.fixture
def started(trained, monkeypatch):
    """The runs that a study starts; each leaves the real run's log as its own."""
    runs: list[TrainConfig] = []

    def run(command, check):
        assert command[:3] == [sys.executable, "-m", "experiments.train"]
        assert check
        config = tyro.cli(TrainConfig, args=command[3:])
        runs.append(config)
        with to_jsonl(config.log) as log:
            for kind, records in read_jsonl(trained.log).items():
                for record in records:
                    own = {"config": logbook.plain(config), "workers": config.workers}
                    log.write(kind, **record | (own if kind == "run" else {}))

    monkeypatch.setattr(subprocess, "run", run)
    return runs


def test_a_run_of_a_study_gets_all_of_its_options(trained, started):
    records = read_jsonl(trained.log)
    assert records["run"][0]["config"] == logbook.plain(trained)
    assert records["end"] == [{"status": "finished"}]
    assert sweep.train_all([trained]) == [trained.log]
    assert not started


def test_algorithms_side_by_side(started, tmp_path, capsys):
    config = sweep.SweepConfig(algorithms=("ssgd", "cocod"), seeds=(0,), out=tmp_path)
    study = functools.partial(sweep.main, config, [*SMALL, "--epochs=1"])
    study()
    assert [run.algorithm for run in started] == ["ssgd", "cocod"]
    assert (tmp_path / "curves.png").read_bytes().startswith(PNG)
    table = (tmp_path / "table.md").read_text()
    assert "| CoCoD-SGD | " in table
    out = capsys.readouterr().out
    assert table in out
    assert f"run 1/2   {started[0].log.stem}   begins" in out

    study()
    assert len(started) == 2
    assert (tmp_path / "table.md").read_text() == table
    assert f"run 2/2   {started[1].log.stem}   finished" in capsys.readouterr().out

    started[1].log.unlink()
    study()
    assert started[2:] == [started[1]]
    assert (tmp_path / "table.md").read_text() == table


@pytest.mark.parametrize("scale", study.WORKERS)
def test_options_say_all_of_a_run(scale):
    """None is not the default of every option: the paper's width is, and ours is 12."""
    config = study.PaperConfig(scale=scale, data="mnist5k")
    for run in (
        study.equal(config, "vgg16", "cocod", seed=2),
        study.unequal(config, "proportional", "local_sgd", seed=1),
        TrainConfig(delay=2, nesterov=False, execution="fused", workers=3),
    ):
        assert tyro.cli(TrainConfig, args=sweep.options(run)) == run


def test_the_study_of_the_paper(started, tmp_path, monkeypatch, capsys):
    config = study.PaperConfig(
        seeds=(0,),
        overlap=ROOT / "experiments/results/20261124_overlap/overlap.jsonl",
        out=tmp_path,
    )
    paper.main(config)
    runs = 2 * 4 + 2 * 3  # on equal workers, and on unequal ones
    assert len(started) == runs
    assert {run.workers for run in started} == {4}
    assert len({run.log for run in started}) == runs
    for name in ("learning", "speedup", "timelines", "unequal"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(PNG)
    claims = (tmp_path / "claims.md").read_text()
    for row in (
        "| resnet18 | ",
        "| 500mbit | 16, clock | ",
        "| S-SGD, equal shares | ",
    ):
        assert row in claims
    assert claims in capsys.readouterr().out

    for name in ("learning", "speedup", "timelines", "unequal"):
        monkeypatch.setattr(figures, name, lambda *drawn: None)
    started[5].log.unlink()
    paper.main(config)
    assert started[runs:] == [started[5]]
    assert (tmp_path / "claims.md").read_text() == claims


@pytest.mark.parametrize("name", ["clock", "scale", "unequal"])
def test_a_command_of_an_old_log_still_works(name, monkeypatch):
    """It is run as the module that has taken its place."""
    runs = []
    monkeypatch.setattr(runpy, "run_module", lambda *args, **how: runs.append(args))
    monkeypatch.delitem(sys.modules, f"experiments.overlap.{name}", raising=False)
    importlib.import_module(f"experiments.overlap.{name}")
    assert runs == [(f"experiments.{name}",)]
