"""Compiled texts as jaxlib 0.10 and 0.12 write them, cut to what the reader needs."""

import re

import pytest

from cocod_jax.certify._dataflow import CollectiveFlow
from cocod_jax.certify._hlo import Module, replica_groups
from cocod_jax.certify._memory import overlap_bytes
from cocod_jax.certify._picture import picture
from cocod_jax.certify._reasons import Flags, diagnose
from cocod_jax.certify._schedule import Beside, Collective, read_schedule
from cocod_jax.certify._work import FLOPS_PER_BYTE, Work

ALL_FLAGS = Flags(missing=None, early_start=True)
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


STEP = """
HloModule jit_step, is_scheduled=true

%fused_dot (x.1: f32[512,1024], w.1: f32[1024,512]) -> f32[512,512] {
  %x.1 = f32[512,1024]{1,0} parameter(0)
  %w.1 = f32[1024,512]{1,0} parameter(1)
  ROOT %dot.1 = f32[512,512]{1,0} dot(%x.1, %w.1), lhs_contracting_dims={1}, \
rhs_contracting_dims={0}
}

%fused_slice (p.1: f32[4096], i.1: s32[]) -> f32[1024] {
  %p.1 = f32[4096]{0} parameter(0)
  %i.1 = s32[] parameter(1)
  ROOT %dynamic-slice.1 = f32[1024]{0} dynamic-slice(%p.1, %i.1), \
dynamic_slice_sizes={1024}
}

%fused_put (p.2: f32[4096], m.2: f32[1024], i.2: s32[]) -> f32[4096] {
  %p.2 = f32[4096]{0} parameter(0)
  %m.2 = f32[1024]{0} parameter(1)
  %i.2 = s32[] parameter(2)
  ROOT %dynamic-update-slice.1 = f32[4096]{0} dynamic-update-slice(%p.2, %m.2, %i.2)
}

ENTRY %main (x: f32[512,1024], w: f32[1024,512], image: f32[32,32,32,64], \
kernel: f32[64,3,3,64], p: f32[4096], i: s32[]) -> f32[4096] {
  %x = f32[512,1024]{1,0} parameter(0)
  %w = f32[1024,512]{1,0} parameter(1)
  %image = f32[32,32,32,64]{3,2,1,0} parameter(2)
  %kernel = f32[64,3,3,64]{3,2,1,0} parameter(3)
  %p = f32[4096]{0} parameter(4)
  %i = s32[] parameter(5)
  %piece = f32[1024]{0} fusion(%p, %i), kind=kLoop, calls=%fused_slice
  %all-reduce-start = STARTED all-reduce-start(%piece), channel_id=1, BETWEEN, \
backend_config={"collective_backend_config":{"is_sync":false}}
  %product = f32[512,512]{1,0} fusion(%x, %w), kind=kCustom, calls=%fused_dot
  %gemm = (f32[512,512]{1,0}, s8[4096]{0}) custom-call(%x, %w), \
custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":\
{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],\
"rhs_contracting_dimensions":["0"]}}}
  %conv = (f32[32,32,32,64]{3,2,1,0}, u8[0]{0}) custom-call(%image, %kernel), \
window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, \
custom_call_target="__cudnn$convForward"
  %y = f32[32,32,32,64]{3,2,1,0} get-tuple-element(%conv), index=0
  %bw-input = (f32[32,32,32,64]{3,2,1,0}, u8[0]{0}) custom-call(%y, %kernel), \
dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBackwardInput"
  %bw-filter = (f32[64,3,3,64]{3,2,1,0}, u8[0]{0}) custom-call(%image, %y), \
dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBackwardFilter"
  %all-reduce-done = f32[1024]{0} all-reduce-done(%all-reduce-start)
  ROOT %put = f32[4096]{0} fusion(%p, /*index=1*/%all-reduce-done, %i), kind=kLoop, \
calls=%fused_put
}
"""
DOT = 2 * 512 * 512 * 1024 / FLOPS_PER_BYTE
CONVOLUTION = 2 * 32 * 32 * 32 * 64 * (3 * 3 * 64) / FLOPS_PER_BYTE
WORK = {
    "piece": 2 * 4096 + 4,  # a slice is read, not all that it is cut from
    "product": DOT,
    "gemm": DOT,
    "conv": CONVOLUTION,
    "bw-input": CONVOLUTION,
    "bw-filter": CONVOLUTION,
    "put": 2 * 4096 + 4,
    "y": 0,
    "all-reduce-start": 0,
    "all-reduce-done": 0,
}


