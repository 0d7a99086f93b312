"""What the compiler scheduled between the start and the end of each collective.

An asynchronous collective is two instructions, ``-start`` and ``-done``; what stands
between them runs beside it.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from cocod_jax.certify._hlo import Instruction, Module, bytes_of, dtypes_of
from cocod_jax.certify._work import Work


class Beside(NamedTuple):
    """What runs beside a collective, of the computation that it stands in.

    That is the whole program, or the body of a loop. Shares are of its work, by FLOPs
    and bytes (``certify/_work.py``): an estimate, no time.

    Attributes:
      operations: those between its start and its end: kernels, copies, whole loops.
      of: all operations of the computation.
      work: the share of the work between start and end, 0 to 1.
      products: the share of its matrix products and convolutions, by FLOPs; 1 where
        there are none.
      missed_before: the share of the work that could run beside it and comes before
        the start.
      missed_after: the share of the work that could run beside it and comes after the
        end.
    """

    operations: int
    of: int
    work: float
    products: float
    missed_before: float
    missed_after: float

    @property
    def possible(self) -> float:
        """The share that neither needs the collective nor is needed by it."""
        return self.work + self.missed_before + self.missed_after


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
      beside: what runs beside it; all zero for one between the devices of one worker.
    """

    kind: str
    dtype: str
    bytes: int
    is_async: bool
    steps: float
    place: str
    beside: Beside = Beside(0, 0, 0.0, 0.0, 0.0, 0.0)

    @property
    def hidden(self) -> bool:
        """Whether it is in flight while local steps run."""
        return self.is_async and self.steps > 0


class Event(NamedTuple):
    """A moment in the schedule of a computation that communicates.

    Attributes:
      what: ``start``, ``done``, ``steps``, or ``operations`` where the program is of
        one step.
      collective: index into :attr:`Schedule.collectives`; None for what computes.
      steps: the number of local steps, or of operations; 0 for a start or an end.
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
      steps: local steps in the round; 0 where no loop of local steps stands beside an
        exchange, as in a program of one step.
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
        inlined by the compiler; this number says how many steps those are. With 0
        operations are counted instead.
      worker_of_device: for each device, in the program's order.
    """
    module = Module(hlo, worker_of_device)
    work = Work(module)
    collectives: list[Collective] = []
    timelines, inside = [], []
    for name, place in module.places.items():
        body = module.computations[name]
        found = [(i, sent) for i in body if (sent := module.started_by(i))]
        if any(module.exchanges(sent) for _, sent in found):
            first = len(collectives)
            timelines.append(_timeline(module, body, place, steps, collectives))
            started = [i for i, sent in found if module.exchanges(sent)]
            operations = list(_operations(module, body))
            each = {i.name: work.of(i, name) for i in operations}
            flops = {i.name: work.flops(i, name) for i in operations}
            for index, start in enumerate(started, first):
                beside = _beside(body, start, each, flops)
                collectives[index] = collectives[index]._replace(beside=beside)
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
    what = "steps" if steps else "operations"
    weights = (
        _step_weights(module, body, steps)
        if steps
        else dict.fromkeys((i.name for i in _operations(module, body)), 1.0)
    )
    events: list[Event] = []
    in_flight: dict[str, int] = {}
    for instruction in body:
        if weight := weights.get(instruction.name):
            for index in in_flight.values() if steps else ():
                passed = collectives[index].steps + weight
                collectives[index] = collectives[index]._replace(steps=passed)
            if events and events[-1].what == what:
                weight += events.pop().steps
            events.append(Event(what, None, weight))
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


def _operations(module: Module, body: list[Instruction]) -> Iterable[Instruction]:
    """What computes or copies; collectives do neither."""
    return (i for i in body if i.is_operation and not module.started_by(i))


def _beside(
    body: list[Instruction],
    start: Instruction,
    work: dict[str, float],
    flops: dict[str, float],
) -> Beside:
    """What of a computation stands between the start of a collective and its end.

    Args:
      body: the computation.
      start: what starts the collective.
      work: of each operation.
      flops: of its products.
    """
    begin = body.index(start)
    ends = (i for i, x in enumerate(body) if _ends(x, {start.name: 0}))
    end = next(ends, begin)  # it may end in another computation
    needed, needing = {start.name}, {body[end].name}
    for instruction in reversed(body[: begin + 1]):
        if instruction.name in needed:
            needed.update(instruction.operands)
    for instruction in body[end + 1 :]:
        if not needing.isdisjoint(instruction.operands):
            needing.add(instruction.name)
    free_of = lambda part, bound: [i for i in part if i.name not in bound]
    between = body[begin + 1 : end]
    return Beside(
        operations=sum(i.name in work for i in between),
        of=len(work),
        work=_share(between, work),
        products=_share(between, flops),
        missed_before=_share(free_of(body[:begin], needed), work),
        missed_after=_share(free_of(body[end + 1 :], needing), work),
    )


def _share(part: list[Instruction], of: dict[str, float]) -> float:
    """What these instructions have of the sum of all; 1 where that is nothing."""
    total = sum(of.values())
    return sum(of.get(i.name, 0.0) for i in part) / total if total else 1.0


def _step_weights(
    module: Module, body: list[Instruction], steps: int
) -> dict[str, float]:
    """How many local steps each instruction of a computation stands for."""
    loops = [i for i in body if i.opcode == "while" and not module.exchanges(i)]
    loops = module.heaviest(loops)
    weights = {i.name: float(module.trips(i) or 1) for i in loops}
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
