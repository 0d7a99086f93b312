"""The study of a local step: what its processes answer, and its table."""

import json
import sys

import pytest

from experiments.local_step import __main__ as study
from experiments.local_step.config import LocalStepConfig
from experiments.local_step.xla_step import kinds_of

HLO = """
%fused_conv (p: f32[4]) -> f32[4] {
  %c = f32[4] convolution(%p, %p), dim_labels=b01f_01io->b01f
}

%fused_sum (p: f32[4]) -> f32[] {
  ROOT %r = f32[] reduce(%p, %p), to_apply=%add
}

ENTRY %main (a: f32[4]) -> f32[] {
  %ynn_fusion.1 = f32[4] fusion(%a), kind=kCustom, calls=%fused_conv
  ROOT %ynn_fusion = f32[] fusion(%ynn_fusion.1), kind=kCustom, calls=%fused_sum
}
"""


def test_fusions_of_convolutions_are_told_from_others():
    kind = kinds_of(HLO)
    assert kind("ynn_fusion.1") == "ynn_fusion of a convolution"
    assert kind("ynn_fusion") == "ynn_fusion"
    assert kind("copy.3") == "copy"


@pytest.mark.matrix
def test_xla_takes_steps_when_it_is_told_to(tmp_path):
    own = [sys.executable, "-m", "experiments.local_step.xla_step"]
    program = study.Program([*own, "--width=2", "--images=2", "--steps=1"], core=0)
    assert program.ask("step")["seconds_per_step"] > 0
    found = program.ask("profile")
    assert found["flop"] > 0
    assert found["operations"]
    program.close()
    with pytest.raises(ValueError, match="closed file"):
        program.ask("step")


def test_a_program_that_ends_is_an_error():
    program = study.Program([sys.executable, "-c", ""], core=0)
    with pytest.raises(RuntimeError, match="ended"):
        program.ask("step")
    program.close()


def test_every_variant_takes_turns_and_is_compared_within_one(monkeypatch):
    answers = iter(range(1, 100))

    class Fake:
        def ask(self, what):
            if what == "profile":
                return {"operations": {}}
            return {"seconds_per_step": float(next(answers))}

        def close(self):
            pass

    names = [*study.FLAGS, study.TORCH]
    monkeypatch.setattr(study, "programs", lambda config: dict.fromkeys(names, Fake))
    show = type("Show", (), {"now": lambda self, *words: None})()
    records = [*study.measure(LocalStepConfig(repeats=2), show)]
    assert [record["program"] for record in records] == names
    # The first answers are warm-ups; then every program once a turn.
    first = len(names) + 1
    assert records[0]["repeats"] == [first, first + len(names)]
    ratios = [*study.table(records).columns[2].cells]
    assert ratios[0] == "1.00"
    assert json.dumps(records)
