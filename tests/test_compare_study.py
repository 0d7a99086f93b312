"""The study of the family, on a few algorithms and steps."""

import dataclasses

import numpy as np
import pytest

from cocod_jax.observe.loggers import read_jsonl
from experiments import sweep
from experiments.compare import __main__ as study
from experiments.compare import methods, report
from experiments.compare.config import CompareConfig
from tests.marks import needs_compiler

SOME = ("ssgd", "cocod", "moments", "sparse_loco")


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished study, and its table."""
    config = CompareConfig(
        seeds=(0, 1), rates=(0.1,), steps=120, out=tmp_path_factory.mktemp("family")
    )
    with pytest.MonkeyPatch.context() as patch:
        some = {name: methods.METHODS[name] for name in SOME}
        for module in (study, report):
            patch.setattr(module, "METHODS", some)
        patch.setattr(study.figure, "METHODS", some)
        study.main(config)
        return config, (config.out / "tables.md").read_text(), report.best(config)


@needs_compiler
def test_the_table_has_a_row_for_each(done):
    config, table, found = done
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| ")]
    assert [row[0].removeprefix("| ") for row in rows[1:]] == [
        methods.METHODS[name].title for name in SOME
    ]
    for name, row in zip(SOME, rows[1:], strict=True):
        accuracy = 100 * found[name, "iid"].accuracy
        assert len(accuracy) == 2
        assert accuracy.mean() > 50
        assert row[1].startswith(f"{accuracy.mean():.1f} ± ")
        assert (config.out / f"{name}.jsonl").exists()
    assert [row[4] for row in rows[1:]] == ["no", "yes", "in part", "yes"]
    assert (config.out / "accuracy.png").read_bytes().startswith(b"\x89PNG")


def test_bytes_are_those_of_the_exchanges(done):
    config, _, _ = done
    sent = {
        run.algorithm: read_jsonl(run.log)["sent"][0]["bytes_per_step"]
        for run in config.runs(SOME)
    }
    model = 4 * (64 * 32 + 32 + 32 * 10 + 10)
    assert sent["ssgd"] == model
    assert sent["cocod"] == model / 8
    # A piece of each leaf, rounded up, and a third of it for the momentum.
    assert sent["moments"] == pytest.approx(model / 8 * 4 / 3, rel=0.01)
    # The top 64 of each of three chunks, 4 bytes and 2 for the place.
    assert sent["sparse_loco"] == 3 * 64 * 6 / 8


def test_what_has_run_is_not_repeated(done):
    config, _, _ = done
    assert all(sweep.finished(run) for run in config.runs(SOME))


def test_what_cannot_be_told_apart_has_no_mark():
    accuracy = lambda *values: report.Best(0.1, np.array(values))
    found = {
        ("ssgd", "iid"): accuracy(0.9, 0.92, 0.91, 0.93),
        ("cocod", "iid"): accuracy(0.93, 0.9, 0.92, 0.91),
        ("streamed", "iid"): accuracy(0.8, 0.821, 0.809, 0.83),
    }
    assert report.told_apart(found) == {("streamed", "iid")}


def test_clocks_follow_what_travels(done):
    config, _, _ = done
    config = dataclasses.replace(config, jitter=0.0, latency=0.0)
    sent = {"ssgd": 9640.0, "cocod": 1205.0}
    at = lambda name, ratio: report.seconds(config, name, sent[name], ratio)
    assert at("ssgd", 2.0) == pytest.approx(3)
    assert at("cocod", 8.0) == pytest.approx(1)
    assert at("cocod", 16.0) == pytest.approx(2, rel=0.02)
    # Eight workers receive 24 bytes a number for the sum's 7 of 4 bytes each way.
    gathered = report.seconds(config, "sparse_loco", 9640.0 / 8, 8.0)
    assert gathered == pytest.approx(4, rel=0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": (0,)}, r"seeds=\(0,\) must be two"),
        ({"steps": 100}, "steps=100 must be a multiple of 15"),
        ({"rates": (0.0,)}, r"rates\[0\]=0.0"),
    ],
)
def test_what_it_refuses_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        CompareConfig(**options)
