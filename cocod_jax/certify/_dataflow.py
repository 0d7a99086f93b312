"""What a program lets a collective overlap with, read from its jaxpr.

A compiler can run a collective beside a loop only when neither needs the
other's results. The jaxpr says so on any machine, before any compilation.
"""

import functools
import math
import operator
from collections.abc import Iterator
from typing import Any, NamedTuple

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from cocod_jax._text import human_bytes

COLLECTIVES = frozenset(
    {
        "all_gather",
        "all_gather_invariant",
        "all_gather_reduced",
        "all_to_all",
        "pbroadcast",
        "pmax",
        "pmin",
        "ppermute",
        "precv",
        "psend",
        "psum",
        "psum_invariant",
        "ragged_all_to_all",
        "reduce_scatter",
        "unreduced_psum",
        "unreduced_reduce_scatter",
    }
)
_LOOPS = frozenset({"scan", "while"})
_STEPS, _PRODUCTS = "local steps", "matrix products"
_MATMULS = frozenset({"dot_general", "conv_general_dilated"})


class CollectiveFlow(NamedTuple):
    """One collective of a program, and where it stands to the work of the workers.

    The work is counted in local steps, which are the loops that hold no exchange: no
    collective over the axis of workers. They may hold others, between the devices of
    one worker. Steps whose number is not known before the program runs (a ``while``)
    count once. A program without such loops is one step, and so is the body of a loop
    that exchanges; their work is counted in matrix products and convolutions.

    Attributes:
      name: the jaxpr's primitive, such as ``psum``.
      dtype: the dtype of what a worker sends; several are joined by commas.
      bytes: what a worker sends, in bytes.
      before: the work that it waits for.
      beside: the work that may run while it is in flight.
      after: the work that waits for it.
      in_conditional: whether it sits in a branch of a ``cond``.
      in_loop: whether it sits in the loop of the local steps itself.
      inside_worker: whether it stays between the devices of one worker. Only the
        others are exchanges, and ought to be hidden.
      unit: ``local steps`` or ``matrix products``.
      chained: whether it needs what another exchange brings, and no work stands between
        the two, that the other could run beside.
    """

    name: str
    dtype: str
    bytes: int
    before: int
    beside: int
    after: int
    in_conditional: bool
    in_loop: bool
    inside_worker: bool = False
    unit: str = _STEPS
    chained: bool = False

    @property
    def all_work(self) -> int:
        """Before, beside and after."""
        return self.before + self.beside + self.after

    def __str__(self) -> str:
        place = ", in a conditional" * self.in_conditional
        place += ", in the local loop" * self.in_loop
        place += ", inside a worker" * self.inside_worker
        return (
            f"{self.name} {self.dtype} {human_bytes(self.bytes)}: {self.unit} "
            f"{self.before} before, {self.beside} beside, {self.after} after{place}"
        )


def flows_of(
    jaxpr: Jaxpr, axis_name: str, *, one_round: bool = False
) -> tuple[CollectiveFlow, ...]:
    """Every collective of a program, in program order.

    Args:
      jaxpr: the program.
      axis_name: the axis of workers. In a program that has no such axis, every
        collective is an exchange.
      one_round: whether the program is known to be one round. In any other program, a
        loop that holds both a collective and a loop without one counts as a loop over
        rounds, although the inner loop may as well run over micro-batches.
    """
    axes = set().union(*map(_axes, _equations(jaxpr)))
    walk = _Walk(axis_name if axis_name in axes else None, one_round)
    walk.enter(jaxpr)
    return tuple(walk.collectives)


class _Found(NamedTuple):
    """A collective, a loop of local steps or a matrix product, and what it needs.

    Its arrays are those of a worker, or of one of a worker's ``devices``.
    """

    eqn: JaxprEqn
    needs: int
    in_conditional: bool
    devices: int


