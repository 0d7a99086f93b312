"""The pages of the studies of streaming say what their logs say."""

import pytest

from cocod_jax.observe.loggers import read_jsonl
from docs.generate import RESULTS
from tests.published import check_sentence, shown

CLOCK = RESULTS / "20261129_streaming_clock"


@pytest.fixture(scope="module")
def clock():
    """The page and the log of the clock."""
    return (CLOCK / "README.md").read_text(), read_jsonl(CLOCK / "scale.jsonl")


def test_the_clock_says_where_streaming_loses(clock):
    page, log = clock
    ratios = {
        (r["network"][:3], r["jitter"], r["parameters"], r["workers"]): (
            r["streamed_seconds_per_step"] / r["whole_seconds_per_step"]
        )
        for r in log["clock"]
    }
    worst = lambda network, jitter, **only: max(
        ratio
        for (n, j, _, workers), ratio in ratios.items()
        if (n, j) == (network, jitter) and workers <= only.get("workers", 4096)
    )
    check_sentence(
        page,
        "among 4,096 workers (# times the seconds). With jitter it costs up to #",
        [worst("400", 0.0), worst("400", 0.1)],
    )
    assert worst("400", 0.0, workers=1024) < 1.0001
    assert worst("10 ", 0.0, workers=32) < 1.005
    words = "As fast up to 32 workers, # times at 128, and up to # times at 4,096"
    check_sentence(page, words, [worst("10 ", 0.0, workers=128), worst("10 ", 0.0)])
    check_sentence(page, "of 35 sizes, by up to # times", [worst("200", 0.0)])
    for jitter, words in (
        (0.0, "Within 5 % of a whole exchange are #, # and # of 35 sizes without"),
        (0.1, "of 35 sizes without jitter, and #, # and # with it"),
    ):
        counts = [
            sum(
                ratio <= 1.05
                for (n, j, *_), ratio in ratios.items()
                if (n, j) == (network, jitter)
            )
            for network in ("400", "10 ", "200")
        ]
        check_sentence(page, words, counts)


def test_the_clock_has_a_table_of_arrays(clock):
    page, log = clock
    programs = {(r["leaves"], r["step"]): r for r in log["program"]}
    copies = 4 * log["run"][0]["config"]["measured"]
    for leaves in log["run"][0]["config"]["leaves"]:
        local, streamed = programs[leaves, "local"], programs[leaves, "streamed"]
        (row,) = [x for x in page.splitlines() if x.startswith(f"| {leaves} | ")]
        values = [
            streamed["instructions"] - local["instructions"],
            local["bytes_accessed"] / copies,
            streamed["bytes_accessed"] / copies,
            local["compile_seconds"],
            streamed["compile_seconds"],
        ]
        for cell, value in zip(row.strip("| ").split(" | ")[1:], values, strict=True):
            assert shown(cell, value), f"{row}: {cell} is {value}"
