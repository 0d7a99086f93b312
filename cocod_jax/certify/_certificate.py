"""The certificate: whether communication is hidden, why not, and what helps."""

from collections import Counter
from typing import Any, NamedTuple

from cocod_jax._text import human_bytes
from cocod_jax.certify._dataflow import CollectiveFlow
from cocod_jax.certify._picture import draw, picture
from cocod_jax.certify._schedule import Schedule
from cocod_jax.execution._flags import SCHEDULER


class Reason(NamedTuple):
    """Why a collective is exposed.

    Attributes:
      id: short and stable, for tests and for links.
      why: one sentence.
      cure: what to change.
    """

    id: str
    why: str
    cure: str


REASONS = {
    reason.id: reason
    for reason in (
        Reason(
            "nothing-sent",
            "The program holds no collective.",
            "Certify for two devices or more, with the name of the workers' axis.",
        ),
        Reason(
            "conditional",
            "A collective sits in a conditional, which ends before anything else runs.",
            "Decide in Python: compile a program for the rounds that send and one for "
            "those that do not, or use make_round, which always sends.",
        ),
        Reason(
            "in-loop",
            "A collective sits in the loop of the local steps, so every step waits "
            "for one.",
            "Send once a round, before the loop. Synchronous SGD cannot be hidden; "
            "CoCoD-SGD can.",
        ),
        Reason(
            "reduced-metric",
            "A second reduction needs the results of the local steps, such as the mean "
            "of the loss. The compiler merges it with the exchange, which then waits "
            "for the steps too.",
            "Return the metrics of each worker and reduce them outside of the round.",
        ),
        Reason(
            "waits-for-steps",
            "The collective needs the results of the local steps.",
            "Send the snapshot that was taken before the steps.",
        ),
        Reason(
            "steps-wait",
            "The local steps need what the collective brings, as in Local SGD "
            "(delay 0).",
            "Merge after the steps: a period and a delay of 2 or more.",
        ),
        Reason(
            "no-steps",
            "The program has no loop of local steps to hide a collective behind.",
            "Write the local steps as one lax.scan.",
        ),
        Reason(
            "scheduler-off",
            "The compiler's latency-hiding scheduler is off for this GPU, and "
            "collectives run alone.",
            f"Set XLA_FLAGS=--{SCHEDULER}=true, or give that option to jax.jit. "
            "certify(..., latency_hiding=True) tries it.",
        ),
        Reason(
            "many-buffers",
            "Several collectives share the round, and only one can be in flight beside "
            "the local steps.",
            "Send one flat buffer (jax.flatten_util.ravel_pytree), as cj.mean does.",
        ),
        Reason(
            "partly",
            "A collective is in flight beside a part only of the steps that it could "
            "run beside. A loop of one step is none to the compiler, which then sends "
            "in the middle of that step, as late as it thinks it can afford.",
            "Let two steps or more run beside it: a delay of 2, and a period of at "
            "least that.",
        ),
        Reason(
            "inner-collectives",
            "The devices of a worker communicate in the local steps, and the compiler "
            "keeps only one collective in flight.",
            "Give each worker one device, where the model fits on it.",
        ),
        Reason(
            "compiler",
            "Nothing in the program forbids the overlap, but the compiler did not "
            "schedule it.",
            "Look at the compiled text; memory near the GPU's limit and flags in "
            "XLA_FLAGS can both do this.",
        ),
    )
}


# The share of the steps that counts as all of them: a collective starts after the first
# kernels of a step.
_WHOLE = 0.9


