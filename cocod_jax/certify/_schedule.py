"""What the compiler scheduled between the start and the end of each collective.

An asynchronous collective is two instructions, ``-start`` and ``-done``; what stands
between them runs beside it.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from cocod_jax.certify._hlo import Instruction, Module, bytes_of, dtypes_of

_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


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
      steps: the number of local steps; 0 for a start or an end.
    """

    what: str
    collective: int | None
    steps: float


class Schedule(NamedTuple):
    """The exchanges of a compiled program, and the local steps around them.

    Attributes:
      collectives: those between workers, in the order of their starts.
      timelines: the events of each computation that holds an exchange. A round
        has one; conditionals and loops with exchanges have one each.
      steps: local steps in the round.
      inside_workers: the collectives between the devices of one worker. Nothing needs
        to hide them, and their ``steps`` are not counted.
    """

    collectives: tuple[Collective, ...]
    timelines: tuple[tuple[Event, ...], ...]
    steps: float
    inside_workers: tuple[Collective, ...] = ()


def read_schedule(hlo: str, steps: int, worker_of_device: Sequence[int]) -> Schedule:
    """Reads the schedule from the text of a compiled module.

    Args:
      hlo: the text, with ``is_scheduled=true``.
      steps: local steps in the round, from the data flow. A loop of one step is
        inlined by the compiler; this number says how many steps those are.
      worker_of_device: for each device, in the program's order.
    """
    module = Module(hlo, worker_of_device)
    collectives: list[Collective] = []
    timelines, inside = [], []
    for name, place in module.places.items():
        body = module.computations[name]
        found = [(i, sent) for i in body if (sent := module.started_by(i))]
        if any(module.exchanges(sent) for _, sent in found):
            timelines.append(_timeline(module, body, place, steps, collectives))
        inside += [
            _collective(start, sent, body, place)
            for start, sent in found
            if not module.exchanges(sent)
        ]
    return Schedule(tuple(collectives), tuple(timelines), steps, tuple(inside))


def _timeline(
    module: Module,
    body: list[Instruction],
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
        elif (sent := module.started_by(instruction)) and module.exchanges(sent):
            in_flight[instruction.name] = len(collectives)
            events.append(Event("start", len(collectives), 0))
            collectives.append(_collective(instruction, sent, body, place))
        if ended := _ends(instruction, in_flight):
            events.append(Event("done", in_flight.pop(ended), 0))
    return tuple(events)


def _collective(
    start: Instruction, sent: Instruction, body: list[Instruction], place: str
) -> Collective:
    """What an instruction starts, in the shape of the instruction that ends it."""
    end = next((i for i in body if _ends(i, {start.name: 0})), start)
    dtype, size = dtypes_of(end.shape), bytes_of(end.shape)
    return Collective(sent.kind or "", dtype, size, start.is_async, 0, place)


def _ends(instruction: Instruction, in_flight: dict[str, int]) -> str | None:
    """The name of the instruction that started what this one ends."""
    if instruction.opcode.endswith("-done"):
        names = instruction.operands
        return next((name for name in names if name in in_flight), None)
    started = not instruction.opcode.endswith("-start")
    return instruction.name if started and instruction.name in in_flight else None


def _step_weights(
    module: Module, body: list[Instruction], steps: int
) -> dict[str, float]:
    """How many local steps each instruction of a computation stands for."""
    loops = [i for i in body if i.opcode == "while" and not module.exchanges(i)]
    loops = module.heaviest(loops)
    trips = {i.name: _TRIPS.search(i.rest) for i in loops}
    weights = {name: float(n.group(1)) if n else 1.0 for name, n in trips.items()}
    # A loop of one step leaves its kernels here; each is a part of that step. The
    # small ones are left out: the compiler fuses them with their neighbours.
    sent = (i for i in body if module.started_by(i) and module.exchanges(i))
    depth = min((i.loop_depth for i in sent), default=0)
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
