"""The page of a run: what it shows, what it refuses, and how a browser sees it."""

import html.parser
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

import cocod_jax as cj
from cocod_jax.observe import page
from cocod_jax.observe.__main__ import main
from cocod_jax.observe._run import read_run
from cocod_jax.observe.loggers import to_jsonl

PARTS = [
    *("Loss and accuracy", "Throughput", "Communication", "Forecast", "Workers"),
    *("Participation", "Faults and restarts", "Notes", "Circumstances"),
]
VOID = {"meta", "link", "img", "br"}


class Outline(html.parser.HTMLParser):
    """Headings, elements and attributes, once all of them are known to close."""

    def __init__(self, text):
        super().__init__()
        self.open, self.headings, self.elements, self.texts = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.texts))


def write_run(path, participants=(3, 2), **first):
    """A log with all that a page can show: two epochs of four rounds, resumed once."""
    circumstances = {
        "time": "2026-11-30T00:00:00+00:00",
        "command": "python -m experiments.train",
        "config": {"algorithm": "cocod", "period": 4, "delay": None},
        "versions": {"jax": "0.10.2"},
        "workers": 3,
    }
    rng = np.random.default_rng(0)
    with to_jsonl(path) as log:
        log.write("run", **circumstances | first)
        log.write("data", notes=["Digits, 1,437 to train."])
        log.write(
            "forecast",
            seconds_per_step=0.2,
            measured={"tc": 0.1, "tm": 0.4},
            advice=["A step takes 0.1 s.", "Period 4 hides it."],
        )
        for epoch in (1, 2):
            for number in range(1, 5):
                step = 16 * (epoch - 1) + 4 * number
                scalars = {"loss": 8 / step, "distance": 0.1}
                timed = {"seconds": 1.0 * number, "sent_bytes": 4000}
                log(step, {**timed, "participants": participants[epoch - 1], **scalars})
                each = {"distance": rng.random(3), "alignment": rng.random(3)}
                log.write("workers", step=step, **each)
            log.write(
                "epoch",
                epoch=epoch,
                step=16 * epoch,
                train_loss=0.5 / epoch,
                test_accuracy=0.5 + epoch / 8,
                images_per_second=100.0,
            )
            if epoch == 1:
                log.write("alarm", step=16, sentence="The workers move apart.")
                log.write("resumed", step=16, time="later", workers=2)
                log.write("fault", step=20, what="killed", worker=1)
        log.write("sample", text="to be <or> not")
        log.write("end", status="finished")
    return path


@pytest.fixture
def log(tmp_path):
    return write_run(tmp_path / "a run.jsonl")


def test_a_page_has_all_that_the_log_has(log):
    text = page.render(log)
    found = Outline(text)
    assert found.headings == PARTS
    drawings = [attrs for tag, attrs in found.elements if tag == "svg"]
    # Loss, accuracy, step, speed; distance, alignment; participation.
    assert len(drawings) == 7
    assert all(each["role"] == "img" and each["aria-label"] for each in drawings)
    for sentence in (
        "test accuracy 75.00%",
        "training loss 0.25",
        "seconds of a step 0.25",
        "Each worker put 32 kB into exchanges in 32 local steps",
        "A local step took 0.25 s (median); without any exchange it was measured at "
        "0.1 s",
        "cost 0.15 s a step: 60% of the time",
        "off by +25% of the forecast",
        "Period 4 hides it.",
        "16 alarm The workers move apart.",
        "16 resumed later",
        "20 fault what: killed; worker: 1",
        "It was resumed 1 times.",
        "to be <or> not",
        "delay none",
    ):
        assert sentence in found.text, sentence
    participation = found.text.partition("from step workers")[2]
    assert participation.split()[:4] == ["0", "3", "16", "2"]


def test_participation_that_stays_is_a_sentence(tmp_path):
    text = page.render(write_run(tmp_path / "log.jsonl", participants=(3, 3)))
    assert "3 workers took part in each of 8 rounds." in Outline(text).text


def grown(path, before, after):
    """A log of two workers, then four, whose steps are counted anew: 482 B a step."""
    rows = lambda steps: [(step, {"loss": 1.0, "sent_bytes": 1928}) for step in steps]
    with to_jsonl(path) as log:
        log.write("run", workers=2)
        for step, scalars in rows(range(4, before + 1, 4)):
            log(step, scalars)
            log.write("workers", step=step, distance=[1.0, 2.0])
        log.write("resized", step=after, step_before=before, workers=4)
        log.write("resumed", step=after, workers=4)
        for step, scalars in rows(range(after + 4, after + 17, 4)):
            log(step, scalars)
            log.write("workers", step=step, distance=[1.0, 2.0, 3.0, 4.0])
    return path


