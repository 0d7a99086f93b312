"""Whole studies, on a small scale: what they leave, and what they do not repeat."""

import functools
import subprocess
import sys
from pathlib import Path

import jax
import pytest
import tyro

from cocod_jax.observe.loggers import read_jsonl
from experiments import compare, logbook, models, train
from experiments.config import TrainConfig
from experiments.paper import __main__ as paper

ROOT = Path(__file__).parent.parent
PNG = b"\x89PNG\r\n\x1a\n"
SMALL = ["--model=cnn", "--width=2", "--data=digits", "--batch-size=80", "--workers=2"]


@pytest.fixture
def commands(monkeypatch):
    """The programs that were started, which run."""
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    # The default generator takes the compiler seconds for each shape.
    monkeypatch.setenv("JAX_DEFAULT_PRNG_IMPL", "rbg")
    monkeypatch.chdir(ROOT)
    started, run = [], subprocess.run

    def record(command, **options):
        started.append(command)
        return run(command, **options, stdout=subprocess.DEVNULL)

    monkeypatch.setattr(subprocess, "run", record)
    return started


@pytest.fixture
def in_process(monkeypatch):
    """The runs that were started, of a small network in this process instead."""
    runs, build, start = [], models.build, subprocess.run

    def small(name, **options):
        return build("cnn", **options | {"width": 2})

    def run(command, check, **options):
        if command[0] == "git":  # a log names the commit
            return start(command, check=check, **options)
        assert command[:3] == [sys.executable, "-m", "experiments.train"]
        assert check
        runs.append(tyro.cli(TrainConfig, args=command[3:]))
        assert train.main(runs[-1]) == 0

    monkeypatch.setattr(models, "build", small)
    monkeypatch.setattr(train, "start_devices", lambda n: jax.devices()[:n])
    monkeypatch.setattr(subprocess, "run", run)
    return runs


def test_algorithms_side_by_side(in_process, tmp_path, capsys):
    config = compare.CompareConfig(
        algorithms=("ssgd", "cocod"), seeds=(0,), out=tmp_path
    )
    study = functools.partial(compare.main, config, [*SMALL, "--epochs=1"])
    study()
    assert len(in_process) == 2
    logs = [tmp_path / f"digits-cnn-{name}-seed0.jsonl" for name in config.algorithms]
    for log in logs:
        assert read_jsonl(log)["end"] == [{"status": "finished"}]
    assert (tmp_path / "curves.png").read_bytes().startswith(PNG)
    table = (tmp_path / "table.md").read_text()
    assert "| CoCoD-SGD | " in table
    assert table in capsys.readouterr().out

    study()
    assert len(in_process) == 2
    assert (tmp_path / "table.md").read_text() == table

    logs[1].unlink()
    study()
    assert len(in_process) == 3
    assert in_process[2] == in_process[1]
    assert (tmp_path / "table.md").read_text() == table


def test_a_run_of_the_paper_gets_all_of_its_options(commands, tmp_path):
    run = TrainConfig(
        algorithm="local_sgd",
        workers=2,
        micro_batches=(3, 1),
        warmup_rounds=1,
        model="cnn",
        width=2,
        data="digits",
        epochs=1,
        batch_size=40,
        nesterov=False,
        seed=1,
        out=tmp_path,
    )
    assert compare.train(run) == run.log
    (record,) = read_jsonl(run.log)["run"]
    assert record["config"] == logbook.plain(run)
    assert compare.train(run) == run.log
    assert len(commands) == 1


@pytest.mark.parametrize("scale", paper.WORKERS)
def test_options_say_all_of_a_run(scale):
    """None is not the default of every option: the paper's width is, and ours is 12."""
    config = paper.PaperConfig(scale=scale, data="mnist5k")
    for run in (
        paper.equal(config, "vgg16", "cocod", seed=2),
        paper.unequal(config, "proportional", "local_sgd", seed=1),
        TrainConfig(delay=2, nesterov=False, execution="fused", workers=3),
    ):
        assert tyro.cli(TrainConfig, args=compare.options(run)) == run


def test_the_study_of_the_paper(in_process, tmp_path, monkeypatch, capsys):
    small = functools.partial(TrainConfig, epochs=2, batch_size=80)
    monkeypatch.setattr(paper, "TrainConfig", small)
    monkeypatch.setattr(paper, "MODELS", ("resnet18",))
    monkeypatch.setattr(paper, "default_data", lambda config: "digits")
    config = paper.PaperConfig(
        seeds=(0,),
        overlap=ROOT / "experiments/results/20261124_overlap/overlap.jsonl",
        out=tmp_path,
    )
    paper.main(config)
    runs = 4 + 2 * 3  # on equal workers, and on unequal ones
    assert len(in_process) == runs
    assert {run.workers for run in in_process} == {4}
    for run in in_process:
        assert read_jsonl(run.log)["end"] == [{"status": "finished"}]
    assert len({run.log for run in in_process}) == runs
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

    paper.main(config)
    assert len(in_process) == runs

    in_process[5].log.unlink()
    paper.main(config)
    assert in_process[runs:] == [in_process[5]]
    assert (tmp_path / "claims.md").read_text() == claims
