"""The study of the paper: its runs, its clock, its figures and its table."""

import dataclasses
import json
import re
from typing import Any

import pytest

from experiments import clock, logbook
from experiments.config import WITHOUT_INFLUENCE, TextConfig, TrainConfig
from experiments.figures import by_algorithm
from experiments.paper import __main__ as study
from experiments.paper import figures, report
from experiments.paper.config import SPEEDS, UNEQUAL, PaperConfig, equal, unequal
from experiments.sweep import BEFORE, finished, mean_and_spread

TC, TM, PERIOD = 0.5, 0.8, 4


@pytest.fixture
def overlap_log(tmp_path):
    """What the benchmark would log on a machine that follows the clock exactly."""
    alone = {"local steps": TC, "exchange": TM / PERIOD}
    ours = {
        "S-SGD": TC + TM,
        "Pipe-SGD": TM,
        "Local SGD": TC + TM / PERIOD,
        "CoCoD-SGD": TC,
        "CoCoD-SGD, just in time": TC,
    }
    pytorch = {"DDP": TC / 3 + TM, "local SGD": TC + TM / PERIOD}
    sides = {"ours": alone | ours, "PyTorch": alone | pytorch}
    records = [{"kind": "run", "config": {"workers": 2, "period": PERIOD}}]
    records += [
        {
            "kind": "result",
            "rate": "500mbit",
            "side": side,
            "algorithm": name,
            "seconds_per_step": each,
            "seconds_per_round": PERIOD * each,
            "delay": 2 if name.endswith("time") else None,
        }
        for side, seconds in sides.items()
        for name, each in seconds.items()
    ]
    path = tmp_path / "overlap.jsonl"
    path.write_text("\n".join(map(json.dumps, records)))
    return path


@pytest.fixture
def clocks(overlap_log):
    return clock.read_clocks(overlap_log)


def write_log(config, epochs=3):
    """A log as a run of this configuration would leave it."""
    run = {"kind": "run", "config": logbook.plain(config), "workers": 4}
    records: list[dict[str, Any]] = [run]
    for epoch in range(1, epochs + 1):
        records.append({"kind": "round", "step": 40 * epoch})
        records.append(
            {
                "kind": "epoch",
                "epoch": epoch,
                "train_loss": 1 / epoch,
                "test_accuracy": 0.9 + 0.01 * epoch + 0.001 * config.seed,
            }
        )
    records.append({"kind": "end", "status": "finished"})
    config.log.parent.mkdir(parents=True, exist_ok=True)
    config.log.write_text("\n".join(map(json.dumps, records)))
    return config.log


@pytest.fixture
def logs(tmp_path):
    config = PaperConfig(out=tmp_path)
    return {
        model: [
            write_log(equal(config, model, algorithm, seed))
            for algorithm in ("ssgd", "pipe_sgd", "local_sgd", "cocod")
            for seed in (0, 1)
        ]
        for model in ("resnet18", "vgg16")
    }


@pytest.fixture
def shares(tmp_path):
    config = PaperConfig(out=tmp_path)
    return {
        share: [
            write_log(unequal(config, share, algorithm, seed))
            for algorithm in UNEQUAL
            for seed in (0, 1)
        ]
        for share in figures.SHARES
    }


@pytest.mark.parametrize("side", ["ours", "PyTorch"])
def test_the_clock_predicts_what_it_was_made_from(overlap_log, side):
    """The start of the first pipeline and the end of the last one do not repeat."""
    own = clock.read_clocks(overlap_log, side)["500mbit"]
    for name, algorithm in own.algorithms.items():
        predicted = own.timeline(algorithm).seconds_per_step
        assert predicted == pytest.approx(own.measured[name], rel=0.01), name


def test_the_table_of_the_clock_has_every_algorithm(overlap_log):
    """Five rows of ours hold two predictions, all right to 0.1 % in this log."""
    rows = clock.table(overlap_log).splitlines()[2:]
    assert [len(re.findall(r"[+-]0\.[01]%", row)) for row in rows] == 5 * [2] + 2 * [1]
    assert {row.count("|") for row in rows} == {8}


def test_more_workers_share_the_ring(clocks):
    assert clocks["500mbit"].exchange_of(4) == pytest.approx(1.5 * TM)


def test_moves_between_devices_are_work_for_an_exchange(overlap_log):
    seconds = {
        "move to the exchange": 0.01,
        "move back": 0.02,
        "the core's work for an exchange": 0.04,
        "merge": 9.0,
    }
    parts = [
        {"kind": "part", "rate": rate, "name": name, "worker": i, "seconds": part}
        for name, part in seconds.items()
        for i in range(2)
        for rate in ("500mbit", "1gbit")
    ]
    with overlap_log.open("a") as log:
        log.write("\n" + "\n".join(map(json.dumps, parts)))
    (own,) = clock.read_clocks(overlap_log).values()
    assert own.busy == pytest.approx(0.07)