@pytest.mark.parametrize(("before", "after"), [(36, 16), (12, 20)])
def test_steps_go_on_where_the_log_counts_anew(before, after, tmp_path):
    path = grown(tmp_path / "log.jsonl", before, after)
    steps = [*range(4, before + 17, 4)]
    run = read_run(path)
    assert [row["step"] for row in run.rounds] == steps
    assert [step for step, _ in run.workers] == steps
    found = Outline(page.render(path)).text
    for sentence in (
        f"into exchanges in {before + 16} local steps: 482 B in each step",
        f"local steps {before + 16} rounds {len(steps)} workers 2, then 4",
        f"from step workers 0 2 {before} 4",
        f"{before} resized step_before: {before}; workers: 4; step_after: {after}",
    ):
        assert sentence in found, sentence


def test_steps_that_are_done_once_more_count_twice(tmp_path):
    path = tmp_path / "log.jsonl"
    with to_jsonl(path) as log:
        log(4, {"loss": 1.0, "sent_bytes": 40})
        log(8, {"loss": 1.0, "sent_bytes": 40})
        log.write("resumed", step=4)
        log(8, {"loss": 1.0, "sent_bytes": 40})
    assert [row["step"] for row in read_run(path).rounds] == [4, 8, 12]
    assert "in 12 local steps: 10 B in each step" in page.render(path)


def test_bytes_before_any_step_have_no_average(tmp_path):
    path = tmp_path / "log.jsonl"
    with to_jsonl(path) as log:
        log(0, {"sent_bytes": 1000})
    assert "Each worker put 1 kB into exchanges.<" in page.render(path)