class _Walk:
    """Follows values through nested jaxprs.

    A label is a set of indices into ``found``, as the bits of an integer.
    """

    def __init__(self, axis_name: str | None, one_round: bool) -> None:
        self.axis_name = axis_name  # None: every axis is one of workers
        self.one_round = one_round
        self.collectives: list[CollectiveFlow] = []
        self.found: list[_Found] = []
        self.devices = 1  # of a worker, that run what is followed

    def enter(self, jaxpr: Jaxpr, *, in_loop: bool = False) -> None:
        """Walks a program: the whole one, or the body of a loop as one.

        Args:
          jaxpr: the program.
          in_loop: whether it is the body of the loop of local steps, one step.
        """
        outer, self.found = self.found, []
        self.follow(jaxpr, [0] * len(jaxpr.invars), in_conditional=False)
        self.collectives += self.positions(in_loop)
        self.found = outer

    def follow(
        self, jaxpr: Jaxpr, labels: list[int], *, in_conditional: bool
    ) -> list[int]:
        """The labels that the outputs depend on, given those of the inputs."""
        env = dict(zip(jaxpr.invars, labels, strict=True))
        read = lambda v: 0 if isinstance(v, Literal) else env.get(v, 0)
        for eqn in jaxpr.eqns:
            inputs = [read(v) for v in eqn.invars]
            outputs = self.step(eqn, inputs, in_conditional)
            env.update(zip(eqn.outvars, outputs, strict=True))
        return [read(v) for v in jaxpr.outvars]

    def step(self, eqn: JaxprEqn, inputs: list[int], in_conditional: bool) -> list[int]:
        name, inner = eqn.primitive.name, _subjaxprs(eqn)
        needs = functools.reduce(operator.or_, inputs, 0)
        if name in COLLECTIVES or name in _MATMULS:
            needs |= self.find(eqn, needs, in_conditional)
        elif name in _LOOPS:
            is_local = not self.exchanges(eqn)
            if is_local:
                needs |= self.find(eqn, needs, in_conditional)
            over_rounds = any(map(self.has_local_loop, inner)) and not self.one_round
            for body in inner:
                self.enter(body, in_loop=is_local or not over_rounds)
        elif len(inner) == 1 and len(inner[0].invars) == len(inputs):
            # A call (jit, shard_map, remat, custom_jvp): as if it were inlined.
            outer, self.devices = self.devices, self.devices * self.inside_worker(eqn)
            outputs = self.follow(inner[0], inputs, in_conditional=in_conditional)
            self.devices = outer
            return outputs
        elif _by_platform(eqn):  # decided before the program runs
            return self.follow(inner[0], inputs[1:], in_conditional=in_conditional)
        else:
            # To the compiler a conditional is one instruction: it needs all inputs.
            for body in inner:
                entering = [needs] * len(body.invars)
                conditional = in_conditional or name == "cond"
                for label in self.follow(body, entering, in_conditional=conditional):
                    needs |= label
        return [needs] * len(eqn.outvars)

    def find(self, eqn: JaxprEqn, needs: int, in_conditional: bool) -> int:
        self.found.append(_Found(eqn, needs, in_conditional, self.devices))
        return 1 << len(self.found) - 1

    def exchanges(self, eqn: JaxprEqn) -> bool:
        """Whether it is a collective between workers, or holds one."""
        if _is_collective(eqn):
            return self.axis_name is None or self.axis_name in _axes(eqn)
        return any(self.exchanges(e) for inner in _subjaxprs(eqn) for e in inner.eqns)

    def inside_worker(self, eqn: JaxprEqn) -> int:
        """Among how many devices of a worker a ``shard_map`` divides it."""
        if self.axis_name is None or not _is_mapped(eqn):
            return 1
        axes = eqn.params.keys() & {"manual_axes", "newly_manual_axes"}  # by version
        manual = {name for key in axes for name in eqn.params[key]}
        if self.axis_name in manual:
            return 1
        return math.prod(eqn.params["mesh"].shape[name] for name in manual)

    def has_local_loop(self, jaxpr: Jaxpr) -> bool:
        return any(
            e.primitive.name in _LOOPS and not self.exchanges(e)
            for e in _equations(jaxpr)
        )

    def positions(self, in_loop: bool) -> Iterator[CollectiveFlow]:
        """Places every collective among the work of its own program."""
        work = self.work(in_loop)
        total = sum(work.values())
        for label, item in enumerate(self.found):
            if not _is_collective(item.eqn):
                continue
            before = sum(n for i, n in work.items() if item.needs >> i & 1)
            after = sum(n for i, n in work.items() if self.found[i].needs >> label & 1)
            avals: list[Any] = [v.aval for v in item.eqn.invars]
            yield CollectiveFlow(
                name=item.eqn.primitive.name,
                dtype=",".join(dict.fromkeys(str(a.dtype) for a in avals)),
                bytes=item.devices * sum(a.size * a.dtype.itemsize for a in avals),
                before=before,
                beside=total - before - after,
                after=after,
                in_conditional=item.in_conditional,
                in_loop=in_loop,
                inside_worker=not self.exchanges(item.eqn),
                unit=_STEPS if self.loops() and not in_loop else _PRODUCTS,
                chained=any(self.follows(item, i, work) for i in range(label)),
            )

    def follows(self, item: _Found, label: int, work: dict[int, int]) -> bool:
        """Whether it needs the exchange of that label, with no work in between."""
        other = self.found[label]
        between = item.needs & ~other.needs
        return (
            bool(item.needs >> label & 1)
            and _is_collective(other.eqn)
            and self.exchanges(item.eqn)
            and self.exchanges(other.eqn)
            and not any(between >> i & 1 for i in work)
        )

    def loops(self) -> dict[int, JaxprEqn]:
        """The loops of local steps among what was found, by their labels."""
        loops = {
            i: f.eqn for i, f in enumerate(self.found) if f.eqn.primitive.name in _LOOPS
        }
        # Loops without a matrix product (a search, a sampler) are not local steps,
        # unless the model is so small that it has none.
        heavy = {i: eqn for i, eqn in loops.items() if _products(eqn)}
        return heavy or loops

    def work(self, in_loop: bool) -> dict[int, int]:
        """The labels of what counts as work, and how much each is."""
        if not in_loop and (loops := self.loops()):
            return {i: eqn.params.get("length", 1) for i, eqn in loops.items()}
        products = {i: _products(f.eqn) for i, f in enumerate(self.found)}
        return {i: n for i, n in products.items() if n}


