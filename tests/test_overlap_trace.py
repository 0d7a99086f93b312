"""Measured timelines: what the profiler saw, and the figures drawn from logs."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from experiments import scale
from experiments.cluster import trace
from experiments.cluster.trace import Interval
from experiments.overlap import figures


def profile(*events):
    """A profile of events (stats, start and duration in seconds) from second 100 on."""
    own = [
        SimpleNamespace(
            stats=stats.items(), start_ns=start * 1e9, duration_ns=last * 1e9
        )
        for stats, start, last in events
    ]
    return SimpleNamespace(
        planes=[
            SimpleNamespace(name="/host:CPU", lines=[SimpleNamespace(events=own)]),
            SimpleNamespace(
                name="Task Environment",
                stats=[("profile_start_time", 100_000_000_000)],
                lines=[],
            ),
        ]
    )


def test_the_programs_of_one_device_and_every_all_reduce_count():
    found = trace.intervals(
        profile(
            ({"run_id": 1, "device_ordinal": 0}, 0.0, 1.0),
            ({"run_id": 2, "device_ordinal": 1}, 0.0, 9.0),
            ({"run_id": 2, "hlo_op": "psum.7"}, 0.5, 2.0),
            ({"run_id": 1, "hlo_op": "fusion.1"}, 0.0, 0.5),
            ({}, 0.0, 9.0),
        ),
        device=0,
    )
    assert found == [Interval("compute", 100, 101), Interval("exchange", 100.5, 102.5)]


def test_devices_that_share_the_number_of_a_run_are_told_apart():
    """As jaxlib 0.12 writes it: one run of a program, and each operation's device."""
    on = lambda device, operation: {
        "run_id": 7,
        "device_ordinal": device,
        "hlo_op": operation,
    }
    found = trace.intervals(
        profile(
            (on(0, "fusion.1"), 0.0, 1.0),
            (on(0, "psum.2"), 1.0, 3.0),
            (on(1, "fusion.1"), 0.0, 2.0),
            (on(1, "psum.2"), 2.0, 2.0),
        ),
        device=0,
    )
    assert found == [
        Interval("compute", 100, 101),
        Interval("exchange", 101, 104),
        Interval("exchange", 102, 104),
    ]


def test_an_event_that_is_no_operation_belongs_to_the_program_of_its_run():
    found = trace.intervals(
        profile(
            ({"run_id": 1, "device_ordinal": 0}, 0.0, 5.0),
            ({"run_id": 1, "device_ordinal": 0, "hlo_op": "psum.2"}, 1.0, 3.0),
            ({"run_id": 1, "device_ordinal": 0, "hlo_op": "dot.1"}, 0.0, 1.0),
        ),
        device=0,
    )
    assert trace.hidden(found) == 0


def test_a_program_that_waits_for_its_all_reduce_does_not_compute_meanwhile():
    found = trace.intervals(
        profile(
            ({"run_id": 1, "device_ordinal": 0}, 0.0, 5.0),
            ({"run_id": 1, "hlo_op": "all-reduce.2"}, 1.0, 3.0),
        ),
        device=0,
    )
    assert found == [
        Interval("compute", 100, 101),
        Interval("exchange", 101, 104),
        Interval("compute", 104, 105),
    ]
    assert trace.hidden(found) == 0


def test_hidden_is_the_share_of_the_exchange_beside_computation():
    found = [
        Interval("compute", 0, 1),
        Interval("exchange", 0.5, 2.5),
        Interval("compute", 2, 5),
    ]
    assert trace.hidden(found) == pytest.approx((0.5 + 0.5) / 2)
    assert trace.hidden([Interval("compute", 0, 1)]) is None


def test_idle_is_the_share_without_computation():
    found = [Interval("compute", 1, 3), Interval("exchange", 2, 5)]
    assert trace.idle(found) == pytest.approx(0.5)


def test_the_profiler_of_this_jax_shows_programs_and_all_reduces():
    """The names and numbers that ``intervals`` looks for are the profiler's own."""
    both = jax.devices()[:2]
    average = jax.pmap(lambda x: lax.psum(x, "workers"), "workers", devices=both)
    compute = jax.pmap(lambda x: x @ x, devices=jax.devices()[2:3])
    large, square = jnp.ones([2, 2**22]), jnp.ones([1, 1024, 1024])

    def run():
        jax.block_until_ready((average(large), compute(square)))

    run()
    lanes = [each.lane for each in trace.record(run, jax.devices()[2])]
    assert lanes.count("compute") == 1
    assert "exchange" in lanes


def test_the_profiler_of_this_jax_names_operations():
    square = jax.random.normal(jax.random.key(0), [1024, 1024])
    run = lambda: jax.block_until_ready(jax.jit(lambda x: jnp.sort(x @ x))(square))
    run()
    seconds = trace.operations(run)
    assert any("sort" in kind for kind in seconds)
    assert list(seconds.values()) == sorted(seconds.values(), reverse=True)


def write(path, *records):
    path.write_text("\n".join(json.dumps(record) for record in records))
    return path


def test_figures_are_drawn_from_a_log(tmp_path):
    result = {"kind": "result", "rate": "1gbit", "side": "ours"}
    log = write(
        tmp_path / "overlap.jsonl",
        {
            **result,
            "algorithm": "local steps",
            "is_algorithm": False,
            "seconds_per_step": 1,
        },
        {
            **result,
            "algorithm": "S-SGD",
            "is_algorithm": True,
            "seconds_per_step": 2,
            "seconds_per_round": 8,
            "repeats": [7, 8, 12],
        },
        {
            "kind": "timeline",
            "rate": "1gbit",
            "name": "S-SGD",
            "worker": 0,
            "intervals": [["compute", 0, 1], ["exchange", 1, 2]],
        },
    )
    for draw in (figures.bars, figures.timelines):
        draw(log, tmp_path / "figure.png")
        assert (tmp_path / "figure.png").stat().st_size > 1000


def test_bars_have_a_panel_for_each_rate(tmp_path, monkeypatch):
    results = [
        {
            "kind": "result",
            "rate": f"{rate}mbit",
            "side": "ours",
            "algorithm": name,
            "is_algorithm": name == "S-SGD",
            "seconds_per_step": 1,
            "seconds_per_round": 4,
            "repeats": [4],
        }
        for rate in range(1, 5)
        for name in ("local steps", "S-SGD")
    ]
    drawn = []
    monkeypatch.setattr(figures.plt, "close", drawn.append)
    figures.bars(write(tmp_path / "log.jsonl", *results), tmp_path / "figure.png")
    (figure,) = drawn
    shown = [axis.get_title() for axis in figure.axes if axis.axison]
    assert shown == [f"{rate} Mbit/s links" for rate in range(1, 5)]


def test_the_scale_figure_is_drawn_from_a_log(tmp_path):
    sizes = {"k Tc": 1, "Tm": 1, "Local SGD": 2, "CoCoD-SGD": 1}
    log = write(
        tmp_path / "scale.jsonl",
        *(
            {"kind": "result", "workers": n, "parameters": p, **sizes}
            for n in (2, 4)
            for p in (10**6, 10**7)
        ),
    )
    scale.figure(log, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 1000


@pytest.mark.parametrize("draw", [figures.bars, figures.timelines, scale.figure])
def test_a_log_without_results_is_not_drawn(draw, tmp_path):
    log = write(tmp_path / "log.jsonl", {"kind": "run"})
    with pytest.raises(ValueError, match="to draw"):
        draw(log, tmp_path / "figure.png")
