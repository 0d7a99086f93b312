"""The certificate: whether communication is hidden, why not, and what helps."""

from collections import Counter
from typing import Any, NamedTuple

from cocod_jax._text import human_bytes
from cocod_jax.certify._dataflow import CollectiveFlow
from cocod_jax.certify._picture import draw, picture
from cocod_jax.certify._reasons import Reason
from cocod_jax.certify._schedule import Schedule


class Certificate(NamedTuple):
    """What the compiler does with the communication of a program.

    Attributes:
      target: the GPU or TPU that it was compiled for.
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
        """Whether every exchange is in flight during all that may hide it.

        That is all local steps, or, in a program of one step, all of its work that
        neither needs the exchange nor is needed by it.
        """
        return not self.reasons

    @property
    def share(self) -> float:
        """The share of its program's work that runs beside an exchange, 0 to 1.

        The least of all exchanges; the program of one that stands in a loop is the
        loop's body. An estimate by FLOPs and bytes (:class:`Beside`).
        """
        return min((c.beside.work for c in self.schedule.collectives), default=0.0)

    @property
    def verdict(self) -> str:
        """In one line, what hides the exchange, or why it is exposed."""
        in_part = {r.id for r in self.reasons} <= {
            "partly",
            "starts-late",
            "ends-early",
        }
        if not in_part:
            return "exposed: " + "; ".join(r.id for r in self.reasons)
        if self.schedule.steps:
            least = min(c.steps for c in self.schedule.collectives)
            behind = f"behind {least:.3g} of {self.schedule.steps:.3g} local steps"
        else:
            all_beside = (c.beside for c in self.schedule.collectives)
            least = min(all_beside, key=lambda beside: beside.work)
            behind = (
                f"beside {least.operations} of {least.of} operations, "
                f"{least.work:.0%} of the step's work"
            )
        return f"partly hidden {behind}" if self.reasons else f"hidden {behind}"

    def check(self, at_least: float | None = None) -> "Certificate":
        """Returns the certificate if all is hidden.

        Args:
          at_least: the :attr:`share` that is enough, 0 to 1. None asks for all work
            that can run beside the exchanges, or all local steps (:attr:`hidden`).

        Raises:
          ExposedError: with the whole certificate, when something is exposed.
          ValueError: when ``at_least`` is not a number from 0 to 1.
        """
        if at_least is not None and not 0 <= at_least <= 1:
            raise ValueError(f"at_least={at_least!r} must be a number from 0 to 1.")
        if not (self.hidden if at_least is None else self.share >= at_least):
            raise ExposedError(str(self))
        return self

    def __str__(self) -> str:
        where = f"{self.devices} x {self.target}, hosts: {self.hosts}"
        if self.workers != self.devices:
            where += f", workers: {self.workers}"
        memory = f"memory beside inputs and outputs: {human_bytes(self.temp_bytes)}"
        if self.overlap_bytes is not None:
            memory += f", {human_bytes(self.overlap_bytes)} held for the overlap"
        lines = [f"{self.verdict}  ({where})", picture(self.schedule), memory]
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
