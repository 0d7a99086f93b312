"""The benchmark from its command to its figures, on the loopback and small."""

from typing import Any

import pytest

from cocod_jax.observe.loggers import read_jsonl
from experiments.clock import read_clocks
from experiments.cluster.network import Network
from experiments.overlap import __main__ as overlap
from experiments.overlap.config import NAMES, Timed

TIMED: tuple[Timed, ...] = ("ssgd", "cocod", "streamed_optimizer")
ALGORITHMS = {name: NAMES[name] for name in TIMED}

PEERS = {"model": "resnet18", "width": 64, "batch_size": 16}


def config(folder, **options):
    small: dict[str, Any] = {
        "rate": "none",
        "model": "cnn",
        "width": 2,
        "batch_size": 1,
        "period": 2,
        "repeats": 1,
    }
    return overlap.OverlapConfig(out=folder, algorithms=TIMED, **{**small, **options})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What a run of two real processes leaves."""
    out = tmp_path_factory.mktemp("overlap")
    with pytest.MonkeyPatch.context() as patch:
        # What the processes compile is to run, not to be fast.
        patch.setenv("JAX_DEFAULT_PRNG_IMPL", "rbg")
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        overlap.main(config(out))
    return out


def test_the_log_holds_results_timelines_parts_and_a_profile(folder):
    records = read_jsonl(folder / "overlap.jsonl")
    results = {r["algorithm"]: r for r in records["result"]}
    assert list(results) == ["local steps", "exchange", *ALGORITHMS.values()]
    assert all(len(r["repeats"]) == 1 for r in results.values())
    assert {(r["name"], r["worker"]) for r in records["timeline"]} == {
        (name, worker) for name in ALGORITHMS.values() for worker in (0, 1)
    }
    assert "merge" in {r["name"] for r in records["part"]}
    assert all(r["flop"] > 0 for r in records["profile"])
    assert records["end"] == [{"status": "finished"}]


def test_the_figures_are_drawn(folder):
    for name in ("bars.png", "timelines.png"):
        assert (folder / name).stat().st_size > 10_000


def test_the_clock_reads_it(folder):
    (clock,) = read_clocks(folder / "overlap.jsonl").values()
    assert (clock.rate, clock.workers, clock.period) == ("none", 2, 2)
    assert set(clock.algorithms) == set(ALGORITHMS.values())


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"workers": 1}, "workers=1 must be 2 or more"),
        ({"rate": "200mbit,quick"}, "rate='quick'"),
        ({"rate": ""}, "rate=''"),
        ({"peers": "torch"}, "width 64 and batch size 16"),
    ],
)
def test_what_cannot_be_measured_is_refused_at_once(tmp_path, options, match):
    with pytest.raises(ValueError, match=match):
        overlap.main(config(tmp_path / "out", **options))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("balance", ["", "1,fast", "0", "-1,2", "inf", "1,,2"])
def test_a_balance_that_no_link_has_is_refused_by_name(tmp_path, balance):
    with pytest.raises(ValueError, match=f"balance='{balance}' must be positive"):
        config(tmp_path, balance=balance)


def test_links_of_a_balance_are_made_from_what_was_measured_first(
    tmp_path, monkeypatch
):
    """A step of 0.5 s and 1 MB; the processes and namespaces are not there."""
    seen = []

    def ours(network, program, **options):
        seen.append((network.rate, options["algorithms"]))
        names = ("local steps", "exchange", *(ALGORITHMS if network.rate else ()))
        exchange = 0.5 * len(seen)
        return [
            {
                "algorithm": name,
                "worker": 0,
                "seconds_per_round": exchange if name == "exchange" else 1.0,
                "repeats": [0.5, 1.0, 2.0],
                "sent_bytes": 1e6,
            }
            for name in names
        ]

    monkeypatch.setattr(overlap, "run_program", ours)
    monkeypatch.setattr(Network, "__enter__", lambda network: network)
    monkeypatch.setattr(Network, "__exit__", lambda *args: None)
    monkeypatch.setattr(overlap.figures, "bars", lambda *args: None)
    monkeypatch.setattr(overlap.figures, "timelines", lambda *args: None)
    overlap.main(config(tmp_path, balance="0.5,2"))
    # 8 Mbit in a quarter of a second, and in a whole one, at 95 % of the rate.
    assert seen == [(None, ()), ("34mbit", TIMED), ("8mbit", TIMED)]
    log = read_jsonl(tmp_path / "overlap.jsonl")
    assert [(b["asked"], b["rate"]) for b in log["balance"]] == [
        (0.5, "34mbit"),
        (2.0, "8mbit"),
    ]
    assert (tmp_path / "balance.md").read_text().splitlines() == [
        "| Tm / Tc asked for | 0.5 | 2 |",
        "|---|---|---|",
        "| Tm / Tc measured | 2.00 | 3.00 |",
        "| ssgd (ours) | 1.00 (0.50 to 2.00) | 1.00 (0.50 to 2.00) |",
        "| cocod (ours) | 1.00 (0.50 to 2.00) | 1.00 (0.50 to 2.00) |",
        "| streamed_optimizer (ours) | 1.00 (0.50 to 2.00) | 1.00 (0.50 to 2.00) |",
    ]


def test_a_failing_peer_takes_nothing_of_what_was_measured(tmp_path, monkeypatch):
    def ours(*args, **options):
        names = ("local steps", "exchange", *ALGORITHMS.values())
        return [
            {"algorithm": n, "worker": 0, "seconds_per_round": 1.0, "repeats": [1.0]}
            for n in names
        ]

    def torch(*args, **options):
        raise RuntimeError("Worker 1 failed")

    monkeypatch.setattr(overlap, "run_program", ours)
    monkeypatch.setattr(overlap, "run_torch", torch)
    monkeypatch.setattr(overlap, "torch_python", lambda folder: folder)
    with pytest.raises(RuntimeError, match="Worker 1 failed"):
        overlap.main(config(tmp_path, peers="torch", **PEERS))
    records = read_jsonl(tmp_path / "overlap.jsonl")
    assert len(records["result"]) == 2 + len(ALGORITHMS)
