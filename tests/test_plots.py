"""Figures from logs: what is drawn, and in which colours."""

import ast
import re
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest

import cocod_jax as cj
from cocod_jax import plots, style, timeline

PACKAGE = Path(cj.__file__).parent


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def write(path, *, rounds=4, epochs=0, level=1.0, **config):
    """A log whose loss is ``level`` / step, and whose accuracy is level - 1 / epoch."""
    with cj.loggers.to_jsonl(path) as log:
        log.write("run", config=config)
        for step in range(1, rounds + 1):
            log(8 * step, {"loss": level / step, "distance": 0.0 if step == 1 else 0.1})
        for epoch in range(1, epochs + 1):
            log.write("epoch", epoch=epoch, test_accuracy=level - 1 / epoch)
    return path


def lines(axis):
    return {line.get_label(): line for line in axis.get_lines()}


def test_a_folder_is_a_curve_for_each_log(tmp_path):
    write(tmp_path / "b.jsonl", level=3.0)
    write(tmp_path / "a.jsonl")
    (tmp_path / "notes.txt").write_text("no log")
    figure = plots.curves(tmp_path)
    loss, distance = figure.axes
    assert list(lines(loss)) == list(lines(distance)) == ["a", "b"]
    x, y = lines(loss)["b"].get_data()
    np.testing.assert_array_equal(x, [8, 16, 24, 32])
    np.testing.assert_allclose(y, 3 / np.arange(1, 5))
    assert (loss.get_xlabel(), loss.get_ylabel()) == ("local steps", "training loss")
    # The distance is 0 once, before the workers differ: there the curve has a gap.
    assert loss.get_yscale() == distance.get_yscale() == "log"
    assert not np.isfinite(distance.get_yaxis().get_transform().transform([0.0]))
    (legend,) = [axis.get_legend() for axis in figure.axes if axis.get_legend()]
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b"]


def test_logs_of_one_name_in_two_folders_are_two_curves(tmp_path):
    logs = [tmp_path / folder / "seed0.jsonl" for folder in "ab"]
    for log in logs:
        write(log)
    figure = plots.curves(logs)
    assert list(lines(figure.axes[0])) == ["a/seed0", "b/seed0"]
    deep = [tmp_path / folder / "logs" / "seed0.jsonl" for folder in "ab"]
    for log in deep:
        write(log)
    figure = plots.curves(deep)
    assert list(lines(figure.axes[0])) == ["a/logs/seed0", "b/logs/seed0"]


def test_curves_that_count_otherwise_are_not_drawn_together(tmp_path):
    write(tmp_path / "a.jsonl", epochs=3)
    with cj.loggers.to_jsonl(tmp_path / "b.jsonl") as log:
        log(8, {"test_accuracy": 0.5})
    with pytest.raises(ValueError, match=r"epochs in .*a.* and local steps in .*b"):
        plots.curves(tmp_path, ["test_accuracy"])


def test_runs_of_other_steps_are_no_mean():
    runs = [{"round": [{"step": step, "loss": 1.0}]} for step in (4, 8)]
    _, ax = style.pyplot().subplots()
    with pytest.raises(ValueError, match="'both' have their 'loss' at different"):
        plots.curve(ax, runs, "loss", "both", "black")


def test_one_log_needs_no_legend(tmp_path):
    figure = plots.curves(write(tmp_path / "a.jsonl"), ["loss"])
    (axis,) = figure.axes
    assert axis.get_legend() is None


def test_equal_settings_become_a_mean_and_a_band(tmp_path):
    logs = [
        write(tmp_path / "1.jsonl", period=8, level=1.0),
        write(tmp_path / "2.jsonl", period=4),
        write(tmp_path / "3.jsonl", period=8, level=3.0, rounds=3),
    ]
    (axis,) = plots.curves(logs, ["loss"], by="period").axes
    assert list(lines(axis)) == ["period 8", "period 4"]
    x, y = lines(axis)["period 8"].get_data()
    # As long as the shorter of them.
    np.testing.assert_array_equal(x, [8, 16, 24])
    np.testing.assert_allclose(y, 2 / np.arange(1, 4))
    (band,) = axis.collections
    vertices = band.get_paths()[0].vertices
    assert vertices[:, 1].min() == pytest.approx(1 / 3)
    assert vertices[:, 1].max() == pytest.approx(3)


