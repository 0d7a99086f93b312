"""The study of slow links: what it runs where, and what it makes of the logs."""

import re

import pytest

from cocod_jax.measurement import Measurement
from docs.generate import RESULTS
from experiments import logbook
from experiments.cluster.network import Network
from experiments.config import parse
from experiments.slow_links import __main__ as slow_links
from experiments.slow_links import report
from experiments.slow_links.config import SlowLinksConfig

JOB = ["--data", "digits", "--model", "cnn", "--batch-size", "60", "--epochs", "2"]
LOSSES = {"ssgd": [0.9, 0.5], "int8": [0.8, 0.5, 0.4], "int4": [0.9, 0.8, 0.6]}


def measurement(tm):
    ends = {"tc_range": (0.1, 0.1), "tm_range": (tm, tm), "latency_range": (0.0, 0.0)}
    sizes = {"repeats": 3, "workers": 2, "period": 4, "sent_bytes": 10, "device": "cpu"}
    return Measurement(tc=0.1, tm=tm, latency=0.0, **ends, **sizes)


@pytest.fixture
def started(monkeypatch):
    """What would have run, and where; each leaves what its processes would."""
    found = []

    def start(words, network, show):
        module, *options = words
        config = parse(options)
        found.append((config, network.rate))
        if module == "experiments.slow_links.measure":
            tm = {"float32": 4.0, "int8": 1.0, "int4": 0.5}
            return [{"numbers": n, **measurement(s)._asdict()} for n, s in tm.items()]
        with logbook.opened(config.log, config) as log:
            for epoch, loss in enumerate(LOSSES[config.numbers or config.algorithm], 1):
                for round_ in (1, 2):
                    step = config.period * (2 * (epoch - 1) + round_)
                    log(step, {"seconds": 3.0 * round_})
                log.write("epoch", epoch=epoch, test_loss=loss, train_loss=loss)
        return []

    monkeypatch.setattr(slow_links, "start", start)
    return found


def test_advise_chooses_the_period_of_each_and_the_table_says_who_came_first(
    started, tmp_path
):
    config = SlowLinksConfig(out=tmp_path)
    slow_links.main(config, JOB)
    (timed, rate), *runs = started
    assert (timed.algorithm, rate) == ("streamed", "20mbit")
    each = [(r.algorithm, r.numbers, r.period, r.epochs, at) for r, at in runs]
    assert each == [
        ("ssgd", None, 4, 2, "1gbit"),
        ("streamed", "int8", 10, 3, "20mbit"),
        ("streamed", "int4", 5, 3, "20mbit"),
    ]
    assert {(run.execution, run.workers) for run, _ in runs} == {("split", 2)}
    text = (tmp_path / "table.md").read_text()
    rows = re.findall(r"^\| (.*) \|$", text, re.M)
    row = lambda name: next(r for r in rows if r.startswith(name)).split(" | ")
    # 6 s an epoch; a round takes 3 s, and the first one is not counted in a step's.
    assert row("S-SGD")[2:] == ["750", "12", "0.5000", "12"]
    assert row("CoCoD-SGD, streamed in int8")[2:] == ["300", "18", "0.4000", "12"]
    assert row("CoCoD-SGD, streamed in int4")[-1] == "not reached"
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    # What is finished does not run again, and is measured anew.
    slow_links.main(config, JOB)
    assert len(started) == 5


def test_the_published_table_is_that_of_its_logs():
    (folder,) = RESULTS.glob("????????_slow_links")
    text = report.table(folder / "slow_links.jsonl")
    assert (folder / "table.md").read_text() == text
    assert text.strip() in (folder / "README.md").read_text()


def test_bad_links_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"rate='slow' must be"):
        SlowLinksConfig(slow="slow")
    with pytest.raises(ValueError, match=r"workers=1 must be 2 or more"):
        SlowLinksConfig(workers=1)


@pytest.mark.matrix
def test_the_study_runs_on_shaped_links(tmp_path):
    """Two processes measure and train; root and iproute2 make the links."""
    try:
        with Network(2, "2mbit"):
            pass
    except RuntimeError as error:
        pytest.skip(str(error))
    config = SlowLinksConfig(slow="2mbit", numbers=("int8",), out=tmp_path)
    slow_links.main(config, JOB)
    runs = report.trained(tmp_path / "slow_links.jsonl")
    assert [run.links for run in runs] == ["1 Gbit/s links", "2 Mbit/s links"]
    assert all(run.losses[-1] < 2.3 for run in runs)  # of ten classes that nobody knows