def step_text(version, move=None, behind=None):
    """A step in a version's spelling, one instruction moved behind another."""
    whole = STEP.strip().replace("\\\n", "").replace("BETWEEN", BETWEEN[version])
    started = STARTED[version].replace("16,64", "1024").replace("{1,0}", "{0}")
    lines = whole.replace("STARTED", started).splitlines()
    of = lambda name: next(
        n for n, line in enumerate(lines) if line.startswith(f"  %{name} =")
    )
    if move:
        line = lines.pop(of(move))
        lines.insert(of(behind) + 1, line)
    return "\n".join(lines)


def test_work_is_read_from_shapes(version):
    module = Module(step_text(version), range(8))
    body = {i.name: i for i in module.computations["main"]}
    work = Work(module)
    assert {name: work.of(body[name], "main") for name in WORK} == WORK


def test_a_step_s_work_beside_its_exchange(version):
    schedule = read_schedule(step_text(version), 0, WORKER_OF_DEVICE)
    (exchange,) = schedule.collectives
    assert (exchange.bytes, exchange.beside[:2]) == (4096, (5, 7))
    outside = WORK["piece"] + WORK["put"]
    share = 1 - outside / sum(WORK.values())
    assert exchange.beside[2:] == pytest.approx((share, 1, 0, 0))
    assert "[ 1 operation ][ 5 operations ][ 1 operation ]" in picture(schedule)


@pytest.mark.parametrize(
    ("move", "early_start", "expected"),
    [
        ((), False, []),
        (("all-reduce-start", "conv"), False, ["starts-late"]),
        (("all-reduce-start", "conv"), True, ["compiler"]),
        (("all-reduce-done", "conv"), True, ["ends-early"]),
        (("all-reduce-done", "all-reduce-start"), True, ["compiler"]),
    ],
)
def test_what_a_step_does_before_and_after_is_missed(
    version, move, early_start, expected
):
    schedule = read_schedule(step_text(version, *move), 0, WORKER_OF_DEVICE)
    unit = "matrix products"
    flow = CollectiveFlow("psum", "float32", 4096, 0, 5, 0, False, False, unit=unit)
    found = diagnose((flow,), schedule, Flags(None, early_start))
    assert [reason.id for reason in found] == expected


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [(0, 0, []), (2, 0, ["waits-for-steps"]), (0, 4, ["steps-wait"])],
)
def test_a_step_that_is_mostly_its_optimizer_is_judged_by_its_products(
    before, after, expected
):
    """A third of the work is beside the exchange, and nothing else could be."""
    schedule = read_schedule(step_text("0.12"), 0, WORKER_OF_DEVICE)
    (exchange,) = schedule.collectives
    third = exchange._replace(beside=Beside(5, 7, 0.3, 1.0, 0.0, 0.0))
    flow = CollectiveFlow(
        *("psum", "float32", 4096, before, 5 - before - after, after, False, False),
        unit="matrix products",
    )
    found = diagnose(
        (flow,),
        schedule._replace(collectives=(third,)),
        ALL_FLAGS,
    )
    assert [reason.id for reason in found] == expected


def test_products_that_the_compiler_tied_to_the_mean_are_missed():
    """Nothing that stands outside could run beside the exchange, in this schedule."""
    schedule = read_schedule(step_text("0.12"), 0, WORKER_OF_DEVICE)
    (exchange,) = schedule.collectives
    tied = exchange._replace(beside=Beside(3, 7, 0.6, 0.6, 0.0, 0.0))
    unit = "matrix products"
    flow = CollectiveFlow("psum", "float32", 4096, 0, 5, 0, False, False, unit=unit)
    schedule = schedule._replace(collectives=(tied,))
    found = diagnose((flow,), schedule, ALL_FLAGS)
    assert [reason.id for reason in found] == ["ends-early"]
