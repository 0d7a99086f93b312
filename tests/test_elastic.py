"""Processes that go on without one that is gone for good."""

import os
import signal
import subprocess
import sys

import pytest

from cocod_jax.observe.loggers import read_jsonl
from experiments import launch
from experiments.command import UsageError
from experiments.config import parse
from experiments.launch import Ended
from experiments.processes import elastic
from tests.waiting import wait_until

JOB = ["--data=digits", "--model=cnn", "--width=2", "--batch-size=40"]
TRAIN = ("python", "-m", "experiments.train")


@pytest.fixture
def ends(monkeypatch):
    """Lets starts end like this, one after the other; what was started and resized."""
    started, resized = [], []

    def resize(argv, **options):
        resized.append(argv)
        return subprocess.CompletedProcess(argv, int("impossible" in argv[3]))

    monkeypatch.setattr(elastic.subprocess, "run", resize)

    def set_(*outcomes):
        left = list(outcomes)

        def run(config, team, env):
            started.append((team.command[3:], team.members, env["JAX_NUM_PROCESSES"]))
            return left.pop(0)

        monkeypatch.setattr(launch, "run", run)
        return started, resized

    return set_


def start(*options, restarts=0, processes=3):
    config = launch.LaunchConfig(
        command=(*TRAIN, *options), processes=processes, restarts=restarts, elastic=True
    )
    return launch.main(config)


def test_the_others_go_on_when_restarts_are_used_up(ends, capsys):
    words = (*JOB, "--workers", "6", "--save-rounds=1")
    outcomes = [Ended(9, [1]), Ended(9, [1]), Ended(9, [1]), Ended(9, [0]), Ended(0)]
    started, resized = ends(*outcomes)
    assert start(*words, restarts=1) == 0
    four, two = (*words, "--workers", "4", "--resume"), ("--workers", "2", "--resume")
    assert started == [
        (words, (0, 1, 2), "3"),
        (words, (0, 1, 2), "3"),
        (four, (0, 2), "2"),
        (four, (0, 2), "2"),
        ((*four, *two), (2,), "1"),
    ]
    assert [parse(each).workers for each, *_ in started] == [6, 6, 4, 4, 2]
    folders = [str(parse([*JOB, f"--workers={n}"]).folder) for n in (6, 4)]
    expected = [[folders[0], "--workers", "4"], [folders[1], "--workers", "2"]]
    assert [argv[3:] for argv in resized] == expected
    assert (
        "began as 0, 2 go on without the others of 0, 1, 2" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("outcome", "out"),
    [
        (Ended(9, [0, 1, 2]), "runs"),  # nobody is left
        (Ended(9, [1]), "impossible"),  # there is no checkpoint
        (Ended(2), "runs"),  # the command was wrong
    ],
)
def test_where_nobody_can_go_on_the_launcher_ends(outcome, out, ends):
    started, _ = ends(outcome)
    assert start(*JOB, "--workers=3", f"--out={out}") == outcome.status
    assert len(started) == 1


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("sleep", "1"), "--elastic is for python -m experiments.train, .* sleep 1"),
        ((*TRAIN, *JOB), "workers=None, .* give --workers"),
        ((*TRAIN, "--workers=2", "--micro-batches", "1", "2"), "leave --micro-batches"),
    ],
)
def test_what_cannot_go_on_with_fewer_is_refused_at_once(command, message):
    with pytest.raises(UsageError, match=message):
        launch.main(launch.LaunchConfig(command=command, processes=2, elastic=True))


@pytest.mark.matrix
def test_one_goes_on_when_the_other_is_killed(tmp_path):
    """The checkpoints are those of two processes; one process resizes them."""
    words = [*JOB, "--epochs=8", "--save-rounds=1", f"--out={tmp_path}"]
    two, one = (parse([*words, f"--workers={n}"]) for n in (2, 1))
    launcher = [sys.executable, "-m", "experiments.launch", "-n", "2", "--elastic"]
    process = subprocess.Popen(
        [*launcher, "--", *TRAIN, *words, "--workers=2"],
        stderr=subprocess.PIPE,
        text=True,
    )
    checkpoints = two.folder / "checkpoints"
    wait_until(lambda: list(checkpoints.glob("[0-9]*[0-9]")), seconds=200)
    listed = subprocess.check_output(["pgrep", "-P", str(process.pid)], text=True)
    os.kill(int(listed.split()[-1]), signal.SIGKILL)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert "Process 1 failed with status 137." in errors
    assert "began as 0 go on without the others of 0, 1" in errors
    records = read_jsonl(one.log)
    assert records["resized"][0]["workers_before"] == 2
    assert records["end"] == [{"status": "finished"}]
    participants = [record["participants"] for record in records["round"]]
    assert participants == sorted(participants, reverse=True)
    assert {*participants} == {1, 2}
    assert [epoch["epoch"] for epoch in records["epoch"]] == [*range(1, 9)]
