"""Every bad input of the tables is an error that names it, and leaves nothing."""

import pytest

from cocod_jax import testing
from tests.bad_inputs import ROWS
from tests.bad_uses import USES
from tests.test_public import CLASSES, FUNCTIONS
from tests.waiting import left_behind


@pytest.mark.parametrize("name", [*ROWS, *USES])
def test_an_error_names_what_is_bad_and_what_would_do(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    row, before = (ROWS | USES)[name], left_behind()
    with pytest.raises((TypeError, ValueError, OSError)) as found:
        row.call(tmp_path)
    message = str(found.value)
    for word in row.words:
        assert word in message
    assert len(message) < 500
    assert not list(tmp_path.iterdir())
    assert left_behind() <= before


# What takes nothing that could be bad, or stands in the tables under another name.
WITHOUT = {
    *("Any", "style.pyplot", "style.tidy", "style.bars", "execution.device_pairs"),
    *("observe.plots.curve", "observe.loggers.Logbook"),  # drawn and made by others
    *("workers.check_agreement",),  # of any settings
    *("observe.loggers.to_wandb",),  # whose options are checked by wandb
    *("testing." + name for name in vars(testing) if name.startswith("assert_")),
}
STATES = ("State", "Metrics", "Round", "MicroBatches", "Restored", "Resized")


@pytest.mark.parametrize("name", sorted({*FUNCTIONS, *CLASSES} - WITHOUT))
def test_every_public_name_has_a_bad_input(name):
    if name.endswith(STATES):  # tuples, which are checked where they are given
        return
    subjects = {row.subject for row in (ROWS | USES).values()}
    assert name in subjects


def test_the_table_is_long():
    assert len(ROWS) + len(USES) >= 100
