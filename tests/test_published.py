"""Numbers that are published are those of the logs, to the last digit shown."""

import dataclasses
import re
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cocod_jax.observe.loggers import read_jsonl
from cocod_jax.timeline import SSGD
from docs.generate import RESULTS, ROOT
from experiments import clock, sweep
from experiments.figures import by_algorithm
from experiments.overlap import balance
from experiments.paper import figures
from experiments.paper.__main__ import clocks_of
from experiments.paper.config import MODELS, PaperConfig
from experiments.paper.report import report
from experiments.soak import report as soak
from experiments.soak.config import SoakConfig
from experiments.streamed_step import __main__ as streamed_step
from tests.published import check_sentence, shown

README = (ROOT / "README.md").read_text()
MEASUREMENTS = (ROOT / "docs" / "measurements.md").read_text()


def tables(page: str) -> list[list[dict[str, str]]]:
    """The rows of every table that has a body."""
    found = []
    for lines in re.findall(r"(?:^\|.*\|\n)+", page, re.M):
        head, _, *body = (
            [cell.strip() for cell in line.strip("|").split("|")]
            for line in lines.splitlines()
        )
        found.append([dict(zip(head, row, strict=True)) for row in body])
    return found


def rows(page: str, *columns: str) -> list[dict[str, str]]:
    """The rows of the table whose first columns are called so."""
    first = lambda table: tuple(table[0])[: len(columns)]
    (found,) = [table for table in tables(page) if first(table) == columns]
    return found


# The overlap, measured

SECTION = MEASUREMENTS.split("## Overlap\n")[1].split("\n## ")[0]
TABLE = rows(SECTION, "links", "S-SGD")
(MEASURED,) = set(re.findall(r"results/(\w+)/timelines.png", SECTION + README))


class Rate:
    """What a log says of the links of one rate: that of the figure beside the table."""

    def __init__(self, links: str, folder: str = MEASURED):
        log = read_jsonl(RESULTS / folder / "overlap.jsonl")
        rate = links.removesuffix("/s").replace(" ", "").lower()  # as tc says it
        self.period = log["run"][0]["config"]["period"]
        self.results = [r for r in log["result"] if r["rate"] == rate]
        assert self.results, f"{folder} has nothing at {rate}"
        self.parts = [r for r in log["part"] if r["rate"] == rate]

    def of(self, side: str) -> dict[str, dict[str, Any]]:
        return {r["algorithm"]: r for r in self.results if r["side"] == side}

    def column(self, name: str) -> float:
        """Seconds of a step, or the efficiency in the last column."""
        ours = {n: r["seconds_per_step"] for n, r in self.of("ours").items()}
        if name.startswith("fastest PyTorch "):
            family = name.removeprefix("fastest PyTorch ")
            theirs = self.of("PyTorch").items()
            return min(r["seconds_per_step"] for n, r in theirs if n.startswith(family))
        if name.startswith("max("):
            return max(ours["local steps"], ours["exchange"]) / ours["CoCoD-SGD"]
        return ours[name]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row["links"])
def test_the_table_of_the_overlap_is_that_of_the_log(row):
    rate = Rate(row["links"])
    for name, cell in list(row.items())[1:]:
        assert shown(cell, rate.column(name)), f"{name}: {rate.column(name)}"


def rest_of_a_round(rate: Rate, row: str) -> float:
    """Seconds of a row of the table of the parts, mean of the workers."""
    of = lambda *names: sum(r["seconds"] for r in rate.parts if r["name"] in names) / 2
    ours = {n: r["seconds_per_round"] for n, r in rate.of("ours").items()}
    parts = {
        "copy": of("copy of the snapshot"),
        "move": of("move to the exchange", "move back"),
        "the core": of("the core's work for an exchange"),
        "merge": of("merge"),
    }
    parts["sum"] = sum(parts.values())
    hidden = max(ours["local steps"], ours["exchange"])
    parts["round less"] = ours["CoCoD-SGD"] - hidden
    (found,) = [seconds for name, seconds in parts.items() if row.startswith(name)]
    return found


def hoped_for(rate: Rate, row: str) -> float:
    """What came of a row of the table of what was hoped for."""
    step, exchange = (
        rate.of("ours")[name][f"seconds_per_{unit}"]
        for name, unit in (("local steps", "step"), ("exchange", "round"))
    )
    if row == "Tm / Tc":
        return exchange / step
    if row == "the most that it could be":
        return (step + exchange) / max(step, exchange / rate.period)
    if row.startswith("part of"):
        return 100 * rate.of("ours")["CoCoD-SGD"]["hidden"]
    if row.startswith("speed-up over "):
        name = row.removeprefix("speed-up over ").removeprefix("this library's ")
        return rate.column(name.removeprefix("the ")) / rate.column("CoCoD-SGD")
    if row.startswith("max("):
        return rate.column("max(")
    ours = {n: r["seconds_per_round"] for n, r in rate.of("ours").items()}
    hidden = max(ours["local steps"], ours["exchange"])
    return hidden / ours["CoCoD-SGD, just in time"]