class Certificate(NamedTuple):
    """What the compiler does with the communication of a program.

    Attributes:
      target: the GPU it was compiled for.
      devices: the number of devices.
      workers: the number of workers, which have one device each or several.
      hosts: the number of hosts that the devices are spread over, evenly.
      flows: what the program allows, from the jaxpr.
      schedule: what the compiler made of it.
      reasons: why something is exposed, most important first; empty when all is
        hidden.
      temp_bytes: memory of one device beside its inputs and outputs.
      overlap_bytes: what one device holds during the local steps for the overlap: the
        buffers in flight, and a snapshot where the state is donated. None where no
        exchange is in flight during a loop of local steps.
    """

    target: str
    devices: int
    workers: int
    hosts: int
    flows: tuple[CollectiveFlow, ...]
    schedule: Schedule
    reasons: tuple[Reason, ...]
    temp_bytes: int
    overlap_bytes: int | None = None

    @property
    def hidden(self) -> bool:
        """Whether every exchange is in flight during all steps that may hide it."""
        return not self.reasons

    @property
    def verdict(self) -> str:
        """In one line, what hides the exchange, or why it is exposed."""
        if self.reasons and self.reasons != (REASONS["partly"],):
            return "exposed: " + "; ".join(r.id for r in self.reasons)
        least = min(c.steps for c in self.schedule.collectives)
        behind = f"hidden behind {least:.3g} of {self.schedule.steps:.3g} local steps"
        return f"partly {behind}" if self.reasons else behind

    def check(self) -> "Certificate":
        """Returns the certificate if all is hidden.

        Raises:
          ExposedError: with the whole certificate, when something is exposed.
        """
        if not self.hidden:
            raise ExposedError(str(self))
        return self

    def __str__(self) -> str:
        gpus = f"{self.devices} x {self.target}, hosts: {self.hosts}"
        if self.workers != self.devices:
            gpus += f", workers: {self.workers}"
        memory = f"memory beside inputs and outputs: {human_bytes(self.temp_bytes)}"
        if self.overlap_bytes is not None:
            memory += f", {human_bytes(self.overlap_bytes)} held for the overlap"
        lines = [f"{self.verdict}  ({gpus})", picture(self.schedule), memory]
        if inside := Counter(c.kind for c in self.schedule.inside_workers):
            kinds = ", ".join(f"{n} {kind}" for kind, n in sorted(inside.items()))
            lines.append(f"inside a worker, not to be hidden: {kinds}")
        if not self.hidden:
            lines += dict.fromkeys(f"the program has {flow}" for flow in self.flows)
            lines += [f"{r.id}: {r.why}\n  -> {r.cure}" for r in self.reasons]
        return "\n".join(lines)

    def plot(self, ax: Any = None) -> Any:
        """Draws the schedule with matplotlib: one row computes, the others send.

        Args:
          ax: axes to draw on; None makes new ones.

        Returns:
          The axes.

        Raises:
          ImportError: when matplotlib is not installed; it says how to install it.
        """
        ax = draw(self.schedule, ax)
        ax.set_title(f"{self.devices} x {self.target}: {self.verdict}")
        return ax


class ExposedError(AssertionError):
    """A collective that should be hidden is not."""


def diagnose(
    flows: tuple[CollectiveFlow, ...], schedule: Schedule, *, scheduler: bool
) -> tuple[Reason, ...]:
    """Why something is exposed; empty when all is hidden.

    Args:
      flows: what the program allows.
      schedule: what the compiler made of it. It has the last word on *whether*
        something is exposed; the data flow explains it.
      scheduler: whether the latency-hiding scheduler was on.
    """
    if not schedule.collectives:
        return (REASONS["nothing-sent"],)
    flows = tuple(f for f in flows if not f.inside_worker)
    if all(c.hidden for c in schedule.collectives):
        return (REASONS["partly"],) if _in_part(flows, schedule) else ()
    once = [f for f in flows if not f.in_conditional and not f.in_loop]
    late = [f for f in once if f.before and not f.beside]
    early = [f for f in once if f.after and not f.before and not f.beside]
    # Only the schedule knows the collectives that the partitioner writes.
    unwritten = set() if flows else {c.place for c in schedule.collectives}
    causes = {
        "conditional": any(f.in_conditional for f in flows)
        or "conditional" in unwritten,
        "in-loop": any(f.in_loop for f in flows) or "loop" in unwritten,
        "reduced-metric": late and any(not f.before for f in once),
        "waits-for-steps": late and all(f.before for f in once),
        "steps-wait": early,
        # A loop that communicates hides nothing, but it is a loop of steps.
        "no-steps": not any(f.in_loop for f in flows)
        and any(not (f.before or f.beside or f.after) for f in once),
    }
    found = [name for name, holds in causes.items() if holds]
    if not found:
        found = [_by_the_compiler(schedule) if scheduler else "scheduler-off"]
    return tuple(REASONS[name] for name in found)


def _by_the_compiler(schedule: Schedule) -> str:
    """Why the compiler, its scheduler on, does not use the overlap that it may."""
    if len(schedule.collectives) > 1:
        return "many-buffers"
    busy = any(c.place == "loop" for c in schedule.inside_workers)
    return "inner-collectives" if busy else "compiler"


def _in_part(flows: tuple[CollectiveFlow, ...], schedule: Schedule) -> bool:
    """Whether a collective misses some of the steps that it could run beside."""
    taken = sorted(c.steps for c in schedule.collectives)
    allowed = sorted(f.beside for f in flows if f.beside)
    if len(taken) != len(allowed):  # some were combined; each may take the least
        allowed = [min(allowed, default=0)] * len(taken)
    return any(t < _WHOLE * a for t, a in zip(taken, allowed, strict=True))