def _is_collective(eqn: JaxprEqn) -> bool:
    return eqn.primitive.name in COLLECTIVES


def _is_mapped(eqn: JaxprEqn) -> bool:
    return eqn.primitive.name == "shard_map"


def _axes(eqn: JaxprEqn) -> set[Any]:
    """The axes that a collective is over, and those that a ``shard_map`` brings."""
    if _is_mapped(eqn):
        return set(eqn.params["mesh"].axis_names)
    if not _is_collective(eqn):
        return set()
    axes = eqn.params.get("axes", eqn.params.get("axis_name", ()))
    return set(axes) if isinstance(axes, tuple | list) else {axes}


def _subjaxprs(eqn: JaxprEqn) -> list[Jaxpr]:
    """The jaxprs among an equation's parameters that may run on a GPU."""
    values = []
    for param in eqn.params.values():
        values += param if isinstance(param, tuple | list) else [param]
    closed = [v.jaxpr if isinstance(v, ClosedJaxpr) else v for v in values]
    jaxprs = [v for v in closed if isinstance(v, Jaxpr)]
    if platforms := _by_platform(eqn):
        own = (i for i, names in enumerate(platforms) if not names or "cuda" in names)
        return [jaxprs[next(own, -1)]]
    return jaxprs


def _by_platform(eqn: JaxprEqn) -> tuple[Any, ...]:
    """The platforms of each branch of ``lax.platform_dependent``, None for others."""
    return eqn.params.get("branches_platforms") or ()


def _equations(jaxpr: Jaxpr) -> Iterator[JaxprEqn]:
    """All equations, however deeply nested."""
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in _subjaxprs(eqn):
            yield from _equations(inner)


def _products(eqn: JaxprEqn) -> int:
    """The matrix products of an equation, those of each turn of a loop included."""
    if eqn.primitive.name in _MATMULS:
        return 1
    inner = sum(_products(e) for jaxpr in _subjaxprs(eqn) for e in jaxpr.eqns)
    return inner * eqn.params.get("length", 1)
