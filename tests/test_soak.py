"""The soak on a small scale, and what its report makes of a leak."""

from typing import Any

import numpy as np
import pytest

from cocod_jax.observe.loggers import read_jsonl, to_jsonl
from experiments.soak import load
from experiments.soak.__main__ import main
from experiments.soak.config import SoakConfig, SoakRun
from experiments.soak.report import report, samples
from tests.marks import seldom


def small(folder, **options):
    small: dict[str, Any] = {
        "load": "vmap",
        "workers": 2,
        "calls": 20,
        "samples": 10,
        "save_rounds": 0,
        "hidden": 2,
        "batch_size": 2,
    }
    return SoakRun(**small | options, out=folder)


def write(run, **columns):
    """A load's log, of a straight line for each number."""
    names = ("seconds", "core_seconds", "memory_bytes", "files", "threads", "arrays")
    with to_jsonl(run.log) as log:
        log.write("run", config={**vars(run), "out": str(run.out)})
        for i in range(run.samples):
            row = {name: columns.get(name, lambda i: 5.0)(i) for name in names}
            log.write("sample", calls=(i + 1) * run.calls // run.samples, **row)
        log.write("end", status="finished")


@pytest.mark.parametrize(
    "name", seldom(["checkpoints", "streamed", "json"], but=["checkpoints"])
)
def test_a_load_logs_what_it_holds(name, tmp_path):
    save_rounds = 10 if name == "checkpoints" else 0
    run = small(tmp_path, load=name, save_rounds=save_rounds)
    with to_jsonl(run.log) as log:
        load.soak(run, log)
    found = read_jsonl(run.log)["sample"]
    assert [sample["calls"] for sample in found] == [*range(2, 21, 2)]
    for sample in found:
        assert sample["memory_bytes"] > 1e6
        assert min(sample["files"], sample["threads"]) > 0
        assert sample["core_seconds"] > 0
    assert (found[-1]["loss"] < found[0]["loss"]) == (name != "json")


def test_a_leak_has_a_slope_and_a_slow_end_a_ratio(tmp_path):
    run = small(tmp_path, calls=1000, samples=100)
    noise = np.random.default_rng(0).normal(size=100)
    write(
        run,
        memory_bytes=lambda i: 1e8 + 20_000 * i + 1000 * noise[i],  # 10 calls a sample
        core_seconds=lambda i: 2.0 if i < 60 else 3.0,
        seconds=lambda i: 4.0,
    )
    found = samples(run)
    assert len(found.calls) == 90
    assert found.slope.value == pytest.approx(2000, rel=0.02)
    assert 0 < found.slope.error < 50
    assert found.slowed.value == pytest.approx(1.5)


def test_the_study_leaves_a_table_and_a_figure(tmp_path):
    """Loads whose logs are there are not repeated."""
    config = SoakConfig(many_rounds=100, loads=("vmap", "devices"), out=tmp_path)
    for run in config.runs():
        write(run)
    main(config)
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert lines[2].startswith("| rounds of vmap | 64 | 100 | 0.0 to 0.0 | 0 ± 0 |")
    assert lines[3].startswith("| rounds of many devices | 16 | ")
    assert (tmp_path / "soak.png").read_bytes().startswith(b"\x89PNG")
    assert report(config) == (tmp_path / "table.md").read_text()


def test_parts_must_be_equal(tmp_path):
    with pytest.raises(ValueError, match=r"samples=15 must be a multiple of 10"):
        SoakConfig(samples=15)
    with pytest.raises(ValueError, match=r"calls=21 must be a multiple of samples=10"):
        small(tmp_path, calls=21)