def test_a_page_needs_nothing_but_itself(log):
    found = Outline(page.render(log))
    assert not {tag for tag, _ in found.elements} & {"script", "link", "img", "iframe"}
    for _, attrs in found.elements:
        for name, value in attrs.items():
            if name in ("href", "xlink:href", "src"):
                assert value.startswith("#")
            elif not name.startswith("xmlns"):
                assert "//" not in (value or "")
    ids = [attrs["id"] for _, attrs in found.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert page.render(log) == page.render(log)


EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&amp;"


def test_whatever_a_log_holds_is_text(tmp_path):
    path = write_run(
        tmp_path / "<img src=x>.jsonl",
        **{"config": {EVIL: EVIL}, "command": EVIL, "versions": {EVIL: 1}},
    )
    with to_jsonl(path, append=True) as log:
        log.write("alarm", step=32, sentence=EVIL)
        log.write(EVIL, **{EVIL: [EVIL]})
        log.write("sample", text=EVIL)
        log.write("data", notes=[EVIL])
        log.write("timeline", name=EVIL, hidden=0.5, intervals=[["exchange", 0, 2]])
        log.write("epoch", epoch=3, **{f"{EVIL}_per_second": 1.0})
    text = page.render(path)
    tags = {tag for tag, _ in Outline(text).elements}
    assert not tags & {"script", "img"}
    assert Outline(text).text.count("<script>alert(1)") >= 9
    policy = next(a for t, a in Outline(text).elements if "http-equiv" in a)
    assert policy["content"].startswith("default-src 'none'")


def test_what_a_log_lacks_is_said(tmp_path):
    path = tmp_path / "log.jsonl"
    with to_jsonl(path) as log:
        log.write("result", accuracy=0.5)
    found = Outline(page.render(path))
    assert "svg" not in {tag for tag, _ in found.elements}
    for sentence in (
        "The log has no loss",
        "The log has no times",
        "does not say what was sent",
        "were not measured",
        "No forecast was made",
        'no records "workers"',
        "does not say how many workers",
        "does not say how the run ended",
        "result accuracy: 0.5",
        "and so no configuration",
    ):
        assert sentence in found.text, sentence


def test_records_that_are_odd_leave_the_other_parts_alone(log):
    with to_jsonl(log, append=True) as lines:
        lines.write("forecast", seconds_per_step="soon", measured=3, advice=None)
        lines.write("round", step="x", loss=1.0)
        lines.write("round", step=36, loss=None, seconds=float("nan"))
        lines.write("workers", step=36, distance=[1.0, "far"], alignment=[])
        lines.write("data")
        lines.write("sample", text=7)
    text = log.read_text().replace('"seconds_per_step": 0.2', '"seconds_per_step": "2"')
    log.write_text(text)
    found = Outline(page.render(log))
    assert found.headings == PARTS
    assert found.text.count("cannot be shown here") == 2
    assert "test accuracy 75.00%" in found.text


COUNTS = (4, 8, 8, 0, -4, 0.5, 1e308, 10**400, math.nan, None, "x")
ODD = (
    *(None, True, -1, 0, 4, 0.5, 1e308, 10**400, math.nan, math.inf),
    *("", "\ud800", "$a_$", [], [4, "x"], [1.0, 2.0], [10**400], [math.inf, 1e308]),
    *({}, {"\udce9": [None]}, {"tc": 0.1}),
)
KINDS = {
    "round": ("loss", "seconds", "sent_bytes", "participants", "alignment"),
    "epoch": ("train_loss", "test_accuracy", "test_loss", "$_\ud800_per_second"),
    "workers": ("distance", "loss"),
    "run": ("workers", "config", "versions", "command", "time"),
    "resized": ("step_before", "workers"),
    "resumed": ("workers",),
    "forecast": ("seconds_per_step", "measured", "advice"),
    "timeline": ("hidden", "intervals", "name"),
    "alarm": ("sentence",),
    "data": ("notes",),
    "sample": ("text",),
    "end": ("status",),
    "\ud800": ("\ud800",),
}
RECORDS = [
    st.fixed_dictionaries(
        {
            "kind": st.just(kind),
            "epoch" if kind == "epoch" else "step": st.sampled_from(COUNTS),
        },
        optional=dict.fromkeys(names, st.sampled_from(ODD)),
    )
    for kind, names in KINDS.items()
]


@hypothesis.example([{"kind": "round", "step": 0, "sent_bytes": 10}])
@hypothesis.example([{"kind": "round", "step": 10**400, "loss": 1}])
@hypothesis.example([{"kind": "run", "config": {"out": "caf\udce9"}}])
@hypothesis.example([{"kind": "epoch", "epoch": 1, "test_accuracy": 1e308}])
@hypothesis.example(
    [{"kind": "round", "step": step, "seconds": step} for step in (4, 8)]
    + [{"kind": "forecast", "seconds_per_step": 10**400}]
)
@hypothesis.given(st.lists(st.one_of(*RECORDS), min_size=1, max_size=8))
@hypothesis.settings(max_examples=20, deadline=None)
def test_any_log_makes_a_page(tmp_path_factory, records):
    path = tmp_path_factory.mktemp("odd") / "log.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert Outline(page.write(path).read_text("utf-8")).headings[-1] == PARTS[-1]
    assert [*path.parent.glob("*.new")] == []


def test_a_long_run_has_a_short_page(tmp_path):
    """Many workers, many rounds: curves are means, which the captions say."""
    path = tmp_path / "long.jsonl"
    with to_jsonl(path) as log:
        for step in range(1, 3001):
            log(step, {"loss": 1 / step})
        for step in range(1, 601):
            log.write("workers", step=step, distance=[0.5] * 64)
    text = page.render(path)
    assert "means of 10 that follow each other" in text
    assert "means of 2 that follow each other" in text
    assert len(text) < 1_500_000


def run(*arguments, capsys):
    status = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return status, out.strip(), err.strip()


def test_the_command_takes_a_log_or_a_folder(log, tmp_path, capsys):
    written = log.with_suffix(".html")
    folder = log.with_suffix("")
    folder.mkdir()
    for given in (log, folder, tmp_path):
        written.unlink(missing_ok=True)
        assert run(given, capsys=capsys) == (0, str(written), "")
        assert written.read_text("utf-8") == page.render(log)


def test_the_command_takes_the_folder_that_it_is_in(log, monkeypatch, capsys):
    folder = log.with_suffix("")
    folder.mkdir()
    for inside, given in ((folder, "."), (log.parent, "."), (folder, "..")):
        monkeypatch.chdir(inside)
        assert page.log_of(given) == log
    status, _, err = run("/", capsys=capsys)
    assert status == 2
    assert err.startswith("/ must have one .jsonl file")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "neither a log nor the folder of a run"),
        ("", "holds no record"),
        ('{"kind": "run"}\n{"kind": \n{"kind": "end"}\n', "line 2 of "),
        ('{"loss": 1}\n{"loss": 2}\n', "line 1 of "),
        ('{"kind": ["run"]}\n{"kind": "end"}\n', "line 1 of "),
        ("\0\1\n\2\n", "line 1 of "),
    ],
)
def test_what_is_no_log_is_refused_in_a_line(content, words, tmp_path, capsys):
    path = tmp_path / "some.jsonl"
    if content is not None:
        path.write_text(content)
    status, out, err = run(path, capsys=capsys)
    assert (status, out) == (2, "")
    assert words in err
    assert str(path) in err
    assert len(err.splitlines()) == 1
    assert [*tmp_path.glob("*.html*")] == []


