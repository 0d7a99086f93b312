"""The benchmark of overheads: what it runs, its tables."""

import jax
import pytest

from experiments.cluster import trace
from experiments.overhead import __main__ as overhead
from experiments.overhead.config import OverheadConfig
from experiments.overhead.jobs import mlp

CONFIG = OverheadConfig(period=2, seconds=0.0, repeats=1)


def test_every_program_takes_its_steps():
    programs = overhead.stepping(CONFIG, mlp(2, 4, 3))
    assert list(programs) == ["plain", "steps", "fused", "split"]
    for call in programs.values():
        assert overhead.seconds_per_step(CONFIG, call) > 0


@pytest.mark.parametrize("axis_name", [None, "workers"])
def test_the_plain_step_averages_over_an_axis_only(axis_name):
    job = mlp(1, 4, 3)
    step = overhead.plain_step(job, axis_name)
    args = (job.params, overhead.OPTIMIZER.init(job.params), None)
    axes = (None, None, None, 0)
    step = jax.vmap(step, axes, axis_name="workers")
    (((weight, _),), *_) = step(*args, job.draw(2))
    assert (weight[0] == weight[1]).all() == (axis_name is not None)


def test_every_program_compiles():
    names = []
    for name, function, args in overhead.compiling(CONFIG, mlp(1, 4, 3)):
        measured = overhead.compile_seconds(function, args)
        assert set(measured["stages"]) == set(trace.STAGES.values())
        assert sum(measured["stages"].values()) < measured["seconds"]
        names.append(name)
    assert names == ["plain", "step", "send", "merge", "round", "every"]


def test_the_tables_compare_within_one_turn():
    step = lambda program, *repeats: {
        "job": "MLP",
        "program": program,
        "seconds_per_step": 1.0,
        "repeats": repeats,
    }
    compiled = lambda program, seconds: {
        "leaves": 2,
        "program": program,
        "processor_seconds": seconds,
        "stages": {"partitioning": seconds / 2},
    }
    records = [step("plain", 1.0, 2.0), step("fused", 1.5, 2.0)]
    records += [compiled("plain", 2.0), compiled("merge", 3.0)]
    steps, compilation = overhead.tables(records)
    assert list(steps.columns[3].cells) == ["1.00, 1.00-1.00", "1.25, 1.00-1.50"]
    assert list(compilation.columns[3].cells) == ["1.00", "1.50"]
    parts = {column.header: list(column.cells) for column in compilation.columns}
    assert parts["partitioning"] == ["1.0", "1.5"]
