"""The launcher: what its processes get and print, and how they end together."""

import json
import re
import shutil
import signal
import subprocess
import sys

import pytest

from experiments import command
from experiments.command import UsageError
from experiments.launch import LaunchConfig, main
from tests.waiting import alive, wait_until


@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def launch(*words, processes=2, **options) -> int:
    return main(LaunchConfig(command=words, processes=processes, **options))


def sh(script, **options) -> int:
    return launch("sh", "-c", script, **options)


def test_every_process_finds_the_others(capfd):
    names = ["JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"]
    names += ["JAX_LOCAL_DEVICE_IDS"]
    code = f"import json, os; print(json.dumps([os.environ[n] for n in {names}]))"
    assert launch("python", "-c", code, processes=3) == 0
    lines = sorted(capfd.readouterr().out.splitlines())
    found = [json.loads(line[3:]) for line in lines]
    (address,) = {own.pop(0) for own in found}
    assert re.fullmatch(r"127\.0\.0\.1:\d+", address)
    assert found == [["3", str(index), str(index)] for index in range(3)]


def test_python_is_the_interpreter_of_the_launcher(capfd, monkeypatch):
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert launch("python", "-c", "import sys; print(sys.prefix)", processes=1) == 0
    assert capfd.readouterr().out == f"0: {sys.prefix}\n"