def test_algorithms_have_their_names_and_colours_in_their_order(tmp_path):
    for name in ("cocod", "mine", "pipe_sgd", "ssgd", "yours"):
        write(tmp_path / f"{name}.jsonl", algorithm=name)
    (axis,) = plots.curves(tmp_path, ["loss"], by="algorithm").axes
    drawn = {label: line.get_color() for label, line in lines(axis).items()}
    others = ["algorithm mine", "algorithm yours"]
    assert list(drawn) == ["S-SGD", "Pipe-SGD", "CoCoD-SGD", *others]
    assert len(set(drawn.values())) == 5
    assert drawn["S-SGD"] == style.BLACK
    assert drawn["CoCoD-SGD"] == style.VERMILION


def test_epochs_are_drawn_against_epochs_and_accuracies_in_percent(tmp_path):
    log = write(tmp_path / "a.jsonl", epochs=3)
    loss, accuracy = plots.curves(log, ("loss", "test_accuracy")).axes
    x, y = accuracy.get_lines()[0].get_data()
    np.testing.assert_array_equal(x, [1, 2, 3])
    np.testing.assert_allclose(y, [0, 50, 200 / 3])
    assert (loss.get_xlabel(), accuracy.get_xlabel()) == ("local steps", "epochs")
    assert accuracy.get_ylabel().endswith("[%]")
    assert accuracy.get_yscale() == "linear"


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        ([3.0, 2.0, 1.0], "log"),
        ([0.0, 0.0, 0.0], "linear"),
        ([-0.5, 0.5, 0.1], "linear"),
        ([np.nan, 2.0, np.inf], "log"),
        ([np.nan, np.nan, np.nan], "linear"),
    ],
)
def test_the_scale_fits_the_values(values, scale, tmp_path):
    path = tmp_path / "a.jsonl"
    with cj.loggers.to_jsonl(path) as log:
        for step, value in enumerate(values):
            log(step, {"own_value": value})
    (axis,) = plots.curves(path, ["own_value"]).axes
    assert axis.get_yscale() == scale
    assert axis.get_ylabel() == "own value"
    axis.figure.canvas.draw()


def test_a_value_may_be_in_some_records_only(tmp_path):
    path = tmp_path / "a.jsonl"
    with cj.loggers.to_jsonl(path) as log:
        for step in range(6):
            log(step, {"loss": 1.0} | ({"test_accuracy": 0.5} if step % 3 == 2 else {}))
    (axis,) = plots.curves(path, ["test_accuracy"]).axes
    np.testing.assert_array_equal(axis.get_lines()[0].get_xdata(), [2, 5])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda log: plots.curves(log.parent / "sub"), r"logs=.*holds no \.jsonl file"),
        (lambda log: plots.curves([]), r"logs=\[\] holds no"),
        (lambda log: plots.curves(log, []), "values is empty"),
        (lambda log: plots.curves(log, ["los"]), r"a\.jsonl has no 'los' .*'loss'"),
        (lambda log: plots.curves(log, by="perio"), r"by='perio' .*a\.jsonl.*period"),
    ],
)
def test_what_cannot_be_drawn_is_named(call, message, tmp_path):
    (tmp_path / "sub").mkdir()
    with pytest.raises(ValueError, match=message):
        call(write(tmp_path / "a.jsonl", period=8))
    assert not plt.get_fignums()


def write_timelines(path, *records):
    """A log of timelines, each a name, a worker, its intervals and further fields."""
    with cj.loggers.to_jsonl(path) as log:
        for name, worker, intervals, fields in records:
            fields = {"name": name, "worker": worker, "intervals": intervals} | fields
            log.write("timeline", **fields)
    return path


def spans(axis):
    """The bars of an axis by their colour: [start, end, top, bottom]."""
    found = {}
    for bars in axis.collections:
        colour = matplotlib.colors.to_hex(bars.get_facecolor()[0]).upper()
        boxes = [path.get_extents() for path in bars.get_paths()]
        corners = [[box.x0, box.x1, box.y0, box.y1] for box in boxes]
        found.setdefault(colour, []).extend(corners)
    return found