# Rates; what chose its links by Tm / Tc has a table that is made from the log.
PAGES = sorted(
    log.with_name("README.md")
    for log in RESULTS.glob("*_overlap*/overlap.jsonl")
    if "balance" not in read_jsonl(log)
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_the_tables_of_the_pages_on_the_overlap_are_those_of_their_logs(page):
    text, checked = page.read_text(), 0
    for table in tables(text):
        links = [name for name in table[0] if name.endswith("bit/s")]
        of_parts = any("sum" in row.values() for row in table)
        for row in table:
            for name in links:
                rate = Rate(name, page.parent.name)
                value = rest_of_a_round if of_parts else hoped_for
                expected = value(rate, row[""])
                assert shown(row[name].removesuffix(" %"), expected), (row, expected)
                checked += 1
    assert checked >= 30


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_medians_in_the_logs_are_medians(page):
    for result in read_jsonl(page.with_name("overlap.jsonl"))["result"]:
        median = np.median(result["repeats"])
        assert median in (result["seconds_per_round"], result["seconds_per_step"])


def test_what_is_said_below_the_table_is_in_the_log():
    rates = [Rate(row["links"]) for row in TABLE]
    hidden = [rate.of("ours")["CoCoD-SGD"]["hidden"] for rate in rates]
    (least,) = re.findall(r"At least (\d+) % of CoCoD-SGD's exchange", SECTION)
    assert int(least) <= 100 * min(hidden)
    alone = "local steps alone took (.+?), and PyTorch's (.+?)\\. "
    (sides,) = re.findall(alone, SECTION)
    for side, said in zip(("ours", "PyTorch"), sides, strict=True):
        steps = [rate.of(side)["local steps"]["seconds_per_step"] for rate in rates]
        numbers = re.findall(r"\d+\.\d+", said)
        assert all(map(shown, numbers, steps)), (numbers, steps)
        assert len(numbers) == len(steps)
    for links, low, high in re.findall(
        r"at (\d+ [MG]bit/s) four steps alone took ([\d.]+) s to ([\d.]+) s", SECTION
    ):
        repeats = Rate(links).of("ours")["local steps"]["repeats"]
        assert shown(low, min(repeats))
        assert shown(high, max(repeats))


def test_the_factors_on_a_slower_machine_are_those_of_its_log():
    words = "# and # times as fast as S-SGD at 500 and 200 Mbit/s, not "
    of = lambda *where: [
        hoped_for(Rate(links, *where), "speed-up over this library's S-SGD")
        for links in ("500 Mbit/s", "200 Mbit/s")
    ]
    slower = re.findall(r"\(results/(\w+_slower)\.md", SECTION)
    assert len(slower) == 1
    check_sentence(SECTION, words + "# and # times", [*of(*slower), *of()])
    fast = Rate("1 Gbit/s", *slower)
    steps = [r["seconds_per_step"] for r in fast.results if r["is_algorithm"]]
    assert fast.of("PyTorch")["DDP, 1 MB buckets"]["seconds_per_step"] == min(steps)


def test_ranges_on_the_slower_machine_are_those_of_its_log():
    (folder,) = {page.parent for page in PAGES if "slower" in page.parent.name}
    page = (folder / "README.md").read_text()
    rates = [Rate(n, folder.name) for n in ("1 Gbit/s", "500 Mbit/s", "200 Mbit/s")]

    def ends(rate: Rate, side: str, name: str) -> list[float]:
        repeats = rate.of(side)[name]["repeats"]
        return [min(repeats), max(repeats)]

    single = []
    for rate in rates:
        steps, sent, rounds = (
            np.array(rate.of("ours")[name]["repeats"])
            for name in ("local steps", "exchange", "CoCoD-SGD")
        )
        hidden = np.maximum(steps, sent) / rounds
        single += [hidden.min(), hidden.max()]
    check_sentence(page, "it is # to #, # to # and # to #: more than 1", single)
    at_1g, at_500m, _ = rates
    for words, rate, side, name in (
        ("CoCoD-SGD's rounds (# s to # s)", at_1g, "ours", "CoCoD-SGD"),
        ("from Local SGD's (# s to # s)", at_1g, "ours", "Local SGD"),
        ("of PyTorch's local SGD (# s to # s)", at_1g, "PyTorch", "local SGD"),
        ("500 Mbit/s its rounds (# s to # s)", at_500m, "ours", "CoCoD-SGD"),
        ("without DDP (# s to # s)", at_500m, "PyTorch", "local SGD without DDP"),
    ):
        check_sentence(page, words, ends(rate, side, name))
    paper = (
        ROOT / "experiments" / "results" / "20261123_paper" / "README.md"
    ).read_text()
    of = lambda name: [
        hoped_for(rate, f"speed-up over this library's {name}") for rate in rates[:2]
    ]
    check_sentence(
        paper, "at Tm/Tc of # and #", [hoped_for(r, "Tm / Tc") for r in rates[:2]]
    )
    check_sentence(paper, "measured # and # times as fast as with S-SGD", of("S-SGD"))
    check_sentence(paper, "# and # times as fast as with Local SGD", of("Local SGD"))
    check_sentence(paper, "# and # times as fast as with Pipe-SGD", of("Pipe-SGD"))


# Other tables that are written by hand


def unequal(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """By shares and by the algorithm that was stopped, its workers' results."""
    results = read_jsonl(folder / "unequal.jsonl")["result"]
    names = dict.fromkeys(r.get("shares") or r["pauses"] for r in results)
    named = lambda name: [
        r for r in results if name in (r.get("shares"), r.get("pauses"))
    ]
    return {name: sorted(named(name), key=lambda r: r["worker"]) for name in names}


def test_the_factor_of_unequal_workers_is_that_of_the_log():
    words = r"([\d.]+) times the images per second of equal shares \(log in `(.*?)`\)"
    ((factor, folder),) = re.findall(words, MEASUREMENTS)
    found = unequal(ROOT / folder)
    speed = {name: found[name][0] for name in ("equal", "proportional")}
    speeds = [speed[name]["images_per_second"] for name in ("proportional", "equal")]
    assert shown(factor, speeds[0] / speeds[1])


@pytest.mark.parametrize(
    "folder", sorted(RESULTS.glob("*_unequal")), ids=lambda f: f.name
)
def test_the_page_of_unequal_workers_is_that_of_the_log(folder):
    page, found = (folder / "README.md").read_text(), unequal(folder)
    equal, mine = found["equal"], found["proportional"]
    ratio = mine[0]["images_per_second"] / equal[0]["images_per_second"]
    check_sentence(page, "take # and # steps a second", equal[0]["capabilities"])
    check_sentence(page, "sees # images a second", [equal[0]["images_per_second"]])
    check_sentence(page, "is idle for # %", [100 * equal[0]["idle"]])
    numbers = [mine[0]["images_per_second"], ratio, 100 * mine[0]["idle"]]
    check_sentence(page, "it is #, # times as many, and # %", numbers)
    for row in rows(page, "", "seconds of a round"):
        first = found[row[""]][0]
        assert shown(row["seconds of a round"], first["without"])
        assert shown(row["with pauses"], first["with"])
        more = [rough - smooth for smooth, rough in first["repeats"]]
        mean, spread = row["that is more"].split(" ± ")
        assert shown(mean, np.mean(more))
        assert shown(spread, np.std(more, ddof=1))
        stopped = first["pause"] / (first["pause"] + first["interval"])
        for column, workers in (("both held up", 2), ("its own", 1)):
            if column in row:
                rest = 1 - workers * stopped
                assert shown(row[column], first["without"] * (1 / rest - 1))


@pytest.mark.parametrize(
    "folder", sorted(RESULTS.glob("*_scale")), ids=lambda f: f.name
)
def test_the_table_of_the_scale_is_that_of_the_log(folder):
    results = read_jsonl(folder / "scale.jsonl")["result"]
    table = rows((folder / "README.md").read_text(), "workers", "million parameters")
    for row, r in zip(table, results, strict=True):
        cocod = r["CoCoD-SGD"]
        values = [r["workers"], r["parameters"] / 1e6, r["k Tc"], r["Tm"]]
        values += [r["Local SGD"], cocod, max(r["k Tc"], r["Tm"]) / cocod]
        values += [r["Local SGD"] / cocod]
        for (name, cell), value in zip(row.items(), values, strict=True):
            assert shown(cell.removesuffix(" x"), value), (name, cell, value)


@pytest.mark.parametrize(
    "folder", sorted(RESULTS.glob("*_first_steps")), ids=lambda f: f.name
)
def test_the_first_steps_are_those_of_their_log(folder):
    page = (folder / "README.md").read_text()
    for file, column in (
        ("log_slower.txt", "on the slower machine"),
        ("log.txt", "seconds"),
    ):
        log = (folder / file).read_text()
        took = dict(re.findall(r"^== (.*): (\d+) s$", log, re.M))
        model, compiler, certificate, rule = map(int, took.values())
        for row in rows(page, "", "seconds"):
            (seconds,) = (
                value
                for name, value in {
                    "first trained model": model,
                    "first certificate": compiler + certificate,
                    "first rule": rule,
                }.items()
                if row[""].startswith(name)
            )
            assert int(row[column]) == seconds
    logs = sorted(folder.glob("slower_machine*.jsonl"))
    ends = [100 * read_jsonl(path)["epoch"][-1]["test_accuracy"] for path in logs]
    check_sentence(page, "machine's model ends at # %", ends[:1])
    check_sentence(page, "71ef2a5) ends at # %, too", ends[1:])


def test_the_certificate_is_that_of_its_log():
    log = max(RESULTS.glob("*/certificate.txt")).read_text()
    command, _, shown_there = log.partition("\n")
    assert command.removeprefix("$ ") in README
    for page in (README, (ROOT / "docs" / "overlap.md").read_text()):
        assert f"```text\n{shown_there}```" in page


def test_the_second_edition_changed_the_rounding_of_the_merge_alone():
    (folder,) = RESULTS.glob("*_second_edition")
    read = lambda name: read_jsonl(folder / f"{name}.jsonl")
    for row in rows((folder / "README.md").read_text(), "seed", "before"):
        for when in ("before", "after"):
            end = read(f"{when}-seed{row['seed']}")["epoch"][-1]
            assert row[when] == f"{end['test_accuracy']:.2%}".replace("%", " %")
    numbers = lambda log: [(r["loss"], r["distance"]) for r in log["round"]]
    before, after = numbers(read("before-seed0")), numbers(read("after-seed0"))
    assert numbers(read("old-merge-seed0")) == before
    assert (before[:2], before[2] == after[2]) == (after[:2], False)


# Files that a command leaves beside its logs


COMPARED = [
    path
    for path in sorted(RESULTS.glob("*/table.md"))
    if path.read_text().startswith("| algorithm |")
]


@pytest.mark.parametrize("table", COMPARED, ids=lambda p: p.parent.name)
def test_tables_of_accuracies_are_made_from_their_logs(table):
    logs = sorted(table.parent.glob("*.jsonl"))
    assert table.read_text() == sweep.table(logs)


@pytest.mark.parametrize(
    "table",
    sorted([*RESULTS.glob("*/balance.md"), *RESULTS.glob("*/streamed_step.md")]),
    ids=lambda p: p.parent.name,
)
def test_tables_of_ratios_are_made_from_their_logs(table):
    (log,) = table.parent.glob("*.jsonl")
    if table.stem == "balance":
        made = balance.table(log)
    else:
        made = streamed_step.table(read_jsonl(log)["result"])
    assert table.read_text() == made
    assert made in table.with_name("README.md").read_text()


def test_the_table_of_the_soak_is_made_from_its_logs():
    folder = RESULTS / "20261130_soak"
    made = soak.report(SoakConfig(out=folder))
    assert (folder / "table.md").read_text() == made
    assert made in (folder / "README.md").read_text()


@pytest.mark.parametrize(
    "page", sorted(RESULTS.glob("*/clock.md")), ids=lambda p: p.parent.name
)
def test_tables_of_the_clock_are_made_from_their_logs(page):
    assert page.read_text() == clock.table(page.with_name("overlap.jsonl"))


@pytest.mark.parametrize(
    "page", sorted(RESULTS.glob("*/clock.md")), ids=lambda p: p.parent.name
)
def test_the_clock_is_off_by_a_tenth_at_most(page):
    """With the core's work for an exchange, which is not known for PyTorch."""
    rows = page.read_text().splitlines()[2:]
    errors = [re.findall(r"([+-][\d.]+)%", row) for row in rows]
    known = [float(error) for _, *after in errors for error in after]
    log = read_jsonl(page.with_name("overlap.jsonl"))["result"]
    ours = [r for r in log if r["side"] == "ours" and r["is_algorithm"]]
    assert len(known) == len(ours) > 0
    assert max(map(abs, known)) <= 10


@pytest.mark.parametrize(
    "page", sorted(RESULTS.glob("*/claims.md")), ids=lambda p: p.parent.name
)
def test_claims_are_made_from_their_logs(page):
    folder, config = page.parent, PaperConfig()
    config = dataclasses.replace(config, overlap=ROOT / config.overlap)
    logs: figures.Logs = {
        model: sorted((folder / "equal").glob(f"*-{model}-*.jsonl")) for model in MODELS
    }
    shares: figures.Logs = {
        name: sorted((folder / "unequal" / name).glob("*.jsonl"))
        for name in figures.SHARES
    }
    clocks = clocks_of(config)
    assert page.read_text() == report(logs, shares, clocks)
    check_claims(page.with_name("README.md").read_text(), logs, shares, clocks)


def check_claims(page: str, logs, shares, clocks) -> None:
    """The numbers in the sentences of the study's page."""
    runs = {model: by_algorithm(paths) for model, paths in logs.items()}
    points = lambda runs: sweep.results(runs).mean()
    below = [points(r["ssgd"]) - points(r["cocod"]) for r in runs.values()]
    check_sentence(page, "# points below on ResNet-18 and # on VGG-16", below)
    losses = [
        np.mean([run["epoch"][-1]["train_loss"] for run in r[name]])
        for name in ("cocod", "ssgd")
        for r in runs.values()
    ]
    check_sentence(page, "above S-SGD's, # and #, not # and #", losses)
    slow, fast = clocks["1gbit"], clocks["500mbit"]
    times = lambda clock, name: clock.measured[name] / clock.measured["CoCoD-SGD"]
    step = lambda algorithm: slow.timeline(algorithm, 16).seconds_per_step
    ours = step(slow.algorithms["CoCoD-SGD"])
    plain, buckets = step(slow.algorithms["S-SGD"]), step(SSGD(sends_after=1 / 3))
    ratio = lambda clock, n: clock.exchange_of(n) / clock.compute
    at = "# times at Tm/Tc = # and 16 workers (clock)"
    check_sentence(page, at, [plain / ours, ratio(slow, 16)])
    both = [f(c, x) for c in (slow, fast) for f, x in ((times, "S-SGD"), (ratio, 2))]
    check_sentence(page, "two workers # times at #, # times at #", both)
    check_sentence(page, "it is # times in place of #", [buckets / ours, plain / ours])
    for name, claim in (
        ("Local SGD", "at most twice as fast as Local SGD"),
        ("Pipe-SGD", "faster than Pipe-SGD"),
    ):
        measured = [times(clock, name) for clock in (slow, fast)]
        check_sentence(page, f"{claim} | **yes**: # and # times measured", measured)
    unequal = {
        (share, name): r
        for share, paths in shares.items()
        for name, r in by_algorithm(paths).items()
    }
    seconds = [
        figures.unequal_seconds(fast, unequal["proportional", name])
        for name in ("local_sgd", "ssgd", "cocod")
    ]
    words = "Local SGD takes # s an epoch and S-SGD # s, where CoCoD-SGD takes # s"
    check_sentence(page, words, seconds)
    ends = [points(unequal["proportional", name]) for name in ("local_sgd", "ssgd")]
    check_sentence(page, "after these five epochs they have # % and # %", ends)


def test_overheads_are_those_of_the_log():
    folder = RESULTS / "20261129_overhead"
    page, log = (
        (folder / "README.md").read_text(),
        read_jsonl(folder / "overhead.jsonl"),
    )
    plain = {}
    for r in log["result"]:
        job = r.get("job", r.get("leaves"))
        if r["program"] == "plain":
            plain[job] = r
        if "repeats" in r:
            pairs = zip(r["repeats"], plain[job]["repeats"], strict=True)
            ratios = sorted(own / base for own, base in pairs)
            found = statistics.median(ratios), ratios[0], ratios[-1]
            if r["program"] != "plain":
                text = "{:.2f} ({:.2f} to {:.2f})".format(*found)
                assert text in page, (job, r["program"])
        else:
            ratio = r["processor_seconds"] / plain[job]["processor_seconds"]
            assert f"| {r['processor_seconds']:.1f} | {ratio:.2f} |" in page


def test_a_local_step_is_that_of_the_log():
    folder = RESULTS / "20261129_local_step"
    page = (folder / "README.md").read_text()
    records = read_jsonl(folder / "local_step.jsonl")["result"]
    base = records[0]["repeats"]
    for r in records[1:]:
        ratios = sorted(o / x for o, x in zip(r["repeats"], base, strict=True))
        found = statistics.median(ratios), ratios[0], ratios[-1]
        row = "| {:.3f} | {:.2f} ({:.2f} to {:.2f}) |"
        assert row.format(r["seconds_per_step"], *found) in page, r["program"]
