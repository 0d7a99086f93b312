"""Runs that are stopped, killed and resumed end as if nothing had happened."""

import dataclasses
import gc
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from cocod_jax.observe.loggers import read_jsonl
from docs.generate import DOCS
from experiments import command, evaluate, logbook, tasks, train
from experiments.chaos.outcome import timeless
from experiments.config import RunConfig, config_type, from_plain, parse
from experiments.job import saving
from experiments.processes import rendezvous
from tests import test_train_processes
from tests.marks import seldom
from tests.test_train import numbers

TEXT = test_train_processes.TEXT
STOPPING = (signal.SIGTERM, signal.SIGINT)
IMAGES = "--data digits --model cnn --workers 2 --batch-size 60 --warmup-rounds 2"
JOBS = {
    # Batch statistics, momentum and a warm-up; the third epoch is a part of one.
    "images": f"{IMAGES} --epochs 3",
    "text": "--task text --workers 2 --context 16 --batch-size 8 --epochs 1.3 "
    "--algorithm streamed",
}


@pytest.fixture(scope="module")
def text_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("text") / "sums.txt"
    file.write_text(TEXT)
    return file


@pytest.fixture
def arguments(request, text_file):
    job = request.param
    return JOBS[job].split() + (
        ["--data-file", str(text_file)] if job == "text" else []
    )


