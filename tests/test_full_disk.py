"""A disk that is full: what could not be written is named, what was before it stays."""

import gc
import os
import subprocess

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import cocod_jax as cj
from cocod_jax.execution import Checkpoints
from cocod_jax.observe.loggers import read_jsonl, to_jsonl
from experiments import tasks
from experiments.job import saving
from tests.test_resume import run
from tests.test_train import numbers


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of 2 MB."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(tmp_path)]
    if os.geteuid() or subprocess.run(mount, check=False).returncode:
        pytest.skip("only root can mount a disk")
    yield tmp_path
    subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def fill(folder, free):
    """Leaves so many bytes."""
    disk = os.statvfs(folder)
    size = max(disk.f_bavail * disk.f_bsize - free, 0)
    (folder / "ballast").write_bytes(bytes(size))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_checkpoint_that_does_not_fit_leaves_the_others(small_disk):
    folder = small_disk / "checkpoints"
    loss = lambda w, batch: jnp.mean((w - batch) ** 2)
    round_ = cj.make_round(loss, optax.sgd(0.1), cj.cocod("workers"), period=1)
    numbers = np.random.default_rng(0).normal(size=100_000).astype(np.float32)
    state = cj.replicate(round_.init(jnp.asarray(numbers)), 2)
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(1, state)
        checkpoints.wait()
        fill(small_disk, 50_000)
        checkpoints.save(2, state)
        message = rf"cannot be saved in {folder}, where those of steps \[1\] stay: .*"
        with pytest.raises(OSError, match=f"{message}No space left on device"):
            checkpoints.wait()
    with pytest.raises(OSError, match=message), Checkpoints(folder) as checkpoints:
        checkpoints.save(2, state)  # and the end of the context waits for it
    (small_disk / "ballast").unlink()
    with Checkpoints(folder) as checkpoints:
        found = checkpoints.restore(state)
        assert found is not None
        assert found.step == 1
        np.testing.assert_array_equal(found.state.params, state.params)
        checkpoints.save(2, state)
        checkpoints.wait()
        assert checkpoints.steps == [1, 2]
    gc.collect()


def test_a_log_that_cannot_be_written_is_named(small_disk):
    path = small_disk / "log.jsonl"
    with to_jsonl(path) as log:
        log(1, {"loss": 1.0})
        fill(small_disk, 0)
        with pytest.raises(OSError, match=f"No space left on device: '{path}'"):
            log.write("long", text=10_000 * "x")
    assert read_jsonl(path)["round"][0] == {"step": 1, "loss": 1.0}


# What is left of Orbax's writing is collected when its event loop is closed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_job_says_so_in_a_line_and_goes_on_when_there_is_room(
    small_disk, monkeypatch, capfd, caplog
):
    monkeypatch.setitem(tasks.TASKS, "images", numbers)
    save = saving.Saver.save

    def full_before_the_second(self, step, *others, **more):
        if step > 8 and not (small_disk / "ballast").exists():
            self._checkpoints.wait()
            fill(small_disk, 4096)
        save(self, step, *others, **more)
        self._checkpoints.wait()  # or the log, which needs room too, might come first

    arguments = ["--workers=2", "--epochs=4", f"--out={small_disk}"]
    with monkeypatch.context() as patch:
        patch.setattr(saving.Saver, "save", full_before_the_second)
        config = run(arguments, status=1)
    err = capfd.readouterr().err
    assert err.count("\n") == 1, err
    assert f"{config.folder / 'checkpoints'}, where those of steps [8] stay: " in err
    assert "No space left on device" in err
    assert not [record for record in caplog.records if record.exc_info]
    (small_disk / "ballast").unlink()
    run([*arguments, "--resume"])
    records = read_jsonl(config.log)
    assert records["resumed"][0]["step"] == 8
    assert [epoch["epoch"] for epoch in records["epoch"]] == [1, 2, 3, 4]
    gc.collect()  # or another test would be blamed
