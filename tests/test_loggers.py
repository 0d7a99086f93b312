"""Metrics as numbers, and the files that they go to."""

import csv
import json
import math
import sys
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import cocod_jax as cj
from cocod_jax import loggers
from cocod_jax.observe.loggers import read_jsonl

RESULTS = Path(__file__).parent.parent / "experiments" / "results"


def metrics(dtype=np.float32, **fields):
    """A round's metrics, of two workers and three local steps."""
    values = {
        "loss": [[1, 2, 3], [4, 5, 6]],
        "grad_norm": [[1, 1, 1], [1, 1, 9]],
        "distance": [2, 4],
        "progress_norm": [1, 3],
        "alignment": [-1, 0.5],
    }
    return cj.RoundMetrics(
        **{name: jnp.array(value, dtype) for name, value in (values | fields).items()}
    )


def test_scalars_of_unequal_workers_are_weighted():
    plain, weighted = loggers.scalars(metrics()), loggers.scalars(metrics(), (3, 1))
    loss = np.asarray(metrics().loss, np.float64).mean(axis=1)
    assert weighted["loss"] == pytest.approx(loss @ [0.75, 0.25])
    assert weighted["loss"] != plain["loss"]
    assert weighted["grad_norm_max"] == plain["grad_norm_max"]
    with pytest.raises(ValueError, match=r"weights has 3 entries.* 2 workers"):
        loggers.scalars(metrics(), (1, 2, 3))


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_scalars_are_means_over_workers_and_steps_and_the_largest(dtype):
    found = loggers.scalars(metrics(dtype))
    assert found == {
        "loss": 3.5,
        # bfloat16 would round the sum of these to 2.328.
        "grad_norm": pytest.approx(14 / 6),
        "distance": 3,
        "progress_norm": 2,
        "alignment": -0.25,
        "grad_norm_max": 9,
        "distance_max": 4,
    }
    assert {type(value) for value in found.values()} == {float}


@pytest.mark.parametrize("to", [loggers.to_jsonl, loggers.to_csv])
def test_the_count_of_a_state_is_a_count(to, tmp_path):
    with to(tmp_path / "log") as log:
        log(jnp.array(8, jnp.int32), {"loss": 0.5})
    assert "8" in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    "to", [loggers.to_jsonl, loggers.to_csv, loggers.to_tensorboard]
)
def test_metrics_themselves_are_refused(to, tmp_path):
    given: Any = metrics()
    with (
        to(tmp_path / "log") as log,
        pytest.raises(
            TypeError, match=r"scalars is a RoundMetrics, .*scalars\(metrics"
        ),
    ):
        log(8, given)


def test_what_is_not_finite_stays_visible():
    found = loggers.scalars(
        metrics(loss=[[1, 2, 3], [4, 5, np.nan]], distance=[1, np.inf])
    )
    assert math.isnan(found["loss"])
    assert found["distance"] == found["distance_max"] == math.inf
    assert math.isfinite(found["grad_norm"])


def test_a_log_reads_back_by_kind_and_in_order(tmp_path):
    path = tmp_path / "new" / "folder" / "log.jsonl"
    with loggers.to_jsonl(path) as log:
        log.write("run", config={"epochs": 2})
        for step in range(3):
            log(step, {"loss": 0.1 * step})
            # On disk at once: a run that is killed leaves what it has done.
            assert len(loggers.read_jsonl(path)["round"]) == step + 1
        log.write("end", status="finished")
    assert loggers.read_jsonl(str(path)) == {
        "run": [{"config": {"epochs": 2}}],
        "round": [{"step": s, "loss": 0.1 * s} for s in range(3)],
        "end": [{"status": "finished"}],
    }


def test_a_log_holds_what_is_not_finite(tmp_path):
    with loggers.to_jsonl(tmp_path / "log.jsonl") as log:
        log(1, {"loss": math.nan, "distance": math.inf})
    (record,) = loggers.read_jsonl(tmp_path / "log.jsonl")["round"]
    assert math.isnan(record["loss"])
    assert record["distance"] == math.inf


@pytest.mark.parametrize(
    "path", sorted(RESULTS.glob("*/*.jsonl")), ids=lambda p: p.stem
)
def test_logs_of_earlier_results_can_be_read(path):
    records = read_jsonl(path)
    lines = path.read_text().splitlines()
    assert json.loads(lines[0])["kind"] == "run"
    assert sum(map(len, records.values())) == len(lines)


def test_a_table_has_a_row_for_each_call(tmp_path):
    path = tmp_path / "new" / "log.csv"
    with loggers.to_csv(path) as log:
        for step in (8, 16):
            log(step, {"loss": 1 / step, "distance": math.nan})
            assert len(path.read_text().splitlines()) == 1 + step // 8
        # The order of names may change from call to call.
        log(24, {"distance": 2.0, "loss": 1.0})
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert [row["step"] for row in rows] == ["8", "16", "24"]
    assert [float(row["loss"]) for row in rows] == [1 / 8, 1 / 16, 1.0]
    assert [row["distance"] for row in rows] == ["nan", "nan", "2.0"]


@pytest.mark.parametrize("names", [["loss"], ["loss", "distance", "accuracy"]])
def test_a_table_keeps_its_columns(names, tmp_path):
    with loggers.to_csv(tmp_path / "log.csv") as log:
        log(8, {"loss": 1.0, "distance": 1.0})
        with pytest.raises(ValueError, match=r"the columns are \['loss', 'distance'\]"):
            log(16, dict.fromkeys(names, 1.0))


def test_tensorboard_gets_a_curve_for_each_name(tmp_path, monkeypatch):
    import tensorboardX

    folder = tmp_path / "run"
    added = []
    add_scalar = tensorboardX.SummaryWriter.add_scalar
    monkeypatch.setattr(
        tensorboardX.SummaryWriter,
        "add_scalar",
        lambda writer, *args: added.append(args) or add_scalar(writer, *args),
    )
    with loggers.to_tensorboard(folder) as log:
        for step in (8, 16):
            log(step, {"loss": 1 / step, "distance": 2.0})
    assert added == [
        *(("loss", 1 / 8, 8), ("distance", 2.0, 8)),
        *(("loss", 1 / 16, 16), ("distance", 2.0, 16)),
    ]
    (file,) = folder.iterdir()
    events = file.read_bytes()
    assert events.count(b"distance") == events.count(b"loss") == 2


def test_tensorboard_says_what_it_needs(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with (
        pytest.raises(ImportError, match=r"pip install 'cocod-jax\[tensorboard\]'"),
        loggers.to_tensorboard(tmp_path),
    ):
        pass


def test_any_function_is_a_logger(tmp_path):
    seen = []
    with loggers.to_jsonl(tmp_path / "log.jsonl") as log:
        for each in (log, lambda count, scalars: seen.append((count, scalars))):
            each(8, loggers.scalars(metrics()))
    (record,) = loggers.read_jsonl(tmp_path / "log.jsonl")["round"]
    assert seen == [(record.pop("step"), record)]