def test_a_folder_of_several_logs_names_them(log, tmp_path, capsys):
    shutil.copy(log, tmp_path / "other.jsonl")
    status, _, err = run(tmp_path, capsys=capsys)
    assert status == 2
    assert "a run.jsonl, other.jsonl; name it" in err


def test_a_full_disk_leaves_the_page_before(log, monkeypatch, capsys):
    written = page.write(log)
    before = written.read_bytes()

    def full(self, *args):
        self.write_bytes(b"half")
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_text", full)
    status, _, err = run(log, capsys=capsys)
    assert status == 2
    assert "No space left on device" in err
    assert written.read_bytes() == before
    assert sorted(p.suffix for p in log.parent.iterdir()) == [".html", ".jsonl"]


def test_a_page_that_is_stopped_leaves_nothing(log, monkeypatch):
    def stopped(self, *args):
        self.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", stopped)
    with pytest.raises(KeyboardInterrupt):
        page.write(log)
    assert [*log.parent.iterdir()] == [log]


def test_it_says_what_it_needs(log, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    status, _, err = run(log, capsys=capsys)
    assert status == 2
    assert "pip install 'cocod-jax[plots]'" in err


def test_each_workers_metrics_are_means_over_steps():
    values: Any = np.arange(6.0).reshape(2, 3)
    apart: Any = np.array([0.1234567, 2.0])
    metrics = cj.RoundMetrics(values, 2 * values, apart, apart, -apart)
    assert cj.loggers.per_worker(metrics) == {
        "loss": [1.0, 4.0],
        "grad_norm": [2.0, 8.0],
        "distance": [0.123457, 2.0],
        "progress_norm": [0.123457, 2.0],
        "alignment": [-0.123457, -2.0],
    }


# ------------------------------------------------------------------ a real browser

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


def browse(path, *options):
    assert BROWSER
    command = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu"]
    command += ["--hide-scrollbars", f"--user-data-dir={path.parent / 'browser'}"]
    # No name can be looked up: what the page would fetch fails.
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", *options, path.as_uri()]
    done = subprocess.run(command, capture_output=True, timeout=120, check=True)
    return done.stdout.decode()


LOOK = """<script>
const style = (name) => getComputedStyle(document.querySelector(name));
document.title = JSON.stringify({
  wide: document.documentElement.scrollWidth > innerWidth,
  narrow: innerWidth,
  paper: style("body").backgroundColor,
  ink: style("svg text").fill,
  curve: getComputedStyle(document.querySelector("svg path[style*=curve]")).stroke,
  drawn: [...document.querySelectorAll("svg")].every((s) => s.clientHeight > 100),
  fetched: performance.getEntriesByType("resource").length,
});
</script></body>"""


@pytest.mark.skipif(BROWSER is None, reason="there is no chromium to open a page with")
def test_a_browser_shows_it_and_runs_no_script(log, tmp_path):
    path = page.write(log)
    path.write_text(path.read_text() + "<script>document.title = 'ran'</script>")
    seen = Outline(browse(path, "--dump-dom").partition("<!DOCTYPE html>")[2])
    assert seen.headings == PARTS
    assert sum(tag == "svg" for tag, _ in seen.elements) == 7
    assert seen.texts[seen.texts.index("a run: a run of cocod_jax")]


@pytest.mark.skipif(BROWSER is None, reason="there is no chromium to open a page with")
@pytest.mark.parametrize(
    ("options", "dark"),
    [
        (["--window-size=500,900"], False),
        (["--window-size=1200,900", "--blink-settings=preferredColorScheme=0"], True),
    ],
)
def test_a_browser_can_read_it(options, dark, log, tmp_path):
    """By day and by night, on a small screen and on a large one."""
    text = page.render(log)
    policy = re.search(r"<meta http-equiv=.*>", text)
    assert policy
    path = tmp_path / "looked.html"
    path.write_text(text.replace(policy[0], "").replace("</body>", LOOK), "utf-8")
    title = re.search(r"<title>(.*?)</title>", browse(path, *options, "--dump-dom"))
    assert title
    found = json.loads(html.unescape(title[1]))
    brightness = lambda name: sum(map(int, re.findall(r"\d+", found[name])[:3])) / 765
    assert not found["wide"]
    assert found["narrow"] == (1200 if dark else 500)
    assert found["drawn"]
    assert found["fetched"] == 0
    assert (brightness("paper") < 0.2) == dark
    assert abs(brightness("ink") - brightness("paper")) > 0.6
    assert abs(brightness("curve") - brightness("paper")) > 0.4
