"""The main job in several processes, as the launcher starts them."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest

from cocod_jax.observe.loggers import read_jsonl
from experiments.command import UsageError
from experiments.config import parse
from experiments.job.layout import Met, met

TEXT = "".join(f"{i} and {i + 1} are {2 * i + 1}.\n" for i in range(400))
COMMON = "--epochs 1 --batch-size 8 --workers 2"
JOBS = {
    "shared": "--task text --context 16 --fsdp 2 --algorithm streamed",
    "pmap": "--data digits --model cnn --micro-batches 2 1",
}
LAUNCH = [sys.executable, "-m", "experiments.launch", "-n", "2", "--"]


def run(words, launcher=()):
    """(exit status, standard output, standard error) of a command."""
    done = subprocess.run(
        [*launcher, *words],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "COLUMNS": "300"},
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    "job", ["shared", pytest.param("pmap", marks=pytest.mark.matrix)]
)
def test_two_processes_train_what_one_does(job, tmp_path):
    """Workers of two devices on a mesh, and unequal ones of one device under pmap.

    One process is slow in between, and is named: nothing else changes.
    """
    (tmp_path / "sums.txt").write_text(TEXT)
    arguments = [*COMMON.split(), *JOBS[job].split()]
    if job == "shared":
        arguments += ["--data-file", str(tmp_path / "sums.txt")]
    logs = []
    for processes, launcher in ((1, ()), (2, LAUNCH)):
        out = [*arguments, "--slow", "1", "--out", str(tmp_path / str(processes))]
        words = [sys.executable, "-m", "tests.slow_process", *out]
        status, printed, errors = run(words, launcher)
        assert status == 0, errors
        logs.append(read_jsonl(parse(out).log))
        slow = "Process 1 is slow: the others have waited for "
        assert printed.count(f"0: {slow}") >= processes - 1
        assert (slow in printed) == (processes == 2)
        # One of them speaks, and writes.
        assert printed.count("test accuracy") + printed.count("perplexity of") == 1
        assert "2 workers on cpu" in printed
        assert ("2 processes" in printed) == (processes == 2)
        left = (tmp_path / str(processes)).iterdir()
        assert sorted(p.suffix for p in left if p.is_file()) == [
            ".html",
            ".jsonl",
            ".png",
        ]
    one, two = logs
    assert len(one["round"]) == len(two["round"]) > 2
    assert {record["participants"] for record in two["round"]} == {2}
    for kind in ("round", "epoch"):
        for own, other in zip(one[kind], two[kind], strict=True):
            timed = [name for name in own if name.endswith(("seconds", "per_second"))]
            for name in own.keys() - set(timed):
                # Sums of two workers have one order, those within a worker several.
                assert other[name] == pytest.approx(own[name], rel=1e-4, abs=1e-6), name


def test_processes_that_differ_say_so(tmp_path):
    """Each with the seed of its number, as a script might have it by mistake."""
    train = f"python -m experiments.train --data digits --model cnn {COMMON}"
    words = ["sh", "-c", f"{train} --out {tmp_path} --seed $JAX_PROCESS_ID"]
    status, _, errors = run(words, LAUNCH)
    assert status == 2
    sentence = (
        r"^\d: the processes do not agree: seed is 0 in process 0 and 1 in process 1\. "
        r"Start all of them alike\.$"
    )
    assert re.search(sentence, errors, re.M), errors
    assert not list(tmp_path.iterdir())


def test_processes_without_a_shared_folder_say_so(tmp_path):
    """Each with a folder of its own, as on two hosts; `out` has one name on both."""
    train = f"python -m experiments.train --data digits --model cnn {COMMON}"
    where = f"{tmp_path}/$JAX_PROCESS_ID"
    here = f"PYTHONPATH={os.getcwd()} && export PYTHONPATH"
    words = ["sh", "-c", f"{here} && mkdir {where} && cd {where} && {train}"]
    status, _, errors = run(words, LAUNCH)
    assert status == 2
    sentence = (
        r"^\d: .*/\d/runs is not one folder for all processes: \[1\] do not see what "
        r"process 0 writes in it\. Give all of them a folder that they share, by "
        r"--out\.$"
    )
    assert re.search(sentence, errors, re.M), errors
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_worker_in_another_round_stops_the_run():
    """As after a start from another checkpoint; nothing else would show it."""
    said = np.array([[8, 0], [8, 1], [8, 0]])
    assert met(said, 8) == Met(participants=3, asked=True)
    said[1, 0] = 4
    with pytest.raises(UsageError, match=r"2 of 3 workers .* step 8; .* \{1: 4\}"):
        met(said, 8)
