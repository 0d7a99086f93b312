"""Compiled texts as jaxlib 0.10 and 0.12 write them, cut to what the reader needs."""

import re

import pytest

from cocod_jax.certify._hlo import replica_groups
from cocod_jax.certify._memory import overlap_bytes
from cocod_jax.certify._schedule import Collective, read_schedule

WORKER_OF_DEVICE = (0, 0, 0, 0, 1, 1, 1, 1)
INSIDE = {
    "0.10": "replica_groups={{0,1,2,3},{4,5,6,7}}",
    "0.12": "replica_groups=mesh['workers'=2,'fsdp'=4] {'fsdp'}",
}
BETWEEN = {
    "0.10": "replica_groups={{0,4},{1,5},{2,6},{3,7}}",
    "0.12": "replica_groups=mesh['workers'=2,'fsdp'=4] {'workers'}",
}
STARTED = {"0.10": "f32[16,64]{1,0}", "0.12": "((f32[16,64]{1,0}), f32[16,64]{1,0})"}
SYNCHRONOUS = {
    "0.10": """
  %all-reduce-start = f32[16,64]{1,0} all-reduce-start(%copy.3), BETWEEN, \
backend_config={"collective_backend_config":{"is_sync":true}}
  %all-reduce-done = f32[16,64]{1,0} all-reduce-done(%all-reduce-start)
""",
    "0.12": """
  %psum.7.2 = f32[16,64]{1,0} all-reduce(%copy.3), channel_id=1, BETWEEN, \
backend_config={"collective_backend_config":{"is_sync":true}}
""",
}

BODY = """
HloModule jit_call, is_scheduled=true, input_output_alias={ {0}: (0, {}, may-alias) }

%region_1 (param: (s32[], f32[16,64])) -> (s32[], f32[16,64]) {
  %param = (s32[], f32[16,64]{1,0}) parameter(0)
  %get-tuple-element.1 = f32[16,64]{1,0} get-tuple-element(%param), index=1
  %all-gather-start = (f32[16,64]{1,0}, f32[64,64]{1,0}) \
all-gather-start(%get-tuple-element.1), channel_id=2, INSIDE, dimensions={0}
  %all-gather-done = f32[64,64]{1,0} all-gather-done(%all-gather-start)
  %dot = f32[16,64]{1,0} dot(%all-gather-done, %get-tuple-element.1)
}
"""

HIDDEN = """
ENTRY %main (param.1: f32[16,64]) -> f32[16,64] {
  %param.1 = f32[16,64]{1,0} parameter(0), sharding={devices=[8,1]<=[8]}
  %copy.3 = f32[16,64]{1,0} copy(%param.1)
  %all-reduce-start = STARTED all-reduce-start(%copy.3), channel_id=1, BETWEEN, \
backend_config={"collective_backend_config":{"is_sync":false}}
  %copy.4 = f32[16,64]{1,0} copy(%param.1)
  %tuple.7 = (s32[], f32[16,64]{1,0}) tuple(%zero, %copy.4)
  %while.9 = (s32[], f32[16,64]{1,0}) while(%tuple.7), condition=%region_3, \
body=%region_1, backend_config={"known_trip_count":{"n":"8"}}
  %get-tuple-element.5 = f32[16,64]{1,0} get-tuple-element(%while.9), index=1
  %all-reduce-done = f32[16,64]{1,0} all-reduce-done(%all-reduce-start)
  ROOT %fusion = f32[16,64]{1,0} fusion(%all-reduce-done, %get-tuple-element.5, \
%param.1), kind=kLoop, calls=%fused
}

%region_3 (param.2: (s32[], f32[16,64])) -> pred[] {
}

%fused (param.4: f32[16,64], param.5: f32[16,64]) -> f32[16,64] {
}
"""


def text(version, entry):
    """The text in a version's spelling."""
    words = {
        "INSIDE": INSIDE,
        "BETWEEN": BETWEEN,
        "STARTED": STARTED,
    }
    whole = (BODY + entry).strip().replace("\\\n", "")
    for word, spelled in words.items():
        whole = whole.replace(word, spelled[version])
    return whole


@pytest.fixture(params=["0.10", "0.12"])
def version(request):
    return request.param


def test_steps_that_communicate_inside_a_worker_hide_the_exchange(version):
    schedule = read_schedule(text(version, HIDDEN), 8, WORKER_OF_DEVICE)
    (exchange,) = schedule.collectives
    assert exchange[:6] == ("all-reduce", "f32", 4096, True, 8.0, "round")
    assert schedule.inside_workers == (
        Collective("all-gather", "f32", 4 * 4096, True, 0, "loop"),
    )
    (timeline,) = schedule.timelines
    assert [event.what for event in timeline] == ["start", "steps", "done"]


def test_where_each_device_is_a_worker_the_loop_exchanges(version):
    schedule = read_schedule(text(version, HIDDEN), 8, range(8))
    assert [c.place for c in schedule.collectives] == ["round", "loop"]
    assert schedule.inside_workers == ()


def test_a_synchronous_collective_is_read(version):
    start, end = HIDDEN.index("  %all-reduce-start"), HIDDEN.index("  %copy.4")
    entry = HIDDEN[:start] + SYNCHRONOUS[version].lstrip("\n") + HIDDEN[end:]
    late = r"  %all-reduce-done = .*\(%all-reduce-start\)\n(?=  ROOT)"
    entry = re.sub(late, "", entry)
    schedule = read_schedule(text(version, entry), 8, WORKER_OF_DEVICE)
    (exchange,) = schedule.collectives
    assert exchange[:6] == ("all-reduce", "f32", 4096, False, 0, "round")
    assert overlap_bytes(text(version, entry), WORKER_OF_DEVICE) is None


def test_the_overlap_holds_the_snapshot_and_what_is_in_flight(version):
    hidden = text(version, HIDDEN)
    assert overlap_bytes(hidden, WORKER_OF_DEVICE) == 2 * 4096
    kept = hidden.replace("{0}: (0, {}, may-alias)", "")  # the input is not donated
    assert overlap_bytes(kept, WORKER_OF_DEVICE) == 4096
    assert overlap_bytes(hidden, range(8)) is None  # the loop is none of local steps


GROUPS_OF_WORKERS = [[0, 4], [1, 5], [2, 6], [3, 7]]
GROUPS_INSIDE = [[0, 1, 2, 3], [4, 5, 6, 7]]


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups={{0,1,2,3},{4,5,6,7}}, use_global", GROUPS_INSIDE),
        ("replica_groups=[2,4]<=[8], dimensions={0}", GROUPS_INSIDE),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", GROUPS_OF_WORKERS),
        ("replica_groups=mesh['workers'=2,'fsdp'=4] {'fsdp'}", GROUPS_INSIDE),
        ("replica_groups=mesh['workers'=2,'fsdp'=4] {'workers'}", GROUPS_OF_WORKERS),
        ("replica_groups=mesh['workers'=2] {'workers'}, use_global", [[0, 1]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}", [[0, 1, 2, 3]]),
        ("source_target_pairs={{0,1},{1,0}}, metadata={}", [[0, 1], [1, 0]]),
        ("replica_groups={}, to_apply=%add", []),
        ("replica_groups=mesh['a'=8] {'a':(1)2}", []),
    ],
)
def test_groups_are_read_in_every_spelling(text, groups):
    assert replica_groups(f"all-reduce(%x), channel_id=1, {text}") == groups
