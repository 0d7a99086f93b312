"""What a program lets a collective overlap with, read from its jaxpr.

A compiler can run a collective beside a loop only when neither needs the
other's results. The jaxpr says so on any machine, before any compilation.
"""

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
_MATMULS = frozenset({"dot_general", "conv_general_dilated"})


class CollectiveFlow(NamedTuple):
    """One collective of a program, and where it stands to the local steps.

    The local steps are the loops that hold no exchange: no collective over the axis of
    workers. They may hold others, between the devices of one worker. Steps whose number
    is not known before the program runs (a ``while``) count once.

    Attributes:
      name: the jaxpr's primitive, such as ``psum``.
      dtype: the dtype of what a worker sends; several are joined by commas.
      bytes: what a worker sends, in bytes.
      before: local steps that it waits for.
      beside: local steps that may run while it is in flight.
      after: local steps that wait for it.
      in_conditional: whether it sits in a branch of a ``cond``.
      in_loop: whether it sits in the loop of the local steps itself.
      inside_worker: whether it stays between the devices of one worker. Only the
        others are exchanges, and ought to be hidden.
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

    def __str__(self) -> str:
        place = ", in a conditional" * self.in_conditional
        place += ", in the local loop" * self.in_loop
        place += ", inside a worker" * self.inside_worker
        return (
            f"{self.name} {self.dtype} {human_bytes(self.bytes)}: local steps "
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
    """A collective or a loop of local steps, and what it depends on."""

    eqn: JaxprEqn
    needs: frozenset[int]
    in_conditional: bool
    is_loop: bool


class _Walk:
    """Follows values through nested jaxprs; a label is an index into ``found``."""

    def __init__(self, axis_name: str | None, one_round: bool) -> None:
        self.axis_name = axis_name  # None: every axis is one of workers
        self.one_round = one_round
        self.collectives: list[CollectiveFlow] = []
        self.found: list[_Found] = []

    def enter(self, jaxpr: Jaxpr) -> None:
        """Walks a program: the whole one, or one round of a loop over rounds."""
        outer, self.found = self.found, []
        self.follow(jaxpr, [frozenset()] * len(jaxpr.invars), in_conditional=False)
        self.collectives += self.positions()
        self.found = outer

    def follow(
        self, jaxpr: Jaxpr, labels: list[frozenset[int]], *, in_conditional: bool
    ) -> list[frozenset[int]]:
        """The labels that the outputs depend on, given those of the inputs."""
        env = dict(zip(jaxpr.invars, labels, strict=True))
        read = lambda v: frozenset() if isinstance(v, Literal) else env.get(v, _NONE)
        for eqn in jaxpr.eqns:
            inputs = [read(v) for v in eqn.invars]
            outputs = self.step(eqn, inputs, in_conditional)
            env.update(zip(eqn.outvars, outputs, strict=True))
        return [read(v) for v in jaxpr.outvars]

    def step(
        self, eqn: JaxprEqn, inputs: list[frozenset[int]], in_conditional: bool
    ) -> list[frozenset[int]]:
        name, inner = eqn.primitive.name, _subjaxprs(eqn)
        needs = frozenset().union(*inputs)
        if name in COLLECTIVES:
            needs |= self.find(eqn, needs, in_conditional)
        elif name in _LOOPS:
            is_local = not self.exchanges(eqn)
            if is_local:
                needs |= self.find(eqn, needs, in_conditional, is_loop=True)
            over_rounds = any(map(self.has_local_loop, inner)) and not self.one_round
            for body in inner:
                if over_rounds and not is_local:
                    self.enter(body)
                else:
                    self.collectives += self.inside_loop(body, in_conditional)
        elif len(inner) == 1 and len(inner[0].invars) == len(inputs):
            # A call (jit, shard_map, remat, custom_jvp): as if it were inlined.
            return self.follow(inner[0], inputs, in_conditional=in_conditional)
        else:
            # To the compiler a conditional is one instruction: it needs all inputs.
            for body in inner:
                entering = [needs] * len(body.invars)
                conditional = in_conditional or name == "cond"
                inside = self.follow(body, entering, in_conditional=conditional)
                needs = needs.union(*inside)
        return [needs] * len(eqn.outvars)

    def find(
        self,
        eqn: JaxprEqn,
        needs: frozenset[int],
        in_conditional: bool,
        is_loop: bool = False,
    ) -> frozenset[int]:
        self.found.append(_Found(eqn, needs, in_conditional, is_loop))
        return frozenset({len(self.found) - 1})

    def exchanges(self, eqn: JaxprEqn) -> bool:
        """Whether it is a collective between workers, or holds one."""
        if _is_collective(eqn):
            return self.axis_name is None or self.axis_name in _axes(eqn)
        return any(self.exchanges(e) for inner in _subjaxprs(eqn) for e in inner.eqns)

    def has_local_loop(self, jaxpr: Jaxpr) -> bool:
        return any(
            e.primitive.name in _LOOPS and not self.exchanges(e)
            for e in _equations(jaxpr)
        )

    def positions(self) -> Iterator[CollectiveFlow]:
        """Places every collective among the loops of its own program."""
        loops = {i: f for i, f in enumerate(self.found) if f.is_loop}
        # Loops without a matrix product (a search, a sampler) are not local steps,
        # unless the model is so small that it has none.
        heavy = {i: f for i, f in loops.items() if _any_primitive(f.eqn, _MATMULS)}
        lengths = {
            i: f.eqn.params.get("length", 1) for i, f in (heavy or loops).items()
        }
        for label, item in enumerate(self.found):
            if item.is_loop:
                continue
            before = sum(n for i, n in lengths.items() if i in item.needs)
            after = sum(n for i, n in lengths.items() if label in self.found[i].needs)
            yield self.flow(
                item.eqn,
                before=before,
                beside=sum(lengths.values()) - before - after,
                after=after,
                in_conditional=item.in_conditional,
            )

    def inside_loop(
        self, body: Jaxpr, in_conditional: bool
    ) -> Iterator[CollectiveFlow]:
        """The collectives of a loop that is itself the loop of the local steps."""
        for eqn in body.eqns:
            if _is_collective(eqn):
                yield self.flow(eqn, in_conditional=in_conditional, in_loop=True)
            for inner in _subjaxprs(eqn):
                conditional = in_conditional or eqn.primitive.name == "cond"
                yield from self.inside_loop(inner, conditional)

    def flow(
        self,
        eqn: JaxprEqn,
        before: int = 0,
        beside: int = 0,
        after: int = 0,
        in_conditional: bool = False,
        in_loop: bool = False,
    ) -> CollectiveFlow:
        avals: list[Any] = [v.aval for v in eqn.invars]
        return CollectiveFlow(
            name=eqn.primitive.name,
            dtype=",".join(dict.fromkeys(str(a.dtype) for a in avals)),
            bytes=sum(a.size * a.dtype.itemsize for a in avals),
            before=before,
            beside=beside,
            after=after,
            in_conditional=in_conditional,
            in_loop=in_loop,
            inside_worker=not self.exchanges(eqn),
        )


_NONE: frozenset[int] = frozenset()


def _is_collective(eqn: JaxprEqn) -> bool:
    return eqn.primitive.name in COLLECTIVES


def _axes(eqn: JaxprEqn) -> set[Any]:
    """The axes that a collective is over, and those that a ``shard_map`` brings."""
    if eqn.primitive.name == "shard_map":
        return set(eqn.params["mesh"].axis_names)
    if not _is_collective(eqn):
        return set()
    axes = eqn.params.get("axes", eqn.params.get("axis_name", ()))
    return set(axes) if isinstance(axes, tuple | list) else {axes}


def _subjaxprs(eqn: JaxprEqn) -> list[Jaxpr]:
    """The jaxprs among an equation's parameters."""
    values = []
    for param in eqn.params.values():
        values += param if isinstance(param, tuple | list) else [param]
    closed = [v.jaxpr if isinstance(v, ClosedJaxpr) else v for v in values]
    return [v for v in closed if isinstance(v, Jaxpr)]


def _equations(jaxpr: Jaxpr) -> Iterator[JaxprEqn]:
    """All equations, however deeply nested."""
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in _subjaxprs(eqn):
            yield from _equations(inner)


def _any_primitive(eqn: JaxprEqn, names: frozenset[str]) -> bool:
    return any(
        e.primitive.name in names
        for inner in _subjaxprs(eqn)
        for e in _equations(inner)
    )
