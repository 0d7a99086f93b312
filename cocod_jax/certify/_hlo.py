"""The text of a compiled module: its instructions, and the devices they join.

The text lists every instruction in the order in which a device gets it.
jaxlib 0.10 and 0.12 spell collectives differently: the later one writes a synchronous
one as a single instruction, and names devices by the axes of a mesh. The compiler for
TPUs spells an asynchronous one in two ways more, as a call on the sparse cores and as
continuations.
"""

import math
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

_KINDS = (
    *("all-reduce", "all-gather", "all-to-all", "ragged-all-to-all"),
    *("reduce-scatter", "collective-permute", "collective-broadcast"),
)
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(
    r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\((.*)$"
)
_CALLED = re.compile(
    r"(?:calls|body|to_apply|true_computation|false_computation)=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_CONTINUATION = re.compile(r'custom_call_target="AsyncCollective(Start|Done)"')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_GROUP_LISTS = re.compile(
    r"(?:replica_groups|source_target_pairs)=\{((?:\{[\d,]+\},?)+)\}"
)
_GROUP_RANGE = re.compile(
    r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?"
)
_SHAPE = re.compile(r"\b(pred|bf16|f8\w*|[fsuc]\d+)\[([\d,]*)\]")
# A part of an axis ('fsdp':(1)2) or devices in another order do not match: the
# collective then counts as one over all devices.
_GROUP_MESH = re.compile(
    r"replica_groups=mesh\[((?:'[^']*'=\d+,? ?)+)\] ?\{((?:'[^']*',? ?)+)\}"
)
_MATMUL_CALL = re.compile(r'custom_call_target="[^"]*(gemm|matmul|conv)', re.IGNORECASE)

# What costs nothing: names of values.
_FREE = (
    *("parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all"),
    *("partition-id", "replica-id"),
)
_FREE_CALL = re.compile(
    r'custom_call_target="(AllocateBuffer|ConcatBitcast|PrepareAsyncCall\w+)"'
)

# Where a called computation runs. A fusion or a reduction is not among them: its
# instructions are parts of one kernel.
_PLACES = {"while": "loop", "conditional": "conditional", "call": "round"}


class Instruction(NamedTuple):
    """One line of the text.

    Attributes:
      name: unique in its computation.
      shape: of the result, with its dtype.
      opcode: such as ``all-reduce-start``.
      rest: operands and attributes.
    """

    name: str
    shape: str
    opcode: str
    rest: str

    @property
    def called(self) -> list[str]:
        """The computations that it runs."""
        names = _CALLED.findall(self.rest)
        for branches in _BRANCHES.findall(self.rest):
            names += [name.strip(" %") for name in branches.split(",")]
        return names

    @property
    def kind(self) -> str | None:
        """The collective that it is, starts or ends; None for other instructions."""
        base = re.sub(r"-(start|done)$", "", self.opcode)
        return base if base in _KINDS else None

    @property
    def is_operation(self) -> bool:
        """Whether it computes or copies, on the stream that the local steps use."""
        beside = self.opcode.endswith(("-start", "-done"))
        is_free = self.opcode in _FREE or _FREE_CALL.search(self.rest)
        return not (beside or self.kind or is_free)

    @property
    def operands(self) -> list[str]:
        """The names of the instructions whose results it takes."""
        listed = re.sub(r"/\*.*?\*/", "", self.rest.partition(")")[0])
        return re.findall(r"%?([A-Za-z_][\w.\-]*)", listed)

    @property
    def element(self) -> int:
        """The position of what a ``get-tuple-element`` takes."""
        return int(self.rest.partition("index=")[2].partition(",")[0])

    @property
    def number(self) -> int:
        """The position of a parameter, or the value of a whole constant."""
        return int(self.rest.partition(")")[0])

    @property
    def is_async(self) -> bool:
        """Whether it starts something that other instructions can run beside."""
        return self.opcode.endswith("-start") and '"is_sync":true' not in self.rest

    @property
    def loop_depth(self) -> int:
        """How many loops it was written in, even where they were inlined."""
        op_name = _OP_NAME.search(self.rest)
        return op_name.group(1).count("while/body") if op_name else 0


class Module:
    """Computations by name, and what they hold, however deep."""

    def __init__(self, hlo: str, worker_of_device: Sequence[int]) -> None:
        self.worker_of_device = worker_of_device
        self.computations: dict[str, list[Instruction]] = {}
        self.places: dict[str, str] = {}
        current: list[Instruction] = []
        for line in hlo.splitlines():
            if header := _COMPUTATION.match(line):
                current = self.computations.setdefault(header.group(2), [])
                if header.group(1):
                    self.places[header.group(2)] = "round"
            elif parts := _INSTRUCTION.match(line):
                current.append(Instruction(*parts.groups()))
        _spell_continuations(self.computations)
        for body in self.computations.values():
            for instruction in body:
                if place := _PLACES.get(instruction.opcode):
                    self.places.update(dict.fromkeys(instruction.called, place))

    def inside(self, instruction: Instruction) -> Iterator[Instruction]:
        """All instructions of the computations that one runs, however deep."""
        for name in instruction.called:
            for inner in self.computations[name]:
                yield inner
                yield from self.inside(inner)

    def exchanges(self, instruction: Instruction) -> bool:
        """Whether it is a collective between workers, or holds one."""
        return any(
            i.kind and not i.opcode.endswith("-done") and not self.stays_inside(i)
            for i in (instruction, *self.inside(instruction))
        )

    def stays_inside(self, collective: Instruction) -> bool:
        """Whether only devices of the same worker take part, in each of its groups."""
        groups = replica_groups(collective.rest)
        workers = [{self.worker_of_device[i] for i in group} for group in groups]
        return bool(groups) and all(len(each) == 1 for each in workers)

    def started_by(self, instruction: Instruction) -> Instruction | None:
        """The collective that an instruction starts, or is, if it does."""
        if instruction.kind:
            return None if instruction.opcode.endswith("-done") else instruction
        if instruction.opcode == "fusion" or instruction.opcode.endswith("-start"):
            return next((i for i in self.inside(instruction) if i.kind), None)
        return None

    def trips(self, loop: Instruction) -> int | None:
        """How often a loop runs, if it can be known."""
        if said := _TRIPS.search(loop.rest):
            return int(said.group(1))
        # The compiler for TPUs does not say it; a scan counts up to a constant.
        condition = _CONDITION.search(loop.rest)
        body = self.computations.get(condition.group(1)) if condition else None
        if not body or body[-1].opcode != "compare" or "=LT" not in body[-1].rest:
            return None
        whole = [i for i in body if i.opcode == "constant" and i.shape[0] in "su"]
        return whole[0].number if len(whole) == 1 else None

    def heaviest(self, instructions: list[Instruction]) -> list[Instruction]:
        """The instructions that hold a matrix product, or all where none does."""
        return [i for i in instructions if self.multiplies(i)] or instructions

    def multiplies(self, instruction: Instruction) -> bool:
        return any(
            i.opcode in ("dot", "convolution") or _MATMUL_CALL.search(i.rest)
            for i in (instruction, *self.inside(instruction))
        )


def _spell_continuations(computations: dict[str, list[Instruction]]) -> None:
    """Spells the continuations of TPUs as a start and an end each, in place.

    A core that has no other unit for it exchanges in its own kernels: one fusion
    starts a collective, one ends it, and those between them, also in a loop, do a part
    of it beside their own work. All of them name the collective; custom calls tell
    the first and the last.
    """
    channels: dict[str, str] = {}
    roles: dict[str, str] = {}
    for name, body in computations.items():
        for i in body:
            if i.kind and (channel := _CHANNEL.search(i.rest)):
                channels[name] = channel.group(1)
            if role := _CONTINUATION.search(i.rest):
                roles[name] = role.group(1)
    for body in computations.values():
        starts: dict[str, str] = {}
        for n, fusion in enumerate(body):
            fused = fusion.called[0] if fusion.opcode == "fusion" else ""
            if roles.get(fused) == "Start":
                starts[channels[fused]] = fusion.name
                body[n] = fusion._replace(opcode="async-start")
            elif start := roles.get(fused) and starts.get(channels[fused]):
                body[n] = fusion._replace(opcode="async-done", rest=f"%{start})")
    started = {channels[name] for name in roles}
    for name in channels.keys() - roles.keys():
        if channels[name] in started:
            computations[name] = [i for i in computations[name] if not i.kind]


def replica_groups(text: str) -> list[list[int]]:
    """The devices that a collective joins; empty when it joins all of them.

    Args:
      text: the attributes of the instruction. Groups are written as a list, as the
        shape and transposition of a range, or by the axes of a mesh. A permutation has
        pairs of source and target instead.
    """
    if lists := _GROUP_LISTS.search(text):
        numbers = re.findall(r"\{([\d,]+)\}", lists.group(1))
        return [[int(n) for n in group.split(",")] for group in numbers]
    if iota := _GROUP_RANGE.search(text):
        shape, sizes, order = (
            [int(n) for n in part.split(",")] if part else None
            for part in iota.groups()
        )
        devices = np.arange(math.prod(sizes or ())).reshape(sizes or ())
        return devices.transpose(order).reshape(shape or (1, -1)).tolist()
    if mesh := _GROUP_MESH.search(text):
        axes = re.findall(r"'([^']*)'=(\d+)", mesh.group(1))
        names = [name for name, _ in axes]
        joined = [names.index(name) for name in re.findall(r"'([^']*)'", mesh.group(2))]
        devices = np.arange(math.prod(int(n) for _, n in axes))
        devices = devices.reshape([int(n) for _, n in axes])
        last = range(-len(joined), 0)
        members = math.prod(devices.shape[axis] for axis in joined)
        return np.moveaxis(devices, joined, last).reshape(-1, members).tolist()
    return []


def dtypes_of(shape: str) -> str:
    """The dtypes in a shape, joined by commas."""
    return ",".join(dict.fromkeys(dtype for dtype, _ in _SHAPE.findall(shape)))


def bytes_of(shape: str) -> int:
    """The bytes of a shape, which may be a tuple."""
    size = lambda dims: math.prod(int(n) for n in dims.split(",") if n)
    return sum(_itemsize(dtype) * size(dims) for dtype, dims in _SHAPE.findall(shape))


def dims_of(shape: str) -> list[int]:
    """The dimensions of a shape; of the first one in a tuple."""
    _, dims = next(iter(_SHAPE.findall(shape)), ("", ""))
    return [int(n) for n in dims.split(",") if n]


def _itemsize(dtype: str) -> int:
    digits = re.search(r"\d+", dtype)
    return max(int(digits.group()) // 8, 1) if digits else 1
