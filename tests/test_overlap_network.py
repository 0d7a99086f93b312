"""The benchmark's network and processes: what they start, and that nothing stays."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.cluster.network import Network, parse_rate
from experiments.cluster.processes import run_workers
from experiments.signals import Stopped, exit_status
from tests.waiting import alive, wait_until


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


@pytest.mark.parametrize(
    ("rate", "bits"),
    [("200mbit", 200e6), ("1gbit", 1e9), ("2.5gbit", 2.5e9), ("64kbit", 64e3)],
)
def test_a_rate_is_read_as_tc_reads_it(rate, bits):
    assert parse_rate(rate) == bits


@pytest.mark.parametrize("rate", ["", "fast", "200", "-1mbit", "0mbit", "200 mbit"])
def test_a_bad_rate_is_refused_by_name(rate):
    with pytest.raises(ValueError, match="'200mbit'"):
        Network(2, rate)


@pytest.mark.parametrize("workers", [0, 251])
def test_the_number_of_workers_is_checked(workers):
    with pytest.raises(ValueError, match=f"workers={workers}"):
        Network(workers, None)


def test_without_a_rate_workers_run_as_they_are_on_the_loopback():
    with Network(2, None) as network:
        assert network.command(1, ["worker", "--flag"]) == ["worker", "--flag"]
        assert network.address(1) == "127.0.0.1"


def test_the_progress_of_the_first_worker_is_shown_while_it_runs(tmp_path):
    code = (
        "import json, pathlib, sys, time; seen = pathlib.Path(sys.argv[1])\n"
        "for done in range(3):\n"
        "    told = {'words': sys.argv[2], 'done': done}\n"
        "    print(json.dumps({'progress': told}), flush=True)\n"
        "    while not (seen / str(done)).exists(): time.sleep(0.01)\n"
        "print(json.dumps({'result': sys.argv[2]}))"
    )
    shown = []

    def show(words, done=None):
        shown.append((words, done))
        (tmp_path / str(done)).touch()  # the workers wait for it

    with Network(2, None) as network:
        worker = lambda i: [*python(code), str(tmp_path), f"worker {i}"]
        records = run_workers(network, worker, timeout=60, show=show)
    assert shown[0] == ("workers start", None)
    assert shown[1:] == [("worker 0", done) for done in range(3)]
    assert records == [{"result": f"worker {i}", "worker": i} for i in range(2)]


@pytest.mark.parametrize("missing", ["ip", "tc"])
def test_a_missing_tool_is_named_with_its_package(monkeypatch, missing):
    monkeypatch.setattr(shutil, "which", lambda tool: tool != missing or None)
    with pytest.raises(RuntimeError, match=f"{missing}: install iproute2"):
        Network(2, "200mbit").__enter__()


def test_without_root_it_says_so(monkeypatch):
    monkeypatch.setattr(shutil, "which", str)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(RuntimeError, match="run as root"):
        Network(2, "200mbit").__enter__()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_a_signal_unwinds_the_context(number):
    # What nohup and a shell's background ignore stays ignored.
    inherited = signal.signal(number, signal.SIG_DFL)
    try:
        with pytest.raises(Stopped) as leaving, Network(2, None):
            signal.raise_signal(number)
        assert exit_status(leaving.value) == 128 + number
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, inherited)


def test_records_come_back_in_the_order_of_the_workers():
    def worker(i):
        return python(f"print('chatter'); print('{{\"square\": {i * i}}}'); print(3)")

    with Network(3, None) as network:
        records = run_workers(network, worker)
    assert records == [{"square": i * i, "worker": i} for i in range(3)]


def test_a_worker_has_one_core_and_its_environment():
    code = (
        "import os, json; print(json.dumps([*os.sched_getaffinity(0)]));"
        "print(json.dumps({'cores': len(os.sched_getaffinity(0)),"
        " 'omp': os.environ['OMP_NUM_THREADS'], 'mine': os.environ['MINE']}))"
    )
    before = os.sched_getaffinity(0)
    with Network(2, None) as network:
        records = run_workers(network, lambda _: python(code), {"MINE": "yes"})
    assert os.sched_getaffinity(0) == before
    for record in records:
        assert (record["cores"], record["omp"], record["mine"]) == (1, "1", "yes")


def test_a_dying_worker_ends_the_others_and_tells_why(tmp_path):
    def worker(i):
        if i == 1:
            return python("raise ValueError('no luck')")
        note = tmp_path / "pid"
        return python(
            f"import os, pathlib, time; pathlib.Path({str(note)!r})"
            ".write_text(str(os.getpid())); time.sleep(60)"
        )

    with (
        pytest.raises(RuntimeError, match=r"(?s)Worker 1 .*status 1.*no luck"),
        Network(2, None) as network,
    ):
        run_workers(network, worker)
    if (tmp_path / "pid").exists():  # it may have been ended before it could write
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_timeout_ends_all_and_tells_what_they_said():
    code = "import os, sys, time; print('stuck', os.getpid(), file=sys.stderr)"
    code += "; time.sleep(600)"
    with (
        pytest.raises(TimeoutError, match=r"(?s)more than 2.*worker 1: stuck") as told,
        Network(2, None) as network,
    ):
        run_workers(network, lambda _: python(code), timeout=2)
    pids = re.findall(r"stuck (\d+)", str(told.value))
    assert [alive(int(pid)) for pid in pids] == [False, False]


def test_a_second_interrupt_leaves_no_worker(monkeypatch, request):
    """It comes while the workers are being ended."""
    killpg, ended = os.killpg, []

    def interrupted(group, number):
        ended.append(group)
        signal.raise_signal(signal.SIGINT)
        killpg(group, number)

    monkeypatch.setattr(os, "killpg", interrupted)
    # A background job ignores Ctrl-C.
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, previous))
    worker = lambda i: python("1 / 0" if i == 0 else "import time; time.sleep(60)")
    with pytest.raises(KeyboardInterrupt), Network(3, None) as network:
        run_workers(network, worker)
    assert len(ended) == 3
    assert not any(map(alive, ended))


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs util-linux")
def test_workers_do_not_outlive_a_killed_run(tmp_path):
    note = tmp_path / "pid"
    code = (
        "import sys; from experiments.cluster.network import Network\n"
        "from experiments.cluster.processes import run_workers\n"
        "with Network(1, None) as network:\n"
        "    run_workers(network, lambda _: [sys.executable, '-c', sys.argv[1]])"
    )
    waits = f"import os, pathlib, time; pathlib.Path({str(note)!r})"
    waits += ".write_text(str(os.getpid())); time.sleep(600)"
    with subprocess.Popen([*python(code), waits]) as run:
        wait_until(lambda: note.exists() and note.read_text())
        worker = int(note.read_text())
        assert alive(worker)
        run.kill()
    wait_until(lambda: not alive(worker))


def _why_no_network() -> str | None:
    if shutil.which("ip") is None or shutil.which("tc") is None:
        return "iproute2 is not installed"
    if os.geteuid() != 0:
        return "network namespaces need root"
    # Containers give root without the right to make namespaces.
    trial = ["unshare", "--net", "tc", "qdisc", "add", "dev", "lo", "root", "tbf"]
    trial += ["rate", "1mbit", "burst", "10kb", "latency", "50ms"]
    if subprocess.run(trial, capture_output=True).returncode:
        return "this kernel or container has no network namespaces with tbf"
    return None


shaped = pytest.mark.skipif(
    _why_no_network() is not None, reason=str(_why_no_network())
)


def left_behind(pid: int) -> list[str]:
    """Namespaces and their configuration that the run of this process made."""
    folders = (Path("/run/netns"), Path("/etc/netns"))
    return [str(path) for folder in folders for path in folder.glob(f"cocod-{pid}-*")]


TRANSFER = """
import json, socket, sys, time
me, receiver, size = int(sys.argv[1]), sys.argv[2], 12_000_000
if me == 0:
    server = socket.create_server((receiver, 5001))
    connection, _ = server.accept()
    received, start = len(connection.recv(1)), time.perf_counter()
    while received < size:
        received += len(connection.recv(1 << 20))
    seconds = time.perf_counter() - start
    print(json.dumps({"bits": 8 * size / seconds, "host": socket.gethostbyname(
        socket.gethostname())}))