def test_lines_keep_together():
    """Long ones, of two processes on two streams each, into a pipe that is full."""
    write = "import sys, os\nfor _ in range(50):\n for out in (sys.stdout, sys.stderr):"
    write += "  print(os.environ['JAX_PROCESS_ID'] * 99_999, file=out)"
    own = [sys.executable, "-m", "experiments.launch", "-n", "2"]
    run = subprocess.run(
        [*own, "--", "python", "-c", write],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines = run.stdout.splitlines()
    assert len(lines) == 200
    assert set(lines) == {f"{index}: {index * 99_999}" for index in "01"}


def test_each_stream_goes_on(capfd):
    assert sh("echo said; echo warned >&2", processes=1) == 0
    assert capfd.readouterr() == ("0: said\n", "0: warned\n")


def test_a_line_comes_out_at_once(capfd, monkeypatch):
    """Python would lose what it buffers for a pipe."""
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    code = "import os; print('here'); os._exit(0)"
    assert launch("python", "-c", code, processes=1) == 0
    assert capfd.readouterr().out == "0: here\n"


def test_a_progress_bar_becomes_lines(capfdbinary):
    r"""And what is no text goes through as it is: \351 is é in Latin-1."""
    assert sh(r"printf '10%%\r20%%\rdone\r\n\351t\351'", processes=1) == 0
    assert capfdbinary.readouterr().out == b"0: 10%\n0: 20%\n0: done\n0: \xe9t\xe9\n"


# Lets process 0 say that it is ready, and the next one wait for that.
READY = "touch ready"
WHEN_READY = "while [ ! -e ready ]; do sleep 0.01; done"


@pytest.mark.usefixtures("in_folder")
@pytest.mark.parametrize(
    ("fails", "status"), [("exit 7", 7), ("kill -KILL $$", 128 + signal.SIGKILL)]
)
def test_the_first_that_fails_ends_the_others(capfd, fails, status):
    """With its status, though another fails at the end and the last would wait."""
    script = f"""
        case $JAX_PROCESS_ID in
            0) trap 'echo tidy; exit 3' TERM; {READY}; while :; do sleep 0.01; done;;
            1) {WHEN_READY}; echo last words >&2; {fails};;
            2) sleep 600;;
        esac"""
    assert sh(script, processes=3) == status
    out, err = capfd.readouterr()
    assert out == "0: tidy\n"
    assert f"1: last words\nProcess 1 failed with status {status}.\n" in err


@pytest.mark.usefixtures("in_folder")
def test_all_start_again_together(capfd):
    """As the same launch, at another address."""
    script = f"""
        echo $COCOD_LAUNCH $JAX_COORDINATOR_ADDRESS $COCOD_TIMEOUT
        if [ -e once ]; then exit 0; fi
        if [ $JAX_PROCESS_ID = 1 ]; then {WHEN_READY}; touch once; kill -KILL $$; fi
        {READY}; sleep 600"""
    assert sh(script, restarts=2, timeout=7) == 0
    out, err = capfd.readouterr()
    words = [line.split()[1:] for line in out.splitlines()]
    assert len(words) == 4
    launches, addresses, timeouts = zip(*words, strict=True)
    assert len(set(launches)) == 1
    assert len(set(addresses)) == 2
    assert set(timeouts) == {"7"}
    assert err == "Process 1 failed with status 137.\nRestart 1 of 2.\n"


@pytest.mark.parametrize(("status", "restarts"), [(7, 2), (command.USAGE, 0)])
def test_what_goes_on_failing_is_given_up(capfd, status, restarts):
    """What was asked for and cannot be done is at once."""
    assert sh(f"echo begun; exit {status}", processes=1, restarts=2) == status
    out, err = capfd.readouterr()
    assert out.count("begun") == 1 + restarts
    assert err.count("Restart") == restarts


@pytest.mark.usefixtures("in_folder")
@pytest.mark.skipif(sys.platform != "linux", reason="needs waitid")
def test_a_process_that_was_halted_is_named_and_killed(capfd):
    """Though another fails, since it waits for the one that is halted."""
    script = f"""
        if [ $JAX_PROCESS_ID = 1 ]; then echo $$; {READY}; kill -STOP $$; fi
        {WHEN_READY}; sleep 0.2; exit 5"""
    assert sh(script, grace=600) == 5
    out, err = capfd.readouterr()
    assert not alive(int(out.split()[-1]))
    assert "Process 0 failed with status 5.\nProcess 1 was missing: it was hal" in err


@pytest.mark.usefixtures("in_folder")
def test_who_ignores_the_end_is_killed(capfd):
    script = f"""
        if [ $JAX_PROCESS_ID = 1 ]; then {WHEN_READY}; exit 5; fi
        trap '' TERM; echo $$; {READY}; while :; do sleep 0.01; done"""
    assert sh(script, grace=0.1) == 5
    (pid,) = re.findall(r"0: (\d+)", capfd.readouterr().out)
    assert not alive(int(pid))


def test_what_a_process_leaves_behind_ends_with_it(capfd):
    assert sh("sleep 600 > /dev/null 2>&1 & echo $!") == 0
    pids = [int(pid) for pid in re.findall(r": (\d+)", capfd.readouterr().out)]
    assert len(pids) == 2
    wait_until(lambda: not any(map(alive, pids)))  # killed, and none to wait for it


def test_a_command_that_is_not_there(capfd):
    assert launch("no-such-command") == 127
    assert capfd.readouterr().err == "no-such-command: command not found\n"


def test_what_cannot_be_launched():
    with pytest.raises(UsageError, match="no command: give it after --"):
        launch()
    with pytest.raises(ValueError, match="processes=0 must be"):
        launch("true", processes=0)
    with pytest.raises(ValueError, match="timeout=0 must be"):
        launch("true", timeout=0)


class Launcher(subprocess.Popen):
    """A launcher of two shells with this script, which say when they are ready."""

    def __init__(self, script: str):
        own = [sys.executable, "-m", "experiments.launch", "-n", "2", "--grace", "600"]
        own += ["--restarts", "1"]  # not of what was ended by a signal
        ready = f"{script}; echo ready $$; while :; do sleep 0.01; done"
        # A background job ignores Ctrl-C, and so would what it starts.
        inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            super().__init__(
                [*own, "--", "sh", "-c", ready], stdout=subprocess.PIPE, text=True
            )
        finally:
            signal.signal(signal.SIGINT, inherited)
        self.pids = [int(line.split()[-1]) for line in self.lines(2)]

    def lines(self, count: int) -> list[str]:
        assert self.stdout is not None
        return sorted(self.stdout.readline() for _ in range(count))


@pytest.mark.parametrize("name", ["INT", "TERM"])
def test_a_signal_is_passed_on(name):
    with Launcher(f"trap 'echo tidy; exit 9' {name}") as run:
        run.send_signal(getattr(signal, f"SIG{name}"))
        assert run.lines(2) == ["0: tidy\n", "1: tidy\n"]
        assert run.wait(20) == 9


def test_a_second_signal_kills():
    with Launcher("trap 'echo deaf' TERM") as run:
        run.terminate()
        assert run.lines(2) == ["0: deaf\n", "1: deaf\n"]
        run.terminate()
        assert run.wait() == 128 + signal.SIGKILL
    assert not any(map(alive, run.pids))


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs util-linux")
def test_no_process_outlives_a_killed_launcher():
    with Launcher(":") as run:
        assert all(map(alive, run.pids))
        run.kill()
    wait_until(lambda: not any(map(alive, run.pids)))


def test_a_reader_that_goes_ends_it():
    own = [sys.executable, "-m", "experiments.launch", "-n", "2", "--", "yes"]
    with subprocess.Popen(own, stdout=subprocess.PIPE) as run:
        assert run.stdout is not None
        run.stdout.readline()
        run.stdout.close()
        assert run.wait() == -signal.SIGPIPE