def test_more_workers_keep_the_core_as_busy(clocks):
    """A third of each exchange, which is hidden: the steps beside it get longer."""
    own = dataclasses.replace(clocks["500mbit"], busy=TM / 3)
    algorithm = own.algorithms["CoCoD-SGD"]
    for workers, exchange in ((1, 0.0), (2, TM), (4, 1.5 * TM)):
        timeline = own.timeline(algorithm, workers)
        expected = TC + exchange / 3 / PERIOD
        assert timeline.seconds_per_step == pytest.approx(expected, rel=0.01)


def test_a_log_without_results_has_no_clock(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"kind": "run", "config": {}}')
    with pytest.raises(ValueError, match="has no result"):
        clock.read_clocks(path)


def test_the_data_are_those_that_the_folder_has(tmp_path):
    chosen = lambda **options: equal(PaperConfig(**options), "vgg16", "ssgd", 0).data
    assert chosen() == "mnist5k"
    with pytest.raises(ValueError, match=r"neither cifar-10-binary\.tar\.gz or cif"):
        chosen(data_dir=tmp_path)
    (tmp_path / "cifar-100-binary.tar.gz").touch()
    assert chosen(data_dir=tmp_path) == "cifar100"
    (tmp_path / "cifar-10-batches-bin").mkdir()
    assert chosen(data_dir=tmp_path) == "cifar10"
    assert chosen(data_dir=tmp_path, data="cifar100") == "cifar100"
    with pytest.raises(ValueError, match="scale='paper' needs data_dir"):
        chosen(scale="paper")
    with pytest.raises(ValueError, match=r"data_dir=.* not for 'mnist5k'"):
        chosen(data_dir=tmp_path, data="mnist5k")


@pytest.fixture
def no_training(monkeypatch):
    fail = lambda runs: pytest.fail("trained first")
    monkeypatch.setattr(study, "train_all", fail)


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize("rates", [("1gbit",), ("500mbit", "1gbit")])
def test_rates_that_were_not_measured_are_an_error_at_once(
    rates, overlap_log, tmp_path
):
    config = PaperConfig(overlap=overlap_log, rates=rates, out=tmp_path)
    with pytest.raises(ValueError, match=r"rates=\(.*\) .* which has 500mbit"):
        study.main(config)


def test_a_study_without_rates_is_refused(overlap_log, tmp_path):
    with pytest.raises(ValueError, match="rates is empty"):
        PaperConfig(overlap=overlap_log, rates=(), out=tmp_path)


@pytest.mark.usefixtures("no_training")
def test_an_algorithm_that_was_not_measured_is_an_error_at_once(overlap_log, tmp_path):
    lines = overlap_log.read_text().splitlines()
    kept = [line for line in lines if '"Pipe-SGD"' not in line]
    overlap_log.write_text("\n".join(kept))
    config = PaperConfig(overlap=overlap_log, rates=("500mbit",), out=tmp_path)
    with pytest.raises(ValueError, match="no Pipe-SGD at 500mbit, but only S-SGD, L"):
        study.main(config)


def test_unequal_runs_differ_by_their_shares_only():
    config = PaperConfig()
    mine, other = (
        unequal(config, share, "ssgd", 0) for share in ("proportional", "equal")
    )
    assert mine.micro_batches == SPEEDS
    assert sum(SPEEDS) == sum(other.micro_batches or ())
    same = {"micro_batches": other.micro_batches, "out": other.out}
    assert dataclasses.replace(mine, **same) == other


def test_the_number_of_workers_does_not_depend_on_the_devices():
    for scale, workers in (("cpu", 4), ("paper", 16)):
        config = PaperConfig(scale=scale, data="mnist5k")
        assert equal(config, "vgg16", "ssgd", 0).workers == workers
        run = unequal(config, "proportional", "cocod", 0)
        assert run.workers == len(run.micro_batches or ()) == workers


def test_a_run_on_all_devices_is_none_with_a_number_of_workers(tmp_path):
    run = TrainConfig(out=tmp_path)
    write_log(run)
    assert finished(run)
    assert not finished(dataclasses.replace(run, workers=4))


def test_a_finished_run_is_not_repeated(tmp_path):
    """Also when its configuration has tuples, which JSON has not."""
    run = unequal(PaperConfig(out=tmp_path), "proportional", "ssgd", 0)
    assert not finished(run)
    write_log(run)
    assert finished(run)


