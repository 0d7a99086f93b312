"""The study of the theory, on a small scale."""

import json

import jax
import numpy as np
import pytest

from cocod_jax import theory
from cocod_jax.observe.loggers import read_jsonl
from experiments.iterations import figures
from experiments.iterations.__main__ import main
from experiments.iterations.config import IterationsConfig
from experiments.iterations.quadratic import (
    DIMENSION,
    descend,
    draw_tilts,
    gradient_and_deviation,
    make_trainers,
    objective,
    problem_of,
)
from experiments.iterations.seconds import reached
from experiments.iterations.speedup import resampled_means, slopes, steps_to
from experiments.iterations.trainer import factory

ALGORITHMS = ("ssgd", "local_sgd", "cocod")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What a small study leaves."""
    config = IterationsConfig(
        workers=(1, 4),
        steps=4096,
        period=2,
        runs=32,
        noise=5.0,
        dissimilarity=1.5,
        drift_workers=4,
        drift_periods=(2,),
        drift_steps=1024,
        long_periods=(16,),
        clock_workers=4,
        clock_steps=64,
        clock_runs=2,
        rates=(0.4, 0.8),
        goal=1.5,
        most_workers=16,
        out=tmp_path_factory.mktemp("iterations"),
    )
    main(config)
    return config.out


@pytest.fixture(scope="module")
def records(folder):
    return read_jsonl(folder / "iterations.jsonl")


def test_the_study_finishes_and_draws_itself(folder, records):
    assert records["end"] == [{"status": "finished"}]
    assert next(iter(records)) == "run"
    for name in ("speedup", "drift", "seconds"):
        assert (folder / f"{name}.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("draw", "kind"),
    [
        (figures.speedup, "error"),
        (figures.speedup, "slope"),
        (figures.drift, "deviation"),
        (figures.drift, "cost"),
        (figures.seconds, "loss"),
        (figures.seconds, "clock"),
    ],
)
def test_nothing_is_drawn_without_results(draw, kind, records, tmp_path):
    log = tmp_path / "log.jsonl"
    rest = ({"kind": k, **r} for k in records if k != kind for r in records[k])
    log.write_text("\n".join(map(json.dumps, rest)))
    with pytest.raises(ValueError, match=f"has no {kind} to draw"):
        draw(log, tmp_path / "figure.png")
    assert not (tmp_path / "figure.png").exists()


def test_the_constants_are_those_of_the_problem():
    config = IterationsConfig()
    rng = np.random.default_rng(0)
    points = np.zeros([100, DIMENSION], np.float32)
    points[1:] = rng.normal(size=points[1:].shape)
    values = jax.vmap(objective)(points)
    assert values[0] == 0
    assert values[1:].min() > 0
    curvatures = np.linalg.eigvalsh(jax.jit(jax.vmap(jax.hessian(objective)))(points))
    assert np.abs(curvatures).max() == pytest.approx(1, rel=1e-5)
    assert curvatures.min() < 0  # not convex
    tilts = draw_tilts(problem_of(config, 8, dissimilarity=6.0), rng)
    np.testing.assert_allclose(tilts.sum(axis=0), 0, atol=1e-4)
    assert np.sum(tilts**2) / 8 == pytest.approx(36, rel=1e-5)


def test_deviation_and_gradient_are_squared_norms():
    x = np.zeros([2, DIMENSION], np.float32)
    x[:, 0] = -1, 3
    gradient, deviation = jax.jit(gradient_and_deviation)(x)
    assert deviation == 4
    assert gradient == pytest.approx((0.1 * 1 + np.sin(8.0) / 16) ** 2, rel=1e-4)


def test_the_error_stays_below_the_bound(records):
    assert {r["algorithm"] for r in records["error"]} == set(ALGORITHMS)
    bounded = [r for r in records["error"] + records["cost"] if r["bound"] is not None]
    assert len(bounded) > len(records["error"]) / 2
    for record in bounded:
        assert 0 < np.mean(record["errors"]) < record["bound"], record


def test_n_workers_need_n_times_fewer_steps(records):
    """Slope -1, with room for drift; the spread over 32 runs is 0.3, so 0.05 here."""
    assert len(records["slope"]) == 2 * len(ALGORITHMS)
    for record in records["slope"]:
        assert -1.3 < np.mean(record["of_steps"]) < -0.7, record


def test_steps_are_read_off_a_power_law():
    """An error of (N T)^(-1/2) is 0.01 after 10,000/N steps."""
    workers, lengths = [1, 4, 16], [256, 1024, 4096, 16384]
    needed = np.stack(
        [
            steps_to(0.01, lengths, (n * np.array(lengths)[:, None]) ** -0.5)
            for n in workers
        ]
    )
    np.testing.assert_allclose(needed[:, 0], [10_000, 2_500, 625])
    np.testing.assert_allclose(slopes(workers, needed), [-1])


def test_noise_does_not_shift_what_is_read_off():
    """4,000 runs with 100 % noise have a mean with 1.6 %, and steps with twice that.

    The tolerance is five times as much.
    """
    lengths = [256, 1024, 4096, 16384]
    noise = np.random.default_rng(1).gamma(1.0, 1.0, size=(1, 4, 4000))
    (means,) = resampled_means(np.array(lengths)[:, None] ** -0.5 * noise)
    np.testing.assert_allclose(steps_to(1 / 64, lengths, means), 4096, rtol=0.16)


def test_workers_drift_as_expected(records):
    """Within 10 %: the expectation is the leading order in a small learning rate."""
    assert [r["delay"] for r in records["deviation"]] == 2 * [0, 1, 2]
    for record in records["deviation"]:
        assert np.mean(record["deviations"]) == pytest.approx(
            record["expected"], rel=0.1
        ), record


@pytest.mark.parametrize("zeta", [0.0, 1.5])
def test_streamed_workers_drift_as_with_delay_1(zeta):
    """Within 5 %: 1,024 steps of 32 runs and 16 coordinates leave 1 % of noise."""
    config = IterationsConfig(noise=5.0)
    problem = problem_of(config, 4, zeta)
    trainers = make_trainers(
        {name: factory(name, 4, 1) for name in ("streamed", "just_in_time")}
    )
    found = descend(trainers, problem, rate=0.005, steps=1024, runs=32)
    (_, measured), (_, whole) = found["streamed"], found["just_in_time"]
    assert (measured != whole).all()  # alike on average, and not the same
    expected = lambda delay: theory.expected_deviation(
        problem, learning_rate=0.005, period=4, delay=delay
    )
    assert measured.mean() == pytest.approx(expected(1), rel=0.05)
    assert expected(2) > 1.2 * expected(1) > 1.2 * 1.2 * expected(0)


def test_long_periods_cost_and_delays_more(records):
    for zeta in (0.0, 1.5):
        costs = {
            record["algorithm"]: np.mean(record["relative_errors"])
            for record in records["cost"]
            if record["dissimilarity"] == zeta
        }
        assert 1.01 < costs["local_sgd"] < costs["cocod"]


def test_the_goal_is_reached_when_the_loss_stays_below():
    rows = lambda *losses: np.array(losses)[:, None]
    assert reached(rows(3, 1, 3, 1, 1), 2) == 3
    assert reached(rows(1, 1), 2) == 0
    assert reached(rows(1, 3), 2) is None
    assert reached(rows(1, np.nan), 2) is None


def test_the_clock_puts_losses_in_seconds(records):
    by_name = {(r["network"], r["algorithm"]): r for r in records["loss"]}
    for network in {network for network, _ in by_name}:
        own = {name: by_name[network, name] for name in figures.LINES}
        for record in own.values():
            assert len(record["seconds"]) == len(record["losses"][0]) == 16
            assert record["losses"][0][0] == pytest.approx(np.log(10), rel=1e-4)
            assert record["seconds"] == sorted(record["seconds"])
            assert record["seconds_to_goal"] > 0
        assert own["ssgd"]["losses"] == own["ssgd_backward"]["losses"]
        ends = {name: record["seconds"][-1] for name, record in own.items()}
        assert 60 * 0.2 < ends["cocod"] < ends["local_sgd"] < ends["ssgd"]
        assert ends["cocod"] <= ends["just_in_time"] < ends["local_sgd"]
    for record in records["training"]:
        first = [step for step in record["steps_to_goal"] if step is not None]
        chosen = record["rates"].index(record["best_rate"])
        assert record["steps_to_goal"][chosen] == min(first)
    workers = {r["workers"] for r in records["clock"]}
    assert workers == {1, 4, 16}
