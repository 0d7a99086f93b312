"""What the compiler scheduled between the start and the end of each collective.

The text of a compiled module lists every instruction in the order in which the
GPU's stream gets it. An asynchronous collective is two of them, ``-start`` and
``-done``; what stands between runs beside it.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

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
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_SHAPE = re.compile(r"\b(pred|bf16|f8\w*|[fsuc]\d+)\[([\d,]*)\]")
_MATMUL_CALL = re.compile(r'custom_call_target="[^"]*(gemm|matmul|conv)', re.IGNORECASE)

# Where the instructions of a called computation run. Those of a fusion or a
# reduction are part of one kernel and run nowhere by themselves.
_PLACES = {"while": "loop", "conditional": "conditional", "call": "round"}


class Collective(NamedTuple):
    """One collective as the compiler scheduled it.

    Attributes:
      kind: such as ``all-reduce``.
      dtype: in the compiler's spelling, such as ``f32``.
      bytes: what a worker receives, in bytes.
      is_async: whether anything can run beside it.
      steps: local steps between its start and its end. A fraction, when a step is
        not a loop any more (one step only) and part of it stands between.
      place: ``round``, ``loop`` or ``conditional``.
    """

    kind: str
    dtype: str
    bytes: int
    is_async: bool
    steps: float
    place: str

    @property
    def hidden(self) -> bool:
        """Whether it is in flight while local steps run."""
        return self.is_async and self.steps > 0


class Event(NamedTuple):
    """A moment in the schedule of a computation that communicates.

    Attributes:
      what: ``start``, ``done`` or ``steps``.
      collective: index into :attr:`Schedule.collectives`; None for steps.
      steps: how many local steps; 0 for a start or an end.
    """

    what: str
    collective: int | None
    steps: float


class Schedule(NamedTuple):
    """The collectives of a compiled program, and the local steps around them.

    Attributes:
      collectives: in the order of their starts.
      timelines: the events of each computation that holds a collective. A round
        has one; conditionals and loops with collectives have one each.
      steps: local steps in the round.
    """

    collectives: tuple[Collective, ...]
    timelines: tuple[tuple[Event, ...], ...]
    steps: float


class _Instruction(NamedTuple):
    name: str
    shape: str
    opcode: str
    rest: str

    @property
    def called(self) -> list[str]:
        names = _CALLED.findall(self.rest)
        for branches in _BRANCHES.findall(self.rest):
            names += [name.strip(" %") for name in branches.split(",")]
        return names

    @property
    def kind(self) -> str | None:
        base = re.sub(r"-(start|done)$", "", self.opcode)
        return base if base in _KINDS else None

    @property
    def loop_depth(self) -> int:
        """How many loops it was written in, even where they were inlined."""
        op_name = _OP_NAME.search(self.rest)
        return op_name.group(1).count("while/body") if op_name else 0


class _Module:
    """Computations by name, and what they hold, however deep."""

    def __init__(self, hlo: str) -> None:
        self.computations: dict[str, list[_Instruction]] = {}
        self.places: dict[str, str] = {}
        current: list[_Instruction] = []
        for line in hlo.splitlines():
            if header := _COMPUTATION.match(line):
                current = self.computations.setdefault(header.group(2), [])
                if header.group(1):
                    self.places[header.group(2)] = "round"
            elif parts := _INSTRUCTION.match(line):
                current.append(_Instruction(*parts.groups()))
        for body in self.computations.values():
            for instruction in body:
                if place := _PLACES.get(instruction.opcode):
                    self.places.update(dict.fromkeys(instruction.called, place))

    def inside(self, instruction: _Instruction) -> Iterator[_Instruction]:
        for name in instruction.called:
            for inner in self.computations[name]:
                yield inner
                yield from self.inside(inner)

    def communicates(self, instruction: _Instruction) -> bool:
        return any(i.kind for i in self.inside(instruction))

    def heaviest(self, instructions: list[_Instruction]) -> list[_Instruction]:
        """Those that hold a matrix product, or all where none does."""
        return [i for i in instructions if self.multiplies(i)] or instructions

    def multiplies(self, instruction: _Instruction) -> bool:
        return any(
            i.opcode in ("dot", "convolution") or _MATMUL_CALL.search(i.rest)
            for i in (instruction, *self.inside(instruction))
        )


def read_schedule(hlo: str, steps: int) -> Schedule:
    """Reads the schedule from the text of a compiled module.

    Args:
      hlo: the text, with ``is_scheduled=true``.
      steps: local steps in the round, from the data flow. A loop of one step is
        inlined by the compiler; this number says how many steps those are.
    """
    module = _Module(hlo)
    collectives: list[Collective] = []
    timelines = []
    for name, place in module.places.items():
        body = module.computations[name]
        if any(_starts(module, i) for i in body):
            timelines.append(_timeline(module, body, place, steps, collectives))
    return Schedule(tuple(collectives), tuple(timelines), steps)


def _timeline(
    module: _Module,
    body: list[_Instruction],
    place: str,
    steps: int,
    collectives: list[Collective],
) -> tuple[Event, ...]:
    """The events of one computation; appends its collectives to ``collectives``."""
    weights = _step_weights(module, body, steps)
    events: list[Event] = []
    in_flight: dict[str, int] = {}
    for instruction in body:
        if weight := weights.get(instruction.name):
            for index in in_flight.values():
                passed = collectives[index].steps + weight
                collectives[index] = collectives[index]._replace(steps=passed)
            if events and events[-1].what == "steps":
                weight += events.pop().steps
            events.append(Event("steps", None, weight))
        elif kind := _starts(module, instruction):
            in_flight[instruction.name] = len(collectives)
            events.append(Event("start", len(collectives), 0))
            split = instruction.opcode.endswith("-start")
            is_async = split and '"is_sync":true' not in instruction.rest
            collectives.append(Collective(kind, "", 0, is_async, 0, place))
        if ended := _ends(instruction, in_flight):
            index = in_flight.pop(ended)
            dtype, size = _dtype_and_bytes(instruction.shape)
            collectives[index] = collectives[index]._replace(dtype=dtype, bytes=size)
            events.append(Event("done", index, 0))
    return tuple(events)


def _starts(module: _Module, instruction: _Instruction) -> str | None:
    """The kind of collective that an instruction starts, if it does."""
    if instruction.opcode == "async-start":
        return next((i.kind for i in module.inside(instruction) if i.kind), None)
    return None if instruction.opcode.endswith("-done") else instruction.kind


def _ends(instruction: _Instruction, in_flight: dict[str, int]) -> str | None:
    """The name of the instruction that started what this one ends."""
    if instruction.opcode.endswith("-done"):
        names = re.findall(r"[\w.\-]+", instruction.rest.partition(")")[0])
        return next((name for name in names if name in in_flight), None)
    started = not instruction.opcode.endswith("-start")
    return instruction.name if started and instruction.name in in_flight else None


def _dtype_and_bytes(shape: str) -> tuple[str, int]:
    parts = _SHAPE.findall(shape)
    size = lambda dims: math.prod(int(n) for n in dims.split(",") if n)
    dtypes = ",".join(dict.fromkeys(dtype for dtype, _ in parts))
    return dtypes, sum(_itemsize(dtype) * size(dims) for dtype, dims in parts)


def _itemsize(dtype: str) -> int:
    digits = re.search(r"\d+", dtype)
    return max(int(digits.group()) // 8, 1) if digits else 1


def _step_weights(
    module: _Module, body: list[_Instruction], steps: int
) -> dict[str, float]:
    """How many local steps each instruction of a computation stands for."""
    loops = [i for i in body if i.opcode == "while" and not module.communicates(i)]
    loops = module.heaviest(loops)
    trips = {i.name: _TRIPS.search(i.rest) for i in loops}
    weights = {name: float(n.group(1)) if n else 1.0 for name, n in trips.items()}
    # A loop of one step leaves its kernels here; each is a part of that step. The
    # small ones are left out: the compiler fuses them with their neighbours.
    depth = min((i.loop_depth for i in body if _starts(module, i)), default=0)
    kernels = [
        i
        for i in body
        if i.opcode in ("fusion", "custom-call") and i.loop_depth > depth
    ]
    kernels = module.heaviest(kernels)
    inlined = steps - sum(weights.values())
    if inlined > 0:
        weights.update({i.name: inlined / len(kernels) for i in kernels})
    return weights
