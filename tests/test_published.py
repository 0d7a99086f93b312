"""Numbers that are published are those of the logs, to the last digit shown."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cocod_jax.loggers import read_jsonl
from docs.generate import RESULTS, ROOT
from experiments import compare
from experiments.overlap import clock
from experiments.paper import figures
from experiments.paper.__main__ import MODELS, PaperConfig, clocks_of
from experiments.paper.report import report
from tests.published import check_sentence, shown

README = (ROOT / "README.md").read_text()


def rows(page: str, *columns: str) -> list[dict[str, str]]:
    """The rows of the table whose first columns are called so."""
    tables = re.findall(r"(?:^\|.*\|\n)+", page, re.M)
    split = [
        [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
        for lines in (table.splitlines() for table in tables)
    ]
    (found,) = [table for table in split if tuple(table[0][: len(columns)]) == columns]
    head, _, *body = found
    return [dict(zip(head, row, strict=True)) for row in body]


# The overlap, measured

SECTION = README.split("## Does it really overlap?")[1].split("\n## ")[0]
TABLE = rows(SECTION, "links", "S-SGD")


class Rate:
    """What the log that the section links says of the links of one rate."""

    def __init__(self, links: str):
        (folder,) = set(re.findall(r"\(experiments/results/(\w+)/", SECTION))
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


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row["links"])
def test_seconds_in_the_log_are_medians(row):
    """Of a round, or of a step where a measurement is one."""
    for result in Rate(row["links"]).results:
        median = np.median(result["repeats"])
        assert median in (result["seconds_per_round"], result["seconds_per_step"])


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


@pytest.mark.parametrize(
    ("columns", "value"),
    [
        (("", "500 Mbit/s: hoped"), hoped_for),
        (("", "1 Gbit/s"), rest_of_a_round),
    ],
)
def test_the_tables_of_the_page_on_the_overlap_are_those_of_the_log(columns, value):
    (folder,) = set(re.findall(r"\(experiments/results/(\w+)/", SECTION))
    table = rows((RESULTS / folder / "README.md").read_text(), *columns)
    assert len(table) == 6
    for row in table:
        name = row.pop("")
        for links in (links for links in row if links.endswith("bit/s")):
            expected = value(Rate(links), name)
            assert shown(row[links].removesuffix(" %"), expected), (name, expected)


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
    ((factor, folder),) = re.findall(words, README)
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


# Files that a command leaves beside its logs


@pytest.mark.parametrize(
    "table", sorted(RESULTS.glob("*/table.md")), ids=lambda p: p.parent.name
)
def test_tables_of_accuracies_are_made_from_their_logs(table):
    logs = sorted(table.parent.glob("*.jsonl"))
    assert table.read_text() == compare.table(logs)


@pytest.mark.parametrize(
    "page", sorted(RESULTS.glob("*/clock.md")), ids=lambda p: p.parent.name
)
def test_tables_of_the_clock_are_made_from_their_logs(page):
    assert page.read_text() == clock.table(page.with_name("overlap.jsonl"))


@pytest.mark.parametrize(
    "page", sorted(RESULTS.glob("*/clock.md")), ids=lambda p: p.parent.name
)
def test_the_clock_is_off_by_a_tenth_at_most(page):
    """From Tc and Tm alone, and better with what an exchange is for the core."""
    errors = [
        [float(error) for error in re.findall(r"([+-][\d.]+)%", row)]
        for row in page.read_text().splitlines()[2:]
    ]
    assert len(errors) >= 15
    assert max(abs(error) for row in errors for error in row) <= 10


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
        for name in figures.UNEQUAL
    }
    assert page.read_text() == report(logs, shares, clocks_of(config))
