"""The study of streamed exchanges, on a small scale."""

import dataclasses
import json

import numpy as np
import pytest

from cocod_jax.observe.loggers import read_jsonl, to_jsonl
from experiments import data
from experiments.config import Measured
from experiments.streaming import __main__ as study
from experiments.streaming import mlp, report, results, scale
from experiments.streaming.config import (
    COMPARED,
    StreamingConfig,
    mlp_runs,
    resnet_runs,
)
from experiments.streaming.quadratic import quadratic_run
from experiments.streaming.results import Cell, Setting, holm, verdicts

PNG = b"\x89PNG\r\n\x1a\n"
CONFIG = StreamingConfig(
    periods=(4,),
    partitions=("by_class",),
    optimizers=("sgd",),
    seeds=(0, 1),
    sgd_rates=(0.1, 1e20),
    steps=60,
    hidden=4,
)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A study that has run."""
    config = dataclasses.replace(CONFIG, out=tmp_path_factory.mktemp("streaming"))
    study.main(config)
    return config


def test_the_study_leaves_logs_tables_and_a_figure(config):
    for run in [*mlp_runs(config), quadratic_run(config)]:
        assert read_jsonl(run.log)["end"] == [{"status": "finished"}]
    assert (config.out / "sgd.png").read_bytes().startswith(PNG)
    text = (config.out / "tables.md").read_text()
    assert text == report.report(config)
    assert text.count("| sgd | by_class | 4 |") == 4  # three measures, and the drift
    assert "diverged" not in text  # the larger rate diverges, and is not the best


def test_what_is_finished_is_not_repeated(config, monkeypatch):
    trained = []
    monkeypatch.setattr(mlp, "train", lambda run, log: trained.append(run))
    monkeypatch.setattr(study.quadratic, "drift", lambda *args: trained.append(args))
    text = (config.out / "tables.md").read_text()
    study.main(config)
    assert not trained
    assert (config.out / "tables.md").read_text() == text
    others = dataclasses.replace(config, batch_size=4)
    assert not any(study.finished(run) for run in mlp_runs(others))


def test_the_best_rate_is_that_of_the_least_training_loss(config):
    cells = results.cells_of(config)
    assert set(name for _, name in cells) == set(COMPARED)
    for cell in cells.values():
        assert cell.rate == 0.1
        assert cell.values["train_loss"].shape == (2,)
        assert cell.curve is not None
        assert cell.curve.shape == (config.steps // 15,)


def test_all_algorithms_meet_the_same_network_and_batches():
    first, *others = mlp_runs(CONFIG)
    for run in others:
        np.testing.assert_array_equal(mlp.batches(run), mlp.batches(first))
    chosen = mlp.batches(first)
    assert chosen.shape == (4, 15, 2, 10, CONFIG.batch_size)
    labels = mlp.digits()["train"][1][chosen]
    # Every worker has a class of its own.
    np.testing.assert_array_equal(np.ptp(labels, axis=(0, 1, 2, 4)), 0)
    assert len(np.unique(labels)) == 10
    params = mlp.initial(first)
    assert params["hidden"].shape == (2, 10, 64, 4)
    np.testing.assert_array_equal(np.ptp(params["hidden"], axis=1), 0)
    assert (params["hidden"][0] != params["hidden"][1]).any()


def test_the_digits_are_those_of_the_data_set():
    images, labels = mlp.digits()["test"]
    loaded = data.load("digits")
    np.testing.assert_array_equal(labels, loaded.test_labels)
    whole = images.reshape(-1, 8, 8, 1).repeat(4, axis=1).repeat(4, axis=2)
    np.testing.assert_allclose(255 * whole, loaded.test_images, atol=1e-4)


def test_a_worker_sends_this_many_bytes(config):
    run = {r.algorithm: r for r in mlp_runs(config)}
    sent = {n: read_jsonl(r.log)["sent"][0]["bytes_per_step"] for n, r in run.items()}
    sizes = [64 * 4, 4, 4 * 10, 10]
    assert sent["ssgd"] == 4 * sum(sizes)
    assert sent["cocod"] == sent["local_sgd"] == sum(sizes)
    assert sent["streamed"] == 4 * (64 + 1 + 10 + 3)  # 10 numbers make 4 pieces of 3


def test_workers_drift_as_expected(config):
    records = read_jsonl(quadratic_run(config).log)["deviation"]
    assert {r["algorithm"] for r in records} == set(COMPARED) - {"ssgd"}
    for record in records:
        # 16 runs of 2,048 steps: about 1 % of noise.
        measured = np.mean(record["deviations"])
        assert measured == pytest.approx(record["expected"], rel=0.05), record


def test_resnet_runs_once_for_each_kind_split_and_seed():
    runs = resnet_runs(dataclasses.replace(CONFIG, model="resnet18"))
    assert len(runs) == 5 * 2
    assert len({run.log for run in runs}) == len(runs)
    merges = [(run.algorithm, run.delay) for run in runs[::2]]
    whole = [("ssgd", None), ("local_sgd", None), ("cocod", 1), ("cocod", None)]
    assert merges == [*whole, ("streamed", None)]


def test_resnet_is_reported_from_the_logs_of_its_runs(tmp_path, monkeypatch):
    config = dataclasses.replace(CONFIG, model="resnet18", out=tmp_path)

    def train_all(runs):
        for run in runs:
            with to_jsonl(run.log) as log:
                late = 0.8 if run.algorithm == "cocod" else 1.0
                accuracy = late * (0.9 + run.seed / 100)
                log.write("epoch", epoch=1, test_accuracy=0.1, test_loss=9.0)
                log.write("epoch", epoch=2, test_accuracy=accuracy, test_loss=0.5)

    monkeypatch.setattr(study, "train_all", train_all)
    study.main(config)
    text = (tmp_path / "tables.md").read_text()
    row = "| sgd | by_class | 4 | 90.50 ± 0.71 | 90.50 ± 0.71 | 72.40 ± 0.57"
    assert row in text
    assert "9.000" not in text
    assert "Drift" not in text


def test_holm_rejects_step_by_step():
    # 0.05 / 4, 0.05 / 3, 0.05 / 2: the third fails, and the fourth with it.
    chances = {"a": 0.04, "b": 0.001, "c": 0.03, "d": 0.016}
    assert holm(chances) == {"b", "d"}
    assert holm({"a": 0.049}) == {"a"}
    assert holm({"a": 0.02, "b": 0.03}) == {"a", "b"}
    assert not holm({"a": 0.03, "b": 0.03})


def test_verdicts_go_by_pairs_of_seeds():
    setting, seeds = Setting("sgd", "iid", 4), np.arange(8.0)
    spread = np.array([0, 1, 0, 1, 0, 1, 0, 1.5]) / 10
    streamed = 1 + seeds  # seeds differ far more than the algorithms
    losses: dict[Measured, np.ndarray] = {
        "streamed": streamed,
        "ssgd": streamed * np.exp(-0.5 - spread),
        "cocod": streamed * np.exp(0.5 + spread),
        "local_sgd": streamed * np.exp(spread - spread.mean()),
        "just_in_time": np.full(8, np.nan),
    }
    cells = {
        (setting, name): Cell(rate=0.1, values={"train_loss": values})
        for name, values in losses.items()
    }
    found = {name: v for (_, name), v in verdicts(cells, "train_loss").items()}
    assert found["ssgd"] == (True, True)
    assert found["cocod"] == found["just_in_time"] == (False, True)
    assert not found["local_sgd"].told_apart


def test_equal_runs_are_not_told_apart():
    setting, same = Setting("sgd", "iid", 4), {"test_accuracy": np.full(3, 0.9)}
    names: tuple[Measured, ...] = ("streamed", "cocod")
    cells = {(setting, name): Cell(0.1, same) for name in names}
    assert verdicts(cells, "test_accuracy")[setting, "cocod"] == (False, False)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"steps": 482}, "steps=482 must be a multiple of 15"),
        ({"periods": (7,)}, "steps=480 must be a multiple of 7"),
        ({"seeds": (0,)}, "must be two or more"),
        ({"workers": 0}, "workers=0"),
        ({"sgd_rates": (0.0,)}, r"sgd_rates\[0\]=0.0"),
    ],
)
def test_errors_name_the_option(options, match):
    with pytest.raises(ValueError, match=match):
        StreamingConfig(**options)


# At scale


@pytest.mark.parametrize("network", scale.NETWORKS)
@pytest.mark.parametrize("parameters", [1e7, 1e9])
def test_the_clock_at_scale_has_its_closed_form(network, parameters):
    result = scale.compare(scale.ScaleConfig(), network, parameters, 512, 0.0)
    period, link = result["period"], scale.NETWORKS[network]
    whole = max(scale.STEP_SECONDS, link.seconds(4 * parameters, 512) / period)
    piece = link.seconds(4 * parameters / period, 512)
    assert result["whole_seconds_per_step"] == pytest.approx(whole)
    streamed = max(scale.STEP_SECONDS, piece)
    assert result["streamed_seconds_per_step"] == pytest.approx(streamed)


def test_the_study_at_scale_draws_its_log(tmp_path, monkeypatch):
    config = scale.ScaleConfig(
        workers=(2, 8), parameters=(1e6, 1e9), leaves=(2,), measured=64, out=tmp_path
    )
    monkeypatch.setattr(scale, "start_devices", lambda workers: None)
    programs = [{"leaves": 2, "step": name} for name in ("local", "streamed")]
    monkeypatch.setattr(scale, "measure", lambda *args: iter(programs))
    scale.main(config)
    log = tmp_path / "scale.jsonl"
    records = read_jsonl(log)
    assert len(records["clock"]) == len(scale.NETWORKS) * 2 * 2 * 2
    assert records["program"] == programs
    assert (tmp_path / "scale.png").read_bytes().startswith(PNG)
    rest = [{"kind": "run"}, {"kind": "end"}]
    log.write_text("\n".join(map(json.dumps, rest)))
    with pytest.raises(ValueError, match="has no clock to draw"):
        scale.figure(log, tmp_path / "scale.png")


def test_pieces_cost_a_program_something():
    local, streamed = scale.measure(parameters=64, leaves=2, repeats=1)
    assert (local["step"], streamed["step"]) == ("local", "streamed")
    assert streamed["instructions"] > local["instructions"]
    assert streamed["bytes_accessed"] > local["bytes_accessed"]
    assert len(streamed["repeats"]) == 1
