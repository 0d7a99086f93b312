"""What the study of the theory refuses to start with."""

import pytest
import tyro

from experiments.iterations.config import IterationsConfig


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": ()}, r"workers is empty; give at least one"),
        ({"workers": (1,)}, r"workers=\(1,\) must begin with 1 and grow"),
        ({"workers": (2, 4)}, r"workers=\(2, 4\) must begin with 1"),
        ({"workers": (1, 4, 2)}, r"workers=\(1, 4, 2\) must begin with 1 and grow"),
        ({"workers": (1, 2, 2)}, r"workers=\(1, 2, 2\) must begin with 1 and grow"),
        ({"workers": (0, 1)}, r"workers\[0\]=0 must be an integer of at least 1"),
        ({"shortest": 300}, r"shortest=300 must be a positive multiple of 256.* 256\."),
        ({"shortest": 0}, r"shortest=0 must be a positive multiple of 256.* 256\."),
        ({"steps": 3 * 256}, r"steps=768 must be shortest=256 times 2, 4, 8"),
        ({"steps": 256}, r"steps=256 must be shortest=256 times 2, 4, 8"),
        ({"steps": 1000}, r"steps=1000 must be shortest=256 times 2, 4, 8"),
        ({"workers": (1, 8), "steps": 4096}, r"shortest=256 must .* 128.* steps=8192"),
        ({"period": 0}, r"period=0 must be an integer of at least 1"),
        ({"runs": 1}, r"runs=1 must be at least 2"),
        ({"noise": 0.0}, r"noise=0\.0 must be a finite number above 0"),
        ({"dissimilarity": 0.0}, r"dissimilarity=0\.0 must be a finite number above 0"),
        ({"drift_workers": 1}, r"drift_workers=1 must be at least 2"),
        ({"drift_periods": ()}, r"drift_periods is empty"),
        ({"drift_periods": (2, 0)}, r"drift_periods\[1\]=0 must be an integer"),
        ({"drift_steps": 1000}, r"drift_steps=1000 must .* multiple of 256.* 1024\."),
        ({"long_periods": ()}, r"long_periods is empty"),
        ({"clock_workers": 0}, r"clock_workers=0 must be an integer"),
        ({"clock_steps": 10}, r"clock_steps=10 must be a positive multiple of 4"),
        ({"clock_runs": 0}, r"clock_runs=0 must be an integer"),
        ({"rates": ()}, r"rates is empty"),
        ({"rates": (0.5, -1.0)}, r"rates\[1\]=-1\.0 must be a finite number above 0"),
        ({"goal": 0.0}, r"goal=0\.0 must be a finite number above 0"),
        ({"most_workers": 0}, r"most_workers=0 must be an integer"),
    ],
)
def test_a_study_that_could_not_be_done_is_not_begun(options, message):
    with pytest.raises(ValueError, match=message):
        IterationsConfig(**options)


def test_the_command_line_says_it_too(capsys):
    with pytest.raises(SystemExit, match="2"):
        tyro.cli(IterationsConfig, args=["--drift-steps", "1000"])
    assert "drift_steps=1000 must be a positive multiple" in capsys.readouterr().err
