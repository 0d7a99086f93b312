"""Runs that go on with another number of workers, by the command for it."""

import dataclasses
import json
import shutil
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import cocod_jax as cj
from cocod_jax.observe.loggers import read_jsonl, to_jsonl
from experiments import command, logbook, resize
from experiments.config import TextConfig, from_plain, parse
from experiments.job import saving
from tests.test_resume import run
from tests.test_train_processes import TEXT

SMALL = ["--data=digits", "--model=cnn", "--width=2", "--batch-size=40"]

ARGUMENTS = [*SMALL, "--epochs=3", "--keep=3", "--numbers=int8"]
SHARED = "--task text --workers 2 --fsdp 2 --context 16 --batch-size 8"


def resized(config, workers):
    with jax.default_prng_impl("rbg"):
        resize.main(resize.ResizeConfig(run=config.folder, workers=workers))
    return dataclasses.replace(config, workers=workers)


def beginning(config):
    """The job of a run, and a state of its workers."""
    with jax.default_prng_impl("rbg"):
        key = jax.random.key(0)
        job = resize.job_of(config, config.workers)
        start = job.main.init(*job.task.init(key), key=key)
    return job, cj.replicate(start, config.workers)


def last(config):
    """The job of a run, and its last checkpoint."""
    job, start = beginning(config)
    resume = dataclasses.replace(config, resume=True)
    with saving.Saver(resume, job.data.digest, first=False) as saver:
        found = saver.restored(start)
    assert found is not None
    return job, *found


def without_last(config, but):
    """Takes the later checkpoints of a run away, as if it had been stopped before."""
    folders = (config.folder / "checkpoints").iterdir()
    for folder in sorted(folders, key=lambda path: int(path.name))[but:]:
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def of_four(tmp_path_factory):
    """Four workers that differ in all that they have, after one of three epochs."""
    out = f"--out={tmp_path_factory.mktemp('runs')}"
    config = parse([*ARGUMENTS, out, "--workers=4"])
    job, start = beginning(config)
    rng = np.random.default_rng(0)

    def apart(leaf):
        is_float = jnp.issubdtype(leaf.dtype, jnp.floating)
        return leaf + is_float * rng.uniform(0, 0.1, leaf.shape).astype(leaf.dtype)

    state = jax.tree.map(apart, start._replace(key=None, weight=None))
    state = state._replace(key=start.key, weight=start.weight)
    with to_jsonl(config.log) as log:
        log.write("run", config=logbook.plain(config), workers=4)
        log.write("epoch", epoch=1, train_loss=9.0, test_accuracy=0.1, test_loss=9.0)
    memory = {"epoch": 1, "losses": [], "alarm": cj.DriftAlarm().memory()}
    with saving.Saver(config, job.data.digest, first=True) as saver:
        saver.begin()
        # The first end of a round after that of the epoch.
        step = -(-job.data.steps_per_epoch // 4) * 4
        saver.save(step, state, memory)
    return config


@pytest.fixture
def copied(of_four, tmp_path):
    shutil.copytree(of_four.out, tmp_path, dirs_exist_ok=True)
    return dataclasses.replace(of_four, out=tmp_path)


def test_a_run_goes_on_with_fewer_workers_and_with_more(copied, capsys):
    config, log = copied, copied.log.read_bytes()
    for number, workers in enumerate((2, 3), start=1):
        _, state, _ = last(config)
        config = resized(config, workers)
        out = capsys.readouterr().out
        assert f"{config.folder} has {workers} workers and is at {number}" in out
        assert "What each had for itself begins anew: exchange_state" in out
        assert f"--workers {workers} --resume" in out
        job, new, position = last(config)
        for consensus in (cj.consensus, cj.consensus_model_state):
            chex.assert_trees_all_equal(consensus(new), consensus(state))
        # As far along: where an epoch had ended, the first round after its end.
        behind = position.step - number * job.data.steps_per_epoch
        assert 0 <= behind < job.main.period
        counts = optax.tree.get_all_with_path(new.opt_state, "count")
        for count in (new.count, *(count for _, count in counts)):
            np.testing.assert_array_equal(count, [position.step] * workers)

        run([*ARGUMENTS, f"--out={config.out}", f"--workers={workers}", "--resume"])
        records = read_jsonl(config.log)
        assert [each["workers"] for each in records["resized"]] == [2, 3][:number]
        assert records["resumed"][-1]["step"] == position.step
        assert [epoch["epoch"] for epoch in records["epoch"]] == [1, 2, 3]
        # The page counts on where the run with other workers counts anew.
        trained = records["resized"][0]["step_before"] + 4 * len(records["round"])
        page = config.log.with_suffix(".html").read_text("utf-8")
        assert f"into exchanges in {trained} local steps" in page
        losses = [epoch["train_loss"] for epoch in records["epoch"]]
        assert losses[2] < losses[0]
        without_last(config, 2)
    assert copied.log.read_bytes() == log
    # Grown again it takes the place of what it left of itself, and of nothing else.
    config = resized(config, 4)
    assert [each["workers"] for each in read_jsonl(config.log)["resized"]] == [2, 3, 4]
    assert not [path for path in copied.out.iterdir() if path.name.startswith(".")]


def test_a_run_has_a_worker():
    with pytest.raises(ValueError, match="workers=0 must be an integer of at least 1"):
        resize.ResizeConfig(run=Path("run"), workers=0)


def test_another_run_is_not_replaced(copied, capsys):
    other = dataclasses.replace(copied, workers=2)
    other.log.write_text('{"kind": "run"}\n')
    with pytest.raises(command.UsageError, match="is another run, which began with 2"):
        resized(copied, 2)
    assert other.log.read_text() == '{"kind": "run"}\n'


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"workers": 4}, "workers=4: .* has 4; give another number"),
        ({"workers": 5000}, "workers=5000: .* cannot be divided among 5000"),
        ({"run": "nothing"}, "is no folder of a run: its log .*nothing.jsonl cannot"),
        ({"run": "renamed"}, "the log of a run with the name digits-cnn-cocod-"),
        ({"micro_batches": [1, 2]}, r"micro_batches=\(1, 2\), one number for each"),
    ],
)
def test_what_cannot_be_resized_is_named(change, message, copied):
    folder = copied.folder
    if change.get("run"):
        folder = folder.with_name(change["run"])
        if change["run"] == "renamed":
            copied.log.rename(folder.with_suffix(".jsonl"))
    if "micro_batches" in change:
        lines = copied.log.read_text().splitlines()
        first = json.loads(lines[0])
        first["config"] |= change | {"workers": 2}
        config = from_plain(first["config"])
        folder = dataclasses.replace(config, out=copied.out).folder
        folder.with_suffix(".jsonl").write_text(json.dumps(first))
    config = resize.ResizeConfig(run=folder, workers=change.get("workers", 3))
    with pytest.raises(command.UsageError, match=message):
        resize.main(config)
    assert not [path for path in copied.out.iterdir() if path.name.startswith(".")]