def test_a_timeline_has_two_lanes_for_each_worker(tmp_path):
    log = write_timelines(
        tmp_path / "log.jsonl",
        ("a", 0, [["compute", 101, 103], ["exchange", 102, 104]], {}),
        ("a", 1, [["exchange", 100, 101], ["compute", 101, 102]], {}),
        ("b", 0, [["compute", 200, 201], ["compute", 201, 203]], {}),
        ("b", 1, [], {}),
    )
    (axis,) = plots.timelines(log).axes
    drawn = spans(axis)
    # Each name starts at 0, by its first worker; two workers and a gap are 2.6 high.
    np.testing.assert_allclose(
        drawn[style.COMPUTE],
        [[1, 3, 0, 0.55], [1, 2, 1, 1.55], [0, 1, 2.6, 3.15], [1, 3, 2.6, 3.15]],
    )
    np.testing.assert_allclose(
        drawn[style.EXCHANGE], [[2, 4, 0.55, 0.8], [0, 1, 1.55, 1.8]]
    )
    labels = lambda minor: [
        (label.get_text(), label.get_position()[1])
        for label in axis.get_yticklabels(minor=minor)
    ]
    assert labels(minor=False) == [("a", 0.9), ("b", pytest.approx(3.5))]
    places = [
        ("worker 0", 0.4),
        ("worker 1", 1.4),
        ("worker 0", 3.0),
        ("worker 1", 4.0),
    ]
    assert labels(minor=True) == places
    assert (axis.get_title(), axis.get_xlabel()) == ("", "seconds")
    assert axis.yaxis_inverted()
    (legend,) = axis.figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["computation", "exchange"]


def test_timelines_have_a_panel_for_each_log_and_value(tmp_path):
    one = [["compute", 0, 1]]
    for name in "ab":
        write_timelines(
            tmp_path / f"{name}.jsonl",
            ("x", 0, one, {"rate": "fast"}),
            ("x", 0, one, {"rate": "slow"}),
        )
    write_timelines(tmp_path / "a.jsonl", ("x", 0, one, {}), ("y", 0, one, {}))
    titles = lambda figure: [axis.get_title() for axis in figure.axes]
    assert titles(plots.timelines(tmp_path)) == ["a", "b"]
    figure = plots.timelines(tmp_path / "b.jsonl", by="rate")
    assert titles(figure) == ["fast", "slow"]
    assert all(len(axis.collections) == 2 for axis in figure.axes)
    figure = plots.timelines([tmp_path / "b.jsonl"] * 2, by="rate")
    assert titles(figure) == ["b, fast", "b, slow"] * 2


@pytest.mark.parametrize(
    ("fields", "by", "message"),
    [
        (None, None, r"log\.jsonl has no record of the kind 'timeline'"),
        ({"worker": 0, "intervals": []}, None, r"a timeline without \['name'\]"),
        (
            {"name": "a", "worker": 0, "intervals": [["compute", 0]]},
            None,
            r"the interval \['compute', 0\].* has to be \[lane, start, end\]",
        ),
        (
            {"name": "a", "worker": 0, "intervals": [["idle", 0, 1]]},
            None,
            r"\['idle'\]; a lane is one of \['compute', 'exchange'\]",
        ),
        (
            {"name": "a", "worker": 0, "intervals": []},
            "rate",
            "by='rate' is not in a timeline",
        ),
    ],
)
def test_a_timeline_that_lacks_something_is_not_drawn(fields, by, message, tmp_path):
    with cj.loggers.to_jsonl(tmp_path / "log.jsonl") as log:
        log.write("run", config={})
        if fields is not None:
            log.write("timeline", **fields)
    with pytest.raises(ValueError, match=message):
        plots.timelines(tmp_path, by=by)
    assert not plt.get_fignums()


@pytest.mark.parametrize("draw", [plots.curves, "timeline"])
def test_figures_say_what_they_need(draw, tmp_path, monkeypatch):
    log = write(tmp_path / "a.jsonl")
    clock = timeline.simulate(
        timeline.SSGD(), timeline.Compute(1.0, workers=2), 1.0, steps=4
    )
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"pip install 'cocod-jax\[plots\]'"):
        clock.plot() if draw == "timeline" else draw(log)


def test_logarithmic_axes_of_few_powers_of_ten_get_more_labels():
    _, axis = plt.subplots()
    axis.plot([1, 2], [0.5, 4.0])
    axis.set_yscale("log")
    style.tidy(axis)
    axis.figure.canvas.draw()
    shown = {label.get_text() for label in axis.get_yticklabels()}
    assert {"0.5", "1", "2"} <= shown
    assert not axis.spines["top"].get_visible()


def test_colours_differ_and_are_defined_in_one_place():
    assert len(set(style.OTHERS)) == len(style.OTHERS)
    for path in PACKAGE.rglob("*.py"):
        if path.name != "style.py":
            assert not re.search(r"#[0-9A-Fa-f]{6}\b|tab:\w+", path.read_text()), path


def test_the_backend_is_the_users():
    for path in PACKAGE.rglob("*.py"):
        called = {
            node.func.attr
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        }
        assert not called & {"show", "switch_backend"}, path
        assert "matplotlib.use" not in path.read_text(), path
