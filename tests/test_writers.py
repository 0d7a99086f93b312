"""The main job's numbers in tables, TensorBoard and Weights & Biases; its page."""

import csv
import struct
import sys
from typing import Any

import jax
import optax
import pytest
import tyro
from rich.console import Console
from tensorboardX.proto.event_pb2 import Event  # pyrefly: ignore

import cocod_jax as cj
from cocod_jax.observe.loggers import read_jsonl
from experiments import command, tasks, train
from experiments.algorithms import make_rounds
from experiments.config import TrainConfig
from experiments.job import closing, forecast, writers
from experiments.job.layout import Layout
from tests.test_loggers import FakeWandb
from tests.test_train import SMALL, numbers, run_here

__all__ = ["run_here"]


def events(folder):
    """By name, the (step, value) of each scalar that TensorBoard would show."""
    (file,) = folder.iterdir()
    data, at = file.read_bytes(), 0
    found: dict[str, list[tuple[int, float]]] = {}
    while at < len(data):
        (size,) = struct.unpack("<Q", data[at : at + 8])
        event = Event.FromString(data[at + 12 : at + 12 + size])
        for value in event.summary.value:
            found.setdefault(value.tag, []).append((event.step, value.simple_value))
        at += 16 + size
    return found


def rows(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def test_all_writers_get_the_numbers_of_the_log_also_after_a_kill(
    run_here, tmp_path, monkeypatch, capsys
):
    fake: Any = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setattr(writers.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setitem(tasks.TASKS, "images", numbers)
    arguments = [*SMALL, f"--out={tmp_path}", "--save-rounds=2", "--epochs=3"]
    arguments += ["--writers", "csv", "tensorboard", "wandb"]
    epoch_done, ended = train.Recorder.epoch_done, []

    def killed(self, epoch, evaluation):
        """In the last epoch; what came after the checkpoint is to go."""
        if epoch == 3 and not ended:
            ended.append(epoch)
            raise KeyboardInterrupt
        epoch_done(self, epoch, evaluation)

    monkeypatch.setattr(train.Recorder, "epoch_done", killed)
    run_here(*arguments, status=130)
    config = run_here(*arguments, "--resume")
    assert "page" in capsys.readouterr().out

    log = read_jsonl(config.log)
    steps = [record["step"] for record in log["round"]]
    assert len(steps) == len(set(steps))
    epochs = [record["step"] for record in log["epoch"]]
    assert [record["epoch"] for record in log["epoch"]] == [1, 2, 3]
    losses = [record["loss"] for record in log["round"]]
    losses_of_test = [record["test_loss"] for record in log["epoch"]]

    table = rows(config.folder / "rounds.csv")
    assert [int(row["step"]) for row in table] == steps
    assert [float(row["loss"]) for row in table] == losses
    table = rows(config.folder / "epochs.csv")
    assert [float(row["test_loss"]) for row in table] == losses_of_test

    curves = events(config.folder / "tensorboard")
    pairs = list(zip(steps, losses, strict=True))
    assert curves["loss"] == [(s, pytest.approx(v)) for s, v in pairs]
    assert [step for step, _ in curves["test_loss"]] == epochs

    assert [o["name"] for o in fake.options] == [config.log.stem] * 2
    assert fake.finished == 2
    of_last = fake.logged[-len(steps) - len(epochs) :]
    assert [step for numbers, step in of_last if "loss" in numbers] == steps
    assert [step for _, step in of_last] == sorted(step for _, step in of_last)

    # What the page shows of each worker and of what it sent.
    assert len(log["workers"]) == len(steps)
    assert len(log["workers"][0]["alignment"]) == 2
    run = cj.observe.page.render(config.log)
    assert "It was resumed 1 times." in run
    assert "Alignment of each of 2 workers" in run
    parameters = log["run"][0]["parameters"]
    assert {record["sent_bytes"] for record in log["round"]} == {4 * parameters}
    assert config.log.with_suffix(".html").read_text("utf-8") == run


def test_a_writer_that_is_not_installed_is_named_before_anything_runs(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(writers.importlib.util, "find_spec", lambda name: None)
    arguments = [*SMALL, f"--out={tmp_path}", "--writers", "wandb"]
    with pytest.raises(SystemExit, match="2"):
        command.run(train.main, TrainConfig, "", arguments)
    assert "pip install 'cocod-jax[wandb]'" in capsys.readouterr().err
    assert not tyro.cli(TrainConfig, args=arguments).log.exists()


@pytest.mark.parametrize(
    ("options", "bits"),
    [
        ("--algorithm=cocod", 32),
        ("--algorithm=streamed", 32),
        ("--algorithm=ssgd", 4 * 32),
        # Narrow numbers travel to the worker that adds them, and half of them back.
        ("--algorithm=pipe_sgd --numbers=bf16", 4 * 16 * 1.5),
    ],
)
def test_what_a_round_sends_is_known_before(options, bits):
    config = tyro.cli(TrainConfig, args=["--model=cnn", *options.split()])
    task = tasks.task_of(config)
    _, main = make_rounds(config, task.loss_fn, optax.sgd(0.1))
    init = lambda: cj.replicate(main.init(*task.init(jax.random.key(0))), 2)
    state = jax.eval_shape(init)
    one = sum(leaf.size for leaf in jax.tree.leaves(state.params)) // 2
    sent = forecast.sent_bytes(config, main, state)
    assert sent == pytest.approx(one * bits / 8, rel=0.02)  # pieces are padded


def test_a_forecast_is_logged_and_compared(run_here, tmp_path, monkeypatch):
    monkeypatch.setitem(tasks.TASKS, "images", numbers)
    arguments = [*SMALL, "--epochs=2", "--algorithm=ssgd"]
    config = run_here(*arguments, "--forecast", f"--out={tmp_path}")
    log = read_jsonl(config.log)
    (said,) = log["forecast"]
    measured = said["measured"]
    assert said["seconds_per_step"] == pytest.approx(measured["tc"] + measured["tm"])
    assert measured["workers"] == 2
    assert f"{measured['tc']:.3g} s" in said["advice"][0]
    assert "of the forecast" in cj.observe.page.render(config.log)
    # Gradients travel in every local step.
    parameters = log["run"][0]["parameters"]
    assert {r["sent_bytes"] for r in log["round"]} == {4 * config.period * parameters}


def test_one_worker_has_no_forecast():
    nobody: Any = None
    with pytest.raises(command.UsageError, match="a single worker has nothing"):
        forecast.forecast(TrainConfig(), Layout(jax.devices()[:1]), nobody, nobody)


def test_a_run_ends_well_without_its_page(tmp_path, monkeypatch, capsys):
    """Such as on a full disk."""

    def full(log):
        raise OSError(28, "No space left on device", "run.html")

    monkeypatch.setattr(cj.observe.page, "write", full)
    assert closing.page_of(tmp_path / "run.jsonl", Console()) is None
    assert "page of the run cannot be written: [Errno 28]" in capsys.readouterr().out