def test_a_run_is_found_from_inside_its_folder(copied, monkeypatch):
    monkeypatch.chdir(copied.folder)
    config, workers = resize.found(Path())
    assert (config.folder, workers) == (copied.folder, 4)


def test_a_text_that_is_gone_is_named(tmp_path):
    """The name of a run has its content."""
    config = TextConfig(data_file=tmp_path / "gone.txt", out=tmp_path)
    with to_jsonl(config.log) as log:
        log.write("run", config=logbook.plain(config), workers=4)
    folder = config.folder.with_name(f"{config.folder.name}-content=12345678")
    config.log.rename(folder.with_suffix(f"{folder.suffix}.jsonl"))
    with pytest.raises(command.UsageError, match=r"gone.txt' cannot be read"):
        resize.found(folder)


def test_a_newcomer_with_another_model_is_refused(copied, capsys):
    """As that of a process whose folder is an older copy would be."""
    config = resized(copied, 2)
    job, state, position = last(config)
    newcomer = jnp.arange(2, dtype=jnp.float32)
    apart = lambda x: x + newcomer.reshape(2, *[1] * (x.ndim - 1))
    state = state._replace(params=jax.tree.map(apart, state.params))
    resume = dataclasses.replace(config, resume=True)
    with saving.Saver(resume, job.data.digest, first=False) as saver:
        saver.save(position.step + 4, state, position.recorder, equal=True)
    capsys.readouterr()
    run([*ARGUMENTS, f"--out={config.out}", "--workers=2", "--resume"], status=2)
    err = capsys.readouterr().err
    assert "of worker 1 differs from the first worker's" in err
    assert "give all processes the same folder" in err
    assert err.count("\n") == 1


@pytest.mark.matrix
def test_workers_of_several_devices_get_their_parts(tmp_path):
    """Each parameter is whole while it is resized, and shared again afterwards."""
    file = tmp_path / "sums.txt"
    file.write_text(TEXT)
    words = f"{SHARED} --epochs 1.3 --data-file {file} --out {tmp_path}".split()
    config = run(words)
    _, state, _ = last(config)
    config = resized(config, 3)
    _, new, _ = last(config)
    chex.assert_trees_all_equal(cj.consensus(new), cj.consensus(state))
    # What was finished is finished, but for the round that has become a whole one.
    run([*words, "--workers=3", "--resume"])
    assert read_jsonl(config.log)["end"][-1] == {"status": "finished"}
