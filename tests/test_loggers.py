"""Metrics as numbers, and the files that they go to."""

import csv
import json
import math
import sys
from decimal import Decimal
from fractions import Fraction
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


NUMBERS = [
    *(0.5, np.float16(0.5), np.float32(0.5), np.float64(0.5), np.array(0.5)),
    *(jnp.float32(0.5), jnp.bfloat16(0.5), np.asarray(0.5, jnp.bfloat16)),
    *(Fraction(1, 2), Decimal("0.5"), 2, np.int64(2), np.uint8(2), jnp.array(2)),
    *(True, np.bool_(True), jnp.array(True)),
]


@pytest.mark.parametrize("number", NUMBERS, ids=lambda n: f"{type(n).__name__}-{n}")
def test_numbers_of_any_kind_are_written_as_those_of_python(
    number, tmp_path, monkeypatch
):
    expected = {"0.5": 0.5, "1/2": 0.5, "2": 2, "True": True}[str(number)]
    path = tmp_path / "log"
    with loggers.to_jsonl(path) as log:
        log(number, {"loss": number})
        log.write("run", config={"nested": [{"rate": number}], "plain": number})
    first, second = map(json.loads, path.read_text().splitlines())
    assert first == {"kind": "round", "step": int(expected), "loss": expected}
    assert type(first["loss"]) is type(expected)
    config = {"nested": [{"rate": expected}], "plain": expected}
    assert second == {"kind": "run", "config": config}
    with loggers.to_csv(path) as log:
        log(number, {"loss": number})
    assert path.read_text() == f"step,loss\n{int(expected)},{expected}\n"
    import tensorboardX

    added = []
    monkeypatch.setattr(
        tensorboardX.SummaryWriter, "add_scalar", lambda _, *args: added.append(args)
    )
    with loggers.to_tensorboard(tmp_path / "curves") as log:
        log(number, {"loss": number})
    assert added == [("loss", expected, int(expected))]


def test_a_configuration_may_hold_arrays(tmp_path):
    shares = [np.array([0.25, 0.75]), jnp.array([[1, 2]]), np.array([], np.float32)]
    with loggers.to_jsonl(tmp_path / "log.jsonl") as log:
        log.write("run", shares=shares)
        with pytest.raises(TypeError, match=r"1\+2j.* a complex, and no real number"):
            log.write("run", root=np.complex64(1 + 2j))
    records = loggers.read_jsonl(tmp_path / "log.jsonl")
    assert records == {"run": [{"shares": [[0.25, 0.75], [[1, 2]], []]}]}


@pytest.mark.parametrize(
    "to", [loggers.to_jsonl, loggers.to_csv, loggers.to_tensorboard]
)
@pytest.mark.parametrize("value", [np.ones(2), jnp.ones([1, 1]), [0.5]])
def test_what_is_not_one_number_is_refused_by_name(to, value, tmp_path):
    with (
        to(tmp_path / "log") as log,
        pytest.raises(TypeError, match=r"scalars\['loss'\] has shape .* one number"),
    ):
        log(8, {"loss": value})


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


def killed(to, path, size):
    """A log of three records, of which this much came to the disk."""
    with to(path) as log:
        for step in (8, 16, 24):
            log(step, {"loss": 1 / step})
    path.write_bytes(path.read_bytes()[:size])


def test_a_log_torn_anywhere_can_be_read_and_continued(tmp_path):
    path = tmp_path / "log.jsonl"
    killed(loggers.to_jsonl, path, None)
    whole = path.read_bytes()
    for size in range(len(whole) + 1):
        killed(loggers.to_jsonl, path, size)
        # A record is whole with its last brace, also without the end of its line.
        steps = [8, 16, 24][: whole[:size].count(b"}")]
        read = lambda: [r["step"] for r in loggers.read_jsonl(path).get("round", [])]
        assert read() == steps
        with loggers.to_jsonl(path, append=True) as log:
            log(32, {"loss": 0.5})
        assert read() == [*steps, 32]
        assert path.read_bytes().count(b"\n") == len(steps) + 1


@pytest.mark.parametrize("last", [b"\xff\n", b'{"kind": "\xe2', b"\0\0\0", b'{"k\n'])
def test_a_last_line_may_be_torn_in_any_way(last, tmp_path):
    path = tmp_path / "log.jsonl"
    killed(loggers.to_jsonl, path, None)
    whole = path.read_bytes()
    path.write_bytes(whole + last)
    assert len(loggers.read_jsonl(path)["round"]) == 3
    with loggers.to_jsonl(path, append=True):
        assert path.read_bytes() == whole