@pytest.mark.parametrize(
    "cut",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],  # in the middle of a line
        lambda text: text[: text.index("\n")],  # no end
        lambda text: text[text.index("\n") + 1 :],  # no beginning
        lambda text: text.replace('"config"', '"other"'),
        lambda text: text.replace('"period"', '"no_option_any_more"'),
        lambda text: "\0" + text,
        lambda text: "epoch,loss\n1,0.5\n",
    ],
)
def test_a_broken_log_is_not_finished(cut, tmp_path):
    run = TrainConfig(out=tmp_path)
    path = write_log(run)
    path.write_text(cut(path.read_text()))
    assert not finished(run)


def without(path, option):
    """Takes an option out of the configuration in a log."""
    run, *rest = path.read_text().splitlines()
    record = json.loads(run)
    del record["config"][option]
    path.write_text("\n".join([json.dumps(record), *rest]))


@pytest.mark.parametrize("field", dataclasses.fields(TrainConfig), ids=lambda f: f.name)
def test_a_log_is_of_a_run_if_it_says_so(field, tmp_path):
    """Today's defaults were not always those: an option that lacks proves nothing.

    The options that older runs did not have are an exception, and where files were.
    """
    run = TrainConfig(out=tmp_path)
    path = write_log(run)
    assert finished(run)
    without(path, field.name)
    assert finished(run) == (field.name in {*BEFORE, *WITHOUT_INFLUENCE})


@pytest.mark.parametrize("option", BEFORE)
def test_older_runs_did_what_the_option_would_have_to_say(option, tmp_path):
    other: Any = {
        **{"micro_batches": (2, 1), "nesterov": False, "optimizer": "adamw"},
        "numbers": "int8",
    }
    images = TrainConfig(out=tmp_path, **other)
    run = TextConfig(out=tmp_path) if option == "task" else images
    path = write_log(run)
    without(path, option)
    assert not finished(run)


def test_one_run_has_no_spread():
    runs = [{"epoch": [{"test_accuracy": a}]} for a in (0.9, 0.92)]
    assert mean_and_spread(runs) == "91.00 ± 1.41"
    assert mean_and_spread(runs[:1]) == "90.00"


def test_slow_workers_hold_up_equal_shares(clocks, shares):
    """Speeds 3, 2, 2, 1: an equal share takes the slowest twice the mean's time.

    Four workers on a ring exchange for half as long again as two.
    """
    seconds = {
        (share, name): figures.unequal_seconds(clocks["500mbit"], runs)
        for share, paths in shares.items()
        for name, runs in by_algorithm(paths).items()
    }
    for share, slowest in (("equal", 2 * TC), ("proportional", TC)):
        for name, step in (
            ("ssgd", slowest + 1.5 * TM),
            ("local_sgd", slowest + 1.5 * TM / PERIOD),
            ("cocod", slowest),
        ):
            assert seconds[share, name] == pytest.approx(40 * step, rel=0.01)


def test_figures_and_tables_come_from_logs(clocks, logs, shares, tmp_path):
    out = tmp_path / "figure.png"
    for draw in (
        lambda: figures.learning(logs, clocks, out),
        lambda: figures.speedup(clocks, out),
        lambda: figures.timelines(clocks["500mbit"], out),
        lambda: figures.unequal(shares, clocks["500mbit"], out),
    ):
        draw()
        assert out.stat().st_size > 1000
        out.unlink()
    text = report.report(logs, shares, clocks)
    assert "| vgg16 | 93.05 ± 0.07 | 93.05 ± 0.07 |" in text
    assert "| vgg16 | +0.0, +0.0; +0.00 | +0.0, +0.0; +0.00 |" in text
    assert "| 500mbit | 2, measured | 1.60 | 2.60 x | 1.60 x | 1.40 x | |" in text
    assert "| 500mbit | 2, clock | 1.60 | 2.60 x | 1.60 x | 1.40 x | 1.93 x |" in text
    assert "| Local SGD, shares in proportion | 93.05 ± 0.07 | 32.0 |" in text


def test_an_unfinished_run_is_not_drawn(logs, clocks, tmp_path):
    logs["vgg16"][0].write_text('{"kind": "run", "config": {"algorithm": "ssgd"}}')
    with pytest.raises(ValueError, match="no finished epoch"):
        figures.learning(logs, clocks, tmp_path / "figure.png")


def test_a_folder_of_logs_may_move(tmp_path):
    run = TrainConfig(out=tmp_path / "here")
    moved = dataclasses.replace(run, out=tmp_path / "there")
    write_log(run)
    run.log.parent.rename(moved.log.parent)
    assert finished(moved)
    assert not finished(run)
