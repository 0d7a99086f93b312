"""The study of what passes a link: what is told, what was counted, and its page."""

import sys
from typing import Any

import pytest

from cocod_jax.observe.loggers import read_jsonl
from docs.generate import RESULTS
from experiments.wire import __main__ as wire
from experiments.wire.config import WireConfig
from experiments.wire.exchanges import EXCHANGES, link_bytes

STUDY = RESULTS / "20261130_wire"
BYTES = {"bf16": 2 * 256, "fp8": 256 + 4, "int8": 256 + 4, "int4": 128 + 4}


@pytest.mark.parametrize("workers", [2, 4])
def test_a_narrow_mean_passes_each_link_as_often_as_a_mean(workers):
    """2 (N - 1) / N times, in an all-reduce or an all-to-all and an all-gather."""
    times, size = 2 * (workers - 1) / workers, 256 * 8
    assert link_bytes(EXCHANGES["mean"](), workers, size) == times * 4 * size
    for numbers, of_a_block in BYTES.items():
        told = link_bytes(EXCHANGES[f"narrow {numbers}"](), workers, size)
        assert told == times * 8 * of_a_block


def test_what_was_counted_is_what_was_told():
    results = read_jsonl(STUDY / "wire.jsonl")["result"]
    page = (STUDY / "README.md").read_text()
    assert len(results) == 2 * len(EXCHANGES)
    for result in results:
        name, workers = result["exchange"], result["workers"]
        told = link_bytes(EXCHANGES[name](), workers, WireConfig().parameters)
        assert result["told"] == told
        assert abs(result["off"]) < 0.004
        row = f"| {workers} | {name} | {told / 1e3:.1f} | {result['counted'] / 1e3:.1f}"
        assert f"{row} | {result['off']:+.2%} |" in page


def test_headers_do_not_count(monkeypatch):
    """Two workers count 1,000 bytes for each of two exchanges, in five packets."""
    config, asked = WireConfig(exchanges=2), {}

    def run_program(network, program, **options):
        asked.update(options, workers=network.workers, program=program)
        counted = {"exchange": "mean", "tx_bytes": 2000, "tx_packets": 10}
        return [counted | {"worker": i} for i in range(2)]

    monkeypatch.setattr(wire, "run_program", run_program)
    monkeypatch.setattr(wire, "EXCHANGES", {"mean": EXCHANGES["mean"]})
    monkeypatch.setattr(wire, "Network", NoNetwork)
    show: Any = NoProgress()
    (result,) = wire.measure(config, 2, show)
    assert asked["program"] == [sys.executable, "-m", "experiments.wire.worker"]
    assert (asked["workers"], asked["exchanges"]) == (2, 2)
    assert result["counted"] == 1000
    assert result["payload"] == 1000 - 5 * 66
    assert result["off"] == result["payload"] / 4e6 - 1
    assert len(wire.table([result]).rows) == 1


class NoNetwork:
    """One that is not made."""

    def __init__(self, workers, rate):
        self.workers, self.rate = workers, rate

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


class NoProgress:
    """Nothing is shown."""

    def within(self, title):
        return lambda **progress: None
