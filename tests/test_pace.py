"""Which process is slow, by how far the others are."""

import pytest

from experiments.processes.pace import FOLDER, Pace
from tests.waiting import wait_until

SECONDS = 30


class Result:
    """What a device makes, at last."""

    def __init__(self, ready=True):
        self.ready = ready

    def is_ready(self):
        return self.ready


class Three:
    """Three processes, in turns; the first says who is slow."""

    def __init__(self, folder):
        self.said = []
        self.each = [
            Pace(folder, SECONDS, self.said.append, process=process, number=3)
            for process in range(3)
        ]
        (folder / FOLDER).mkdir()

    def dispatch(self, *results):
        for process, result in results:
            self.each[process].dispatched(result)

    def at(self, seconds):
        for pace in self.each:
            pace.write()
        self.each[0].look(seconds)


@pytest.fixture
def three(tmp_path):
    return Three(tmp_path)


def test_who_begins_no_round_is_named(three):
    three.dispatch((0, Result()), (1, Result()), (2, Result()))
    three.at(0)
    three.dispatch((0, Result()), (2, Result()))
    three.at(10)
    three.at(10 + SECONDS - 1)
    assert not three.said
    three.at(10 + SECONDS)
    sentence = "Process 1 is slow: the others have waited for 30 s in its round 2."
    assert three.said == [sentence]
    three.at(200)
    assert three.said == [sentence]  # once
    three.dispatch((1, Result()), (0, Result()), (2, Result()))
    three.at(201)
    three.at(201 + SECONDS)
    assert len(three.said) == 2


def test_whose_devices_are_slow_is_named(three):
    """Though its host is as far as the others."""
    slow = Result(ready=False)
    three.dispatch((0, Result()), (1, Result()), (2, slow))
    three.at(0)
    three.at(SECONDS)
    assert three.said == [
        "Process 2 is slow: the others have waited for 30 s in its round 1."
    ]
    slow.ready = True
    three.dispatch((0, Result()), (1, Result()), (2, Result()))
    three.at(SECONDS + 1)
    three.at(3 * SECONDS)
    assert len(three.said) == 1


def test_who_waits_is_not_slow(three):
    """All wait: for the network, or the one that saves."""
    three.dispatch((0, Result()), (1, Result()), (2, Result()))
    three.at(0)
    three.at(10 * SECONDS)
    three.each[1].write()
    assert not three.said


def test_who_goes_on_is_not_slow_yet(three):
    three.dispatch((0, Result()), (2, Result()))  # two rounds ahead at times
    for step in range(4):
        three.dispatch((0, Result()), (2, Result()))
        three.at(step * SECONDS)
        three.dispatch((1, Result()))
        three.at(step * SECONDS + SECONDS - 1)
    assert not three.said


def test_what_is_torn_is_not_read(three, tmp_path):
    three.at(0)
    (tmp_path / FOLDER / "1").write_text("7")
    three.each[0].look(1)
    assert not three.said


def test_it_says_so_by_itself(tmp_path):
    said = []
    of = lambda process, say: Pace(tmp_path, 0.1, say, process=process, number=2)
    with of(0, said.append) as first, of(1, pytest.fail) as second:
        first.dispatched(Result())
        first.dispatched(Result())
        second.dispatched(Result())
        wait_until(lambda: said)
    assert said[0].startswith("Process 1 is slow: ")
    assert not list(tmp_path.iterdir())


def test_one_process_has_no_others(tmp_path):
    with Pace(tmp_path, 0.1, pytest.fail, process=0, number=1) as alone:
        alone.dispatched(None)
    assert not list(tmp_path.iterdir())
