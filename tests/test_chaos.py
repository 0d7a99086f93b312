"""The study of faults: one run on a small scale, and how it counts."""

from collections import Counter
from pathlib import Path

import pytest

from cocod_jax.observe.loggers import read_jsonl, to_jsonl
from experiments.chaos import __main__ as chaos
from experiments.chaos import disturb, outcome, report
from experiments.chaos.config import ChaosConfig
from experiments.chaos.disturb import Fault, Progress
from experiments.config import TrainConfig

ROOT = Path(__file__).parent.parent


def test_a_run_of_which_a_process_is_killed_ends_as_without(tmp_path, capsys):
    config = ChaosConfig(
        jobs=("images",),
        processes=(2,),
        kinds=("killed",),
        runs=1,
        faults=1,
        starting=0.0,
        epochs=20,
        out=tmp_path,
    )
    chaos.main(config)
    (cell,) = config.cells
    records = read_jsonl(cell.log)
    assert records["result"] == [{"run": 0, "restarts": 1, "lost_bytes": 0}]
    (fault,) = records["fault"]
    assert fault["named"]
    assert 0 < fault["ended"] < fault["recovered"]
    table = (tmp_path / "tables.md").read_text()
    assert "| images | 2 | 1 | 1 | 1 |" in table
    assert table in capsys.readouterr().out
    before = cell.log.stat()
    chaos.main(config)  # does not repeat it
    assert cell.log.stat() == before


def test_the_tables_in_the_results_are_those_of_their_logs():
    folder = ROOT / "experiments/results/20261130_chaos"
    assert (folder / "tables.md").read_text() == report.report(folder)
    runs = [
        record for log in folder.glob("*.jsonl") for record in read_jsonl(log)["result"]
    ]
    assert not any(record["lost_bytes"] for record in runs)


def test_faults_are_drawn_once_and_for_all():
    config = ChaosConfig(jobs=("text",), runs=5, faults=10)
    two, four = config.cells
    runs = disturb.draw(two, rounds=80, start=30.0)
    assert runs == disturb.draw(two, rounds=80, start=30.0)
    assert [len(run) for run in runs] == 5 * [10]
    faults = [fault for run in runs for fault in run]
    assert set(Counter(fault.kind for fault in faults).values()) == {10}
    starting = [fault.delay for fault in faults if fault.rounds is None]
    assert len(starting) == pytest.approx(20, abs=8)
    assert max(starting) == pytest.approx(30, abs=5)
    for run in runs:
        rounds = [fault.rounds for fault in run if fault.rounds is not None]
        assert rounds == sorted(rounds)
        assert 1 <= rounds[0] < rounds[-1] <= 72
    processes = {f.process for run in disturb.draw(four, 80, 30.0) for f in run}
    assert processes == {0, 1, 2, 3}


def test_what_a_fault_has_cost_is_read_from_the_log(tmp_path):
    run = TrainConfig(out=tmp_path)
    progress = Progress(run)
    progress.look()
    assert not progress.goes_on
    with to_jsonl(run.log) as log:
        log.write("run", time="9:00")
        for step in (4, 8, 12):
            log(step, {})
    progress.look()
    assert progress.goes_on
    assert progress.rounds == 3

    found = progress.befallen(Fault("killed", 0, 3, 0.0))
    progress.look()  # they have not ended yet
    assert found.ended is found.recovered is None
    progress.restarted()
    progress.look()  # nor begun
    assert found.recovered is None
    with to_jsonl(run.log) as log:
        log.write("run", time="9:00")
        log(4, {})
        log.write("resumed", time="9:01")
        progress.look()
        assert not progress.goes_on
        log(8, {})
    progress.look()
    assert found.ended is not None
    assert found.recovered is not None
    assert found.recovered >= found.ended
    assert found.redone == 2
    assert progress.rounds == 2


def test_what_differs_counts_as_lost(monkeypatch):
    one, two = TrainConfig(seed=1), TrainConfig(seed=2)
    left = {one: ([], {"w": b"abc"}), two: ([], {"w": b"abxy"})}
    monkeypatch.setattr(outcome, "timeless", left.get)
    assert outcome.lost_bytes(one, one) == 0
    assert outcome.lost_bytes(one, two) == 2


def test_the_tables_count(tmp_path):
    for job, lost in (("images", 0), ("text", 7)):
        with to_jsonl(tmp_path / f"{job}-2.jsonl") as log:
            log.write("run", config={"job": job, "processes": 2})
            shared = {"process": 0, "named": True, "redone": 3}
            log.write("fault", fault="cut", ended=2.0, recovered=None, **shared)
            log.write("fault", fault="killed", ended=4.0, recovered=9.0, **shared)
            log.write("result", lost_bytes=lost)
    text = report.report(tmp_path)
    for row in (
        "| text | 2 | 2 | 2 | 2 | 3.0, 4.0 (of 2) | 9.0, 9.0 (of 1) | 6 | 1 | 0 | 7",
        "| all | | 4 | 4 | 4 | 3.0, 4.0 (of 4) | 9.0, 9.0 (of 2) | 12 | 2 | 1 | 7",
        "| cut | 2 | 2 | 2 | 2.0, 2.0 (of 2) | - | 6 |",
        "| slowed | 0 | 0 | 0 | - | - | 0 |",
    ):
        assert row in text
