"""Where long work is: on a terminal, and elsewhere."""

import io
import re
import threading
import time

import pytest
from rich.console import Console

from experiments.progress import Training, report


def console(**options):
    return Console(file=io.StringIO(), width=200, **options)


def text(console):
    return console.file.getvalue()


def lines(console):
    return text(console).splitlines()


def test_elsewhere_the_first_words_are_a_line_at_once():
    plain = console()
    with report(plain) as show:
        show.now("compiling", 0, 12)
        assert re.fullmatch(r" +0 s   0/12   compiling", lines(plain)[0])
        show.now("round", 1)
        show.line("kept")
    assert lines(plain)[1:] == ["kept"]


def test_elsewhere_silence_is_broken_by_a_line():
    plain = console()
    with report(plain, silence=0.1) as show:
        show.now("first")
        show.now("second", 3, 4)
        deadline = time.monotonic() + 20
        while len(lines(plain)) < 3 and time.monotonic() < deadline:
            time.sleep(0.05)
    said = [line.split(" s   ")[1] for line in lines(plain)[:3]]
    assert said == ["first", "3/4   second", "3/4   second"]
    assert "\x1b" not in text(plain)


def test_on_a_terminal_something_moves():
    terminal = console(force_terminal=True)
    with report(terminal) as show:
        show.within("200 Mbit/s")("compiling", done=1, total=9)
        before = len(text(terminal))
        deadline = time.monotonic() + 20
        while len(text(terminal)) == before and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(text(terminal)) > before
        show.line("kept")
    for part in ("200 Mbit/s, compiling", "1/9", "0:00:0", "kept"):
        assert part in text(terminal)
    assert " s   " not in text(terminal)


def fail(show):
    show.now("dividing")
    raise ZeroDivisionError


@pytest.mark.parametrize("force_terminal", [False, True])
def test_an_exception_ends_it(force_terminal):
    threads = set(threading.enumerate())
    with (
        pytest.raises(ZeroDivisionError),
        report(console(force_terminal=force_terminal)) as show,
    ):
        fail(show)
    for thread in set(threading.enumerate()) - threads:
        thread.join(20)
        assert not thread.is_alive()


def test_an_epoch_is_a_line_with_the_time_that_is_left(monkeypatch):
    now = [100.0]
    plain = console()
    with report(plain) as show:
        monkeypatch.setattr(time, "monotonic", lambda: now[0])
        training = Training(show, epochs=5, rounds=10, unit="tokens")
        for _ in range(3):
            training.round_done(0, 2.5, 1234.0)
            now[0] += 4  # the first round is not counted
        record = {"epoch": 1, "train_loss": 2.0, "tokens_per_second": 1234.5}
        training.epoch_done(record, "12.3")
        monkeypatch.undo()
    assert lines(plain)[-1] == (
        "epoch   1/5   round 3/10   loss 2.0000   test 12.3   1,234 tokens/s   ETA 42 s"
    )