else:
    for _ in range(100):
        try:
            connection = socket.create_connection((receiver, 5001))
            break
        except ConnectionRefusedError:
            time.sleep(0.1)
    connection.sendall(bytes(size))
"""


@shaped
def test_a_link_carries_its_rate_and_leaves_nothing():
    with Network(2, "200mbit") as network:
        assert left_behind(os.getpid())
        records = run_workers(
            network,
            lambda i: [*python(TRANSFER), str(i), network.address(0)],
            timeout=60,
        )
    assert 0.8 * 200e6 < records[0]["bits"] < 1.05 * 200e6
    assert records[0]["host"] == network.address(0)
    assert left_behind(os.getpid()) == []


@shaped
def test_a_link_is_cut_and_joined_again():
    call = (
        "import socket, sys\n"
        "try: socket.create_connection((sys.argv[1], 1), timeout=2)\n"
        "except ConnectionRefusedError: print('{\"heard\": true}')\n"
        "except OSError: print('{\"heard\": false}')"
    )
    with Network(2, "1gbit") as network:

        def heard():
            worker = lambda i: [*python(call), network.address(1 - i)]
            return [each["heard"] for each in run_workers(network, worker)]

        network.set_link(1, up=False)
        assert heard() == [False, False]
        network.set_link(1, up=True)
        wait_until(lambda: heard() == [True, True])
    with (
        pytest.raises(RuntimeError, match="worker 1 has no link to cut"),
        Network(2, None) as network,
    ):
        network.set_link(1, up=False)


@shaped
def test_an_exception_leaves_nothing():
    with pytest.raises(ZeroDivisionError), Network(2, "200mbit"):
        raise ZeroDivisionError
    assert left_behind(os.getpid()) == []


@shaped
def test_a_failure_half_way_leaves_nothing(monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Network(2, "200mbit").__enter__()
    assert left_behind(os.getpid()) == []


HOLD = """
import signal, subprocess, time
from experiments.cluster.network import Network
# A background job ignores SIGINT, and nohup SIGHUP.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
with Network(2, "200mbit") as network:
    worker = subprocess.Popen(network.command(0, ["sleep", "600"]))
    print(worker.pid, flush=True)
    time.sleep(600)
"""


@shaped
@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL]
)
def test_a_signal_leaves_nothing_for_the_next_run(number):
    with subprocess.Popen(
        python(HOLD), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as run:
        assert run.stdout is not None
        worker = int(run.stdout.readline())
        assert left_behind(run.pid)
        with Network(1, "200mbit"):
            assert left_behind(run.pid), "a live run was taken for a dead one"
        run.send_signal(number)
    if number == signal.SIGKILL:
        with Network(1, "200mbit"):
            pass
    assert left_behind(run.pid) == []
    wait_until(lambda: not alive(worker))