def run(arguments, status=0):
    """The main job in this process; its configuration."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            train,
            "start_devices",
            lambda n, each, processes, cpus: jax.devices()[: n * each * cpus : cpus],
        )
        with jax.default_prng_impl("rbg"), pytest.raises(SystemExit) as end:
            command.run(train.main, config_type(arguments), "", arguments)
    assert end.value.code == status
    return parse(arguments)


@pytest.fixture
def stop_after(monkeypatch):
    """Lets a signal come in the round with this number."""
    inherited = {number: signal.getsignal(number) for number in STOPPING}

    def set_(rounds, number=signal.SIGTERM):
        # A shell's background ignores some, and what is ignored stays so.
        signal.signal(number, signal.SIG_DFL)
        dispatched, seen = train.Recorder.dispatched, []

        def spied(self, step, *others):
            seen.append(step)
            if len(seen) == rounds:
                signal.raise_signal(number)
            dispatched(self, step, *others)

        monkeypatch.setattr(train.Recorder, "dispatched", spied)

    yield set_
    for number, handler in inherited.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("arguments", seldom(JOBS, but=("images",)), indirect=True)
def test_a_run_that_is_stopped_goes_on_to_the_bit(
    arguments, tmp_path, stop_after, capsys
):
    whole = run([*arguments, "--out", str(tmp_path / "whole")])
    parts = [*arguments, "--out", str(tmp_path / "parts")]
    # In the warm-up of the images; a round that begins after the signal is finished.
    stop_after(1)
    run(parts, status=128 + signal.SIGTERM)
    assert "--resume goes on" in capsys.readouterr().out
    stop_after(4, signal.SIGINT)
    config = run([*parts, "--resume"], status=128 + signal.SIGINT)
    records = read_jsonl(config.log)
    assert records["end"] == [{"status": "interrupted"}]
    config = run([*parts, "--resume"])
    records = read_jsonl(config.log)
    assert [record["step"] for record in records["resumed"]]
    assert records["end"] == [{"status": "finished"}]
    assert timeless(config) == timeless(whole)


def test_what_a_finished_run_has_left_is_not_trained_again(tmp_path, monkeypatch):
    arguments = [*IMAGES.split(), "--epochs=1", f"--out={tmp_path}"]
    monkeypatch.setenv(rendezvous.LAUNCH, "a")
    before = timeless(run(arguments))
    config = run([*arguments, "--resume"])
    assert timeless(config) == before
    # Neither is it when the launcher has restarted it.
    run(arguments)
    (resumed,) = read_jsonl(config.log)["resumed"]
    assert not resumed["config"]["resume"]
    # Without either it begins anew.
    monkeypatch.setenv(rendezvous.LAUNCH, "b")
    run(arguments)
    assert "resumed" not in read_jsonl(config.log)
    assert timeless(config) == before


def left(config):
    """All that a run has left, by its name."""
    files = (path for path in config.out.rglob("*") if path.is_file())
    return {path: path.read_bytes() for path in files}


def test_a_run_is_replaced_by_one_that_trains_and_by_no_other(
    tmp_path, monkeypatch, stop_after, capsys
):
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setitem(tasks.TASKS, "images", numbers)
    arguments = ["--workers=2", "--epochs=2", f"--out={tmp_path}"]
    config = run(arguments)
    before = left(config)
    with monkeypatch.context() as patch:
        patch.setattr(train, "forecast", lambda *_: signal.raise_signal(signal.SIGTERM))
        run([*arguments, "--forecast"], status=128 + signal.SIGTERM)
    assert "an earlier run of this name is as it was" in capsys.readouterr().out
    assert left(config) == before
    # What comes while the first round compiles waits until rounds have run.
    stop_after(1)
    run(arguments, status=128 + signal.SIGTERM)
    assert "--resume goes on from the checkpoint of step 8." in capsys.readouterr().out
    assert not (config.folder / saving.MODEL).exists()
    run([*arguments, "--resume"])
    assert read_jsonl(config.log)["resumed"][0]["step"] == 8


def test_what_is_refused_leaves_the_run_that_is_there(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(tasks.TASKS, "images", numbers)
    arguments = ["--workers=1", "--forecast", f"--out={tmp_path}"]
    config = parse(arguments)
    config.folder.mkdir()
    for file in (config.log, config.folder / saving.MODEL):
        file.write_text("of the run before")
    before = left(config)
    run(arguments, status=2)
    assert "a single worker has nothing to exchange" in capsys.readouterr().err
    assert left(config) == before


@pytest.mark.matrix  # tests/test_checkpoint.py has it without a job
def test_the_last_and_the_best_stay(tmp_path):
    options = ["--epochs=4", "--keep=1", "--learning-rate=3", f"--out={tmp_path}"]
    config = run([*IMAGES.split(), *options])
    losses = [epoch["test_loss"] for epoch in read_jsonl(config.log)["epoch"]]
    steps = {int(path.name) for path in (config.folder / "checkpoints").iterdir()}
    ends = [record["step"] for record in read_jsonl(config.log)["round"]]
    assert max(ends) in steps
    assert len(steps) == (1 if np.argmin(losses) == 3 else 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--momentum=0.5"], "momentum was 0.9 and is 0.5"),
        (["--seed=1"], "seed was 0 and is 1"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(change, message, tmp_path, capsys):
    arguments = [*IMAGES.split(), "--epochs=1", f"--out={tmp_path}"]
    config, other = run(arguments), parse([*arguments, *change])
    os.rename(config.folder, other.folder)
    run([*arguments, *change, "--resume"], status=2)
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_a_log_is_whole_while_it_is_cut(tmp_path):
    log, text = tmp_path / "log.jsonl", "one\ntwo\nto"
    log.write_text(text)
    with log.open() as meanwhile:
        saving._cut(log, 1)
        assert meanwhile.read() == text
    assert log.read_text() == "one\n"
    assert list(tmp_path.iterdir()) == [log]


def test_a_log_that_is_not_the_checkpoints_is_refused(tmp_path, capsys):
    arguments = [*IMAGES.split(), "--epochs=1", f"--out={tmp_path}"]
    config = run(arguments)
    config.log.write_text('{"kind": "run"}\n')
    run([*arguments, "--resume"], status=2)
    assert "has 1 lines, and the checkpoint was saved after" in capsys.readouterr().err


# What is left of Orbax's reading is collected when its event loop is closed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_damaged_checkpoint_offers_the_one_before(tmp_path, capsys):
    arguments = [*IMAGES.split(), "--epochs=2", f"--out={tmp_path}"]
    config = run(arguments)
    whole = timeless(config)
    steps = sorted(int(path.name) for path in (config.folder / "checkpoints").iterdir())
    last = config.folder / "checkpoints" / str(steps[-1])
    for file in (last / "state").rglob("*"):
        if file.is_file() and "METADATA" not in file.name.upper():
            os.truncate(file, file.stat().st_size // 2)
    run([*arguments, "--resume"], status=2)
    err = capsys.readouterr().err
    assert f"the checkpoint of step {steps[-1]} in" in err
    assert "is damaged: " in err
    assert f"Others are of steps {steps[:-1]}" in err
    assert f"When {last} is deleted, --resume goes on from step {steps[-2]}." in err
    assert err.count("\n") == 1
    shutil.rmtree(last)
    run([*arguments, "--resume"])
    assert timeless(config) == whole
    gc.collect()  # or another test would be blamed


def test_a_model_is_evaluated_as_its_run_was(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    config = run([*IMAGES.split(), "--epochs=1", f"--out={tmp_path}"])
    (epoch,) = read_jsonl(config.log)["epoch"]
    capsys.readouterr()
    (step,) = (config.folder / "checkpoints").iterdir()
    unfinished = step.with_name("99.orbax-checkpoint-tmp")
    unfinished.mkdir()
    for path in (config.folder, config.folder / saving.MODEL, step):
        with jax.default_prng_impl("rbg"):
            evaluate.main(evaluate.EvaluateConfig(model=path))
        out = capsys.readouterr().out
        assert f"{epoch['test_accuracy']:.4f}" in out
        assert f"{epoch['test_loss']:.4f}" in out
    assert unfinished.exists()  # a run may be writing it
    message = rf"step=1 is not in {step.parent}, which has \[{step.name}\]"
    with pytest.raises(command.UsageError, match=message):
        evaluate.main(evaluate.EvaluateConfig(model=step.with_name("1")))
    _, arrays = saving.load(config.folder)
    file, plain = tmp_path / "other.safetensors", logbook.plain(config)
    plain |= {"partition": "by_class", "micro_batches": [2, 1]}
    save_file(arrays, file, metadata={"config": json.dumps(plain)})
    with pytest.raises(command.UsageError, match="by_class' has its own sizes"):
        evaluate.main(evaluate.EvaluateConfig(model=file))


def test_the_snippet_of_the_page_predicts(text_file, tmp_path):
    words = f"{JOBS['text']} --data-file {text_file} --epochs 0.2 --out {tmp_path}"
    config = run(words.split())
    page = (DOCS / "how-to" / "checkpoints.md").read_text()
    (code,) = re.findall(r"^```\{code-block\} python\n(.*?)^```", page, re.M | re.S)
    names = {"tokens": np.zeros([1, 5], np.int32)}
    exec(code.replace("runs/NAME", str(config.folder)), names)
    assert np.isfinite(names["logits"]).all()
    assert names["logits"].shape == (1, 5, 256)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is no trained model: No such file"),
        (b"", "is no trained model: "),
        (b"\x08" + bytes(7) + b"{}      ", "is no trained model: "),
    ],
)
def test_a_file_that_is_no_model_is_refused(content, message, tmp_path):
    file = tmp_path / "model.safetensors"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(command.UsageError, match=message):
        saving.load(file)


@pytest.mark.parametrize(
    ("plain", "message"),
    [
        ({}, "task=None of the configuration must be one of"),
        ({"task": "speech"}, "task='speech' of the configuration must be one of"),
        ({"task": "images", "period": 0}, "period=0 must be an integer of at least 1."),
        ({"task": "images", "model": "vgg99"}, "model='vgg99' must be one of"),
        ([], "is no trained model: "),
    ],
)
def test_a_model_of_an_impossible_run_is_refused(plain, message, tmp_path):
    file = tmp_path / "model.safetensors"
    save_file({}, file, metadata={"config": json.dumps(plain)})
    with pytest.raises(command.UsageError, match=message) as refused:
        saving.load(file)
    assert not str(refused.value).endswith("..")


def test_a_configuration_comes_back_from_json():
    for words in (JOBS["images"], JOBS["text"], "--data cifar10 --data-dir /x"):
        config = parse(words.split())
        plain = json.loads(json.dumps(dataclasses.asdict(config), default=str))
        assert from_plain(plain) == config
        assert isinstance(from_plain(plain), RunConfig)


@pytest.mark.matrix
@pytest.mark.parametrize("kill", ["one", "all"])
def test_processes_that_are_killed_go_on_to_the_bit(kill, text_file, tmp_path):
    """Workers of two devices, a process each; SIGKILL at any moment.

    Of one of them the launcher knows, and starts both again; after all are killed, and
    the launcher too, someone has to.
    """
    words = f"--fsdp 2 --data-file {text_file} --save-rounds 1 --epochs 2"
    arguments = [*JOBS["text"].split(), *words.split()]
    *launcher, end = test_train_processes.LAUNCH
    launch = lambda out, *more: [
        *(*launcher, "--restarts", "1", end, sys.executable, "-m", "experiments.train"),
        *(*arguments, "--out", str(out), *more),
    ]
    subprocess.run(launch(tmp_path / "whole"), check=True, timeout=300)
    whole = parse([*arguments, "--out", str(tmp_path / "whole")])
    config = parse([*arguments, "--out", str(tmp_path / "parts")])
    process = subprocess.Popen(launch(tmp_path / "parts"))
    deadline = time.monotonic() + 200
    checkpoints = config.folder / "checkpoints"
    while time.monotonic() < deadline and not list(checkpoints.glob("1[2-9]")):
        time.sleep(0.05)
    if kill == "all":
        process.kill()
        process.wait()
        subprocess.run(launch(tmp_path / "parts", "--resume"), check=True, timeout=300)
    else:
        listed = subprocess.check_output(["pgrep", "-P", str(process.pid)], text=True)
        os.kill(int(listed.split()[-1]), signal.SIGKILL)
        assert process.wait(300) == 0
    assert read_jsonl(config.log)["resumed"][0]["step"] >= 12
    assert timeless(config) == timeless(whole)
