"""The benchmark of unequal workers: its companions, its tables."""

import json
import os
import subprocess
import sys

import pytest

from experiments.unequal import __main__ as unequal
from experiments.unequal import figures, worker


def test_the_companion_shares_the_core_and_ends(monkeypatch):
    """It is a process of its own, and does not outlive the block."""
    started = []
    popen = subprocess.Popen

    def spy(*args, **options):
        started.append(popen(*args, **options))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", spy)
    with worker.beside(worker._SPIN):
        assert started[0].poll() is None
        if hasattr(os, "sched_getaffinity"):
            own, other = (os.sched_getaffinity(pid) for pid in (0, started[0].pid))
            assert own == other
    assert started[0].poll() is not None


_WORKER = """
import sys
from experiments.unequal import worker
with worker.beside(worker._STOP_AND_GO, "0", "0.1", "0.1"):
    sys.stdin.read()
"""


def test_a_worker_is_stopped_and_goes_on():
    """In a process of its own: this one must not be stopped."""
    process = subprocess.Popen([sys.executable, "-c", _WORKER], stdin=subprocess.PIPE)
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    _, status = os.waitpid(process.pid, os.WCONTINUED)
    assert os.WIFCONTINUED(status)
    process.communicate(timeout=60)
    assert process.returncode == 0


def measured():
    """What two workers would report."""
    records = [
        {
            "shares": name,
            "worker": worker,
            "micro_batches": (8, 4),
            "images_per_second": 100.0,
            "idle": 0.25 * worker,
        }
        for name in ("equal", "proportional")
        for worker in (0, 1)
    ]
    pauses = {
        "pauses": "S-SGD",
        "worker": 0,
        "without": 1.0,
        "with": 1.5,
        "repeats": [(0.9, 1.3), (1.1, 1.7)],
    }
    return [*records, pauses]


def test_the_tables_show_every_worker():
    shares, pauses = unequal.tables(measured())
    assert list(shares.columns[3].cells) == ["0%, 25%"] * 2
    assert list(pauses.columns[2].cells) == ["1.50"]
    assert list(pauses.columns[3].cells) == ["0.50 ± 0.14"]


def test_the_figure_needs_results(tmp_path):
    log = tmp_path / "unequal.jsonl"
    log.write_text(json.dumps({"kind": "run"}))
    with pytest.raises(ValueError, match="no result"):
        figures.unequal(log, tmp_path / "unequal.png")
    lines = [json.dumps({"kind": "result", **record}) for record in measured()]
    log.write_text("\n".join(lines))
    figures.unequal(log, tmp_path / "unequal.png")
    assert (tmp_path / "unequal.png").stat().st_size > 10_000
