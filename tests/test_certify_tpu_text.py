"""Texts of the compiler for TPUs, libtpu 0.0.42.1, cut to what the reader needs.

The program is CoCoD-SGD on a matrix of 128 x 128, eight steps, four workers. What is
cut are metadata, the loss, and most of the scalars that a continuation passes on.
"""

from pathlib import Path

import pytest

from cocod_jax.certify._hlo import Module
from cocod_jax.certify._memory import overlap_bytes
from cocod_jax.certify._picture import picture
from cocod_jax.certify._schedule import read_schedule
from cocod_jax.certify._work import FLOPS_PER_BYTE, Work

WORKERS = range(4)
MATRIX = 4 * 128 * 128
TEXTS = {
    path.stem: path.read_text()
    for path in (Path(__file__).parent / "hlo").glob("*.txt")
}

# On v6e the sparse cores are called; on v5e the product of each step takes a part of
# the exchange along, as a continuation.
asynchronous = pytest.mark.parametrize("target", ["v5e", "v6e"])


@asynchronous
def test_an_exchange_beside_the_loop_is_read(target):
    schedule = read_schedule(TEXTS[target], 8, WORKERS)
    (exchange,) = schedule.collectives
    assert exchange[:6] == ("all-reduce", "f32", MATRIX, True, 8.0, "round")
    assert schedule.inside_workers == ()
    (timeline,) = schedule.timelines
    assert [event.what for event in timeline] == ["start", "steps", "done"]
    assert "[ 8 local steps ][ merge ]" in picture(schedule)
    # A move between memories is no operation, and a call that only prepares is none.
    assert exchange.beside[:2] == {"v5e": (2, 4), "v6e": (1, 3)}[target]


@asynchronous
def test_the_overlap_holds_the_snapshot_and_what_is_in_flight(target):
    assert overlap_bytes(TEXTS[target], WORKERS) == 2 * MATRIX


@asynchronous
def test_between_the_devices_of_one_worker_it_is_no_exchange(target):
    schedule = read_schedule(TEXTS[target], 8, (0, 0, 0, 0))
    assert schedule.collectives == ()
    (inside,) = schedule.inside_workers
    assert (inside.kind, inside.is_async, inside.place) == ("all-reduce", True, "round")


def test_without_the_flags_it_is_synchronous():
    (exchange,) = read_schedule(TEXTS["synchronous"], 8, WORKERS).collectives
    assert exchange[:6] == ("all-reduce", "f32", MATRIX, False, 0, "round")
    assert overlap_bytes(TEXTS["synchronous"], WORKERS) is None


def test_a_kernel_that_takes_an_exchange_along_is_worth_its_own_work():
    """What it passes on costs nothing."""
    worth = []
    for text in TEXTS.values():
        module = Module(text, WORKERS)
        (name,) = [name for name, place in module.places.items() if place == "loop"]
        (kernel,) = [i for i in module.computations[name] if i.opcode == "fusion"]
        work = Work(module)
        assert work.flops(kernel, name) == 2 * 128 * 128 * 32
        worth.append(work.of(kernel, name))
    assert worth == [max(2 * 128 * 128 * 32 / FLOPS_PER_BYTE, 2 * MATRIX)] * 3


@pytest.mark.parametrize(
    ("old", "new", "trips"),
    [
        ("constant(8)", "constant(3)", 3),
        ("direction=LT", "direction=NE", None),
        ("s32[]{:T(128)} constant(8)", "f32[]{:T(128)} constant(0.5)", None),
        ("  ROOT %lt.5 =", "  %c = s32[]{:T(128)} constant(4)\n  ROOT %lt.5 =", None),
    ],
)
def test_the_loop_counts_up_to_a_constant(old, new, trips):
    module = Module(TEXTS["synchronous"].replace(old, new), WORKERS)
    (loop,) = [i for i in module.computations["main.6_spmd"] if i.opcode == "while"]
    assert module.trips(loop) == trips


def test_a_fusion_that_holds_a_whole_exchange_is_one():
    """Without a start there is nothing that it could be a part of."""
    text = TEXTS["v5e"].replace("AsyncCollectiveStart", "AllReduce")
    text = text.replace("AsyncCollectiveDone", "AllReduce")
    schedule = read_schedule(text, 8, WORKERS)
    assert {c.place for c in schedule.collectives} == {"round", "loop"}
    assert not any(c.is_async for c in schedule.collectives)
