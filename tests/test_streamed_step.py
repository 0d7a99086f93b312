"""The study of a streamed step from its command to its table, small."""

import jax
import numpy as np
import optax
import pytest

from cocod_jax.observe.loggers import read_jsonl
from experiments.streamed_step.__main__ import job_of, main, programs
from experiments.streamed_step.config import StreamedStepConfig

SMALL = StreamedStepConfig(
    models=("transformer",), period=2, model_width=8, sequences=1, repeats=2, seconds=0
)


@pytest.mark.matrix
def test_it_logs_every_program(tmp_path):
    config = StreamedStepConfig(**{**vars(SMALL), "out": tmp_path})
    main(config)
    log = read_jsonl(tmp_path / "streamed_step.jsonl")
    each = ["plain optimizer", "streamed optimizer", "streamed round", "whole round"]
    assert [r["program"] for r in log["result"]] == each
    for result in log["result"]:
        assert len(result["repeats"]) == len(result["core_ratios"]) == 2
        assert result["ratio"] == np.median(result["ratios"])
    assert log["end"] == [{"status": "finished"}]
    assert (tmp_path / "streamed_step.md").read_text().count("transformer") == 4


@pytest.mark.matrix
def test_the_programs_train_alike():
    """A worker alone: streamed or not, it takes the plain optimizer's steps."""
    made = programs(SMALL, job_of(SMALL, "transformer"), optax.sgd(0.1)).values()
    reached = [jax.tree.leaves(program.call()[0]) for program in made]
    # The two rounds have batches of their own. Parameters come first in both states.
    for one, other in ((0, 1), (2, 3)):
        for a, b in list(zip(reached[one], reached[other], strict=False))[:17]:
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