@pytest.mark.parametrize("line", ['{"kind": "rou', "", '{"loss": 1}', "[1]"])
def test_any_other_line_that_is_no_record_is_named(line, tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text(f'{{"kind": "run"}}\n{line}\n{{"kind": "end"}}\n')
    with pytest.raises(ValueError, match=r"line 2 of .*log\.jsonl is no record"):
        loggers.read_jsonl(path)


def test_a_separator_of_lines_within_a_text_is_none_of_the_log(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"kind": "run", "note": "a\u2028b"}\n', "utf-8")
    assert loggers.read_jsonl(path) == {"run": [{"note": "a\u2028b"}]}


def test_a_table_torn_anywhere_can_be_continued(tmp_path):
    path = tmp_path / "log.csv"
    killed(loggers.to_csv, path, None)
    whole = path.read_bytes()
    for size in range(len(whole) + 1):
        killed(loggers.to_csv, path, size)
        # Half a number is a number too: a row is whole with the end of its line.
        lines = whole[:size].count(b"\n")
        with loggers.to_csv(path, append=True) as log:
            log(32, {"loss": 0.5})
        kept = b"".join(whole.splitlines(keepends=True)[: max(lines, 1)])
        assert path.read_bytes() == kept + b"32,0.5\n"


@pytest.mark.parametrize("to", [loggers.to_jsonl, loggers.to_csv])
def test_a_log_that_is_not_there_yet_begins(to, tmp_path):
    once, parts = tmp_path / "new" / "once", tmp_path / "new" / "parts"
    with to(once) as log:
        for step in (8, 16):
            log(step, {"loss": 0.5})
    for step in (8, 16):
        with to(parts, append=True) as log:
            log(step, {"loss": 0.5})
    assert once.read_text() == parts.read_text()
    with to(parts):
        assert parts.read_text() == ""


def test_a_table_is_continued_with_its_own_columns_only(tmp_path):
    path = tmp_path / "log.csv"
    with loggers.to_csv(path) as log:
        log(8, {"loss": 1.0, "distance": 1.0})
    with (
        loggers.to_csv(path, append=True) as log,
        pytest.raises(ValueError, match=r"the columns are \['loss', 'distance'\]"),
    ):
        log(16, {"loss": 1.0})
    for other in ("8,0.5\n", "\n8,0.5\n", '{"kind": "run"}\n'):
        path.write_text(other)
        with (
            pytest.raises(ValueError, match=r"log\.csv cannot be appended to"),
            loggers.to_csv(path, append=True),
        ):
            pass
        assert path.read_text() == other


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


class FakeWandb:
    """What of wandb a logger needs: no account, no network."""

    def __init__(self):
        self.options: list[dict[str, Any]] = []
        self.logged: list[tuple[dict[str, float], int]] = []
        self.finished, self.open = 0, False

    def init(self, **options):
        self.open = True
        self.options.append(options)
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.finished, self.open = self.finished + 1, False

    def log(self, scalars, step):
        assert self.open
        self.logged.append((dict(scalars), step))


def test_wandb_gets_a_curve_for_each_name(monkeypatch):
    fake: Any = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with loggers.to_wandb(project="mine", mode="offline") as log:
        count: Any = jnp.array(8)
        loss: Any = np.float32(0.5)
        several: Any = np.ones(2)
        log(count, {"loss": loss})
        with pytest.raises(TypeError, match=r"scalars\['loss'\] has shape"):
            log(16, {"loss": several})
    assert fake.options == [{"project": "mine", "mode": "offline"}]
    assert fake.logged == [({"loss": 0.5}, 8)]
    assert type(fake.logged[0][0]["loss"]) is float
    assert fake.finished == 1


def test_wandb_says_what_it_needs(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with (
        pytest.raises(ImportError, match=r"pip install 'cocod-jax\[wandb\]'"),
        loggers.to_wandb(),
    ):
        pass


def test_any_function_is_a_logger(tmp_path):
    seen = []
    with loggers.to_jsonl(tmp_path / "log.jsonl") as log:
        for each in (log, lambda count, scalars: seen.append((count, scalars))):
            each(8, loggers.scalars(metrics()))
    (record,) = loggers.read_jsonl(tmp_path / "log.jsonl")["round"]
    assert seen == [(record.pop("step"), record)]
