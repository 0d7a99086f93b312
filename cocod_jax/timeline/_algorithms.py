"""When each algorithm sends, and when it waits."""

import dataclasses
from typing import Any, NamedTuple, Protocol

from cocod_jax._checks import check_counts, check_fractions, check_period


class Transfer(NamedTuple):
    """One exchange in an algorithm's plan.

    Attributes:
      round: the number of the round that it belongs to.
      sent: local steps after which a worker has sent. A fraction of a step stands
        for gradients: the first are sent there, the last at the end of that step.
      needed: local steps after which a worker waits for it, not fewer than ``sent``
        and not more than all.
      share: the part of the parameters that is sent, above 0, up to 1.
      everyone: whether a worker waits for all workers, or only for its two
        neighbours on a ring.
    """

    round: int
    sent: float
    needed: int
    share: float = 1.0
    everyone: bool = True


class Algorithm(Protocol):
    """What :func:`simulate` asks of an algorithm, also of your own.

    ``period`` is the number of local steps in a round. ``transfers(steps)`` is the
    plan: the exchanges of so many local steps, in the order of sending. Workers wait
    after the last step for those that no step needs.
    """

    @property
    def period(self) -> int: ...

    def transfers(self, steps: int) -> list[Transfer]: ...


def _one_each_round(steps: int, period: int, delay: int, **kind: Any) -> list[Transfer]:
    """Rounds of the library: snapshot, send, ``delay`` steps, merge, other steps."""
    return [
        Transfer(number, start, min(start + delay, steps), **kind)
        for number, start in enumerate(range(0, steps, period))
    ]


@dataclasses.dataclass(frozen=True)
class SSGD:
    r"""Synchronous SGD: k steps in :math:`k \max(T_c, f \, T_c + T_m)`.

    With f = 1 the gradient is sent after the step. With f < 1 it is sent while it is
    computed, in buckets, as data-parallel frameworks do: the exchange begins after the
    fraction f of the step, and ends when its time is over and the last gradient is
    there. This is the usual idealisation: very many buckets.

    Attributes:
      sends_after: f, above 0, up to 1. The forward pass is about a third of a step.

    Raises:
      ValueError: when ``sends_after`` is out of its range.
    """

    sends_after: float = 1.0
    period = 1

    def __post_init__(self):
        check_fractions(sends_after=self.sends_after)

    def transfers(self, steps: int) -> list[Transfer]:
        """See :class:`Algorithm`."""
        return [Transfer(t, t + self.sends_after, t + 1) for t in range(steps)]


@dataclasses.dataclass(frozen=True)
class PipeSGD:
    r"""Pipe-SGD: a step in :math:`\max(T_c, T_m)`.

    Beside a step the gradient of the last one is exchanged. The first exchange carries
    zeros, as in :func:`cocod_jax.stale_mean_gradients`.
    """

    period = 1

    def transfers(self, steps: int) -> list[Transfer]:
        """See :class:`Algorithm`."""
        return _one_each_round(steps, 1, 1)


@dataclasses.dataclass(frozen=True)
class CoCoDSGD:
    r"""CoCoD-SGD and the just-in-time merge: :math:`\max(d T_c, T_m) + (k - d) T_c`.

    Attributes:
      period: k, local steps in a round.
      delay: d, local steps between the snapshot and the merge; None is the period.

    Raises:
      ValueError: when ``period`` or ``delay`` is not an integer in its range.
    """

    period: int
    delay: int | None = None

    def __post_init__(self):
        check_period(self.period, self.delay)

    def transfers(self, steps: int) -> list[Transfer]:
        """See :class:`Algorithm`."""
        return _one_each_round(steps, *check_period(self.period, self.delay))


@dataclasses.dataclass(frozen=True)
class LocalSGD:
    r"""Local SGD, which is delay 0: k steps in :math:`k \, T_c + T_m`.

    Attributes:
      period: k, local steps in a round.

    Raises:
      ValueError: when ``period`` is not an integer of at least 1.
    """

    period: int

    def __post_init__(self):
        check_period(self.period, 0)

    def transfers(self, steps: int) -> list[Transfer]:
        """See :class:`Algorithm`."""
        return _one_each_round(steps, self.period, 0)


@dataclasses.dataclass(frozen=True)
class Gossip(CoCoDSGD):
    """CoCoD-SGD with two neighbours on a ring instead of everyone.

    A worker's exchange starts when it and its neighbours have sent, so that a
    straggler holds up its neighbours at first, and others only rounds later. A
    :class:`Link` for it has the topology "neighbours".

    Attributes:
      period: k, local steps in a round.
      delay: d, local steps between the snapshot and the merge; None is the period.

    Raises:
      ValueError: when ``period`` or ``delay`` is not an integer in its range.
    """

    def transfers(self, steps: int) -> list[Transfer]:
        """See :class:`Algorithm`."""
        period, delay = check_period(self.period, self.delay)
        return _one_each_round(steps, period, delay, everyone=False)


@dataclasses.dataclass(frozen=True)
class Streaming:
    """The parameters in fragments, each sent once a round, evenly spaced.

    Fragment p of P is sent after ⌊p k / P⌋ steps of the round and merged ``delay``
    steps later, in the next round if need be: the same bytes, a P-th at a time.

    Attributes:
      period: k, local steps in a round.
      fragments: P, 1 to ``period``.
      delay: d, local steps between snapshot and merge of a fragment, 0 to
        ``period``; None is the period.

    Raises:
      ValueError: when a value is not an integer in its range.

    References:
      Douillard et al., `Streaming DiLoCo with overlapping communication
      <https://arxiv.org/abs/2501.18512>`_, 2025, for the schedule.
    """

    period: int
    fragments: int
    delay: int | None = None

    def __post_init__(self):
        check_period(self.period, self.delay)
        check_counts(fragments=self.fragments)
        if self.fragments > self.period:
            raise ValueError(
                f"fragments={self.fragments} must be at most period={self.period}: "
                "one fragment is sent at a time."
            )

    def transfers(self, steps: int) -> list[Transfer]:
        """See :class:`Algorithm`."""
        period, delay = check_period(self.period, self.delay)
        plan = (
            (number, start + fragment * period // self.fragments)
            for number, start in enumerate(range(0, steps, period))
            for fragment in range(self.fragments)
        )
        return [
            Transfer(number, sent, min(sent + delay, steps), 1 / self.fragments)
            for number, sent in plan
            if sent < steps
        ]


@dataclasses.dataclass(frozen=True)
class Streamed:
    r"""A k-th of the parameters in every step: :math:`k \max(T_c, l + (T_m - l) / k)`.

    These are the rounds of ``make_round(..., streamed=True)``: what is sent before a
    step is merged after it. Each of the k messages has the latency l, which is a part
    of :math:`T_m`. Workers wait for each other in every step, one step late, so that a
    pause longer than that holds up everyone.

    Attributes:
      period: k, local steps in a round, and pieces.

    Raises:
      ValueError: when ``period`` is not an integer of at least 1.

    References:
      Relatives that send a part of the model at a time: Tang et al., `DreamDDP
      <https://arxiv.org/abs/2502.11058>`_, 2025 (layers, beside the backward pass, the
      mean overwrites); Douillard et al., `Streaming DiLoCo
      <https://arxiv.org/abs/2501.18512>`_, 2025 (groups of layers, an outer optimizer).
    """

    period: int

    def __post_init__(self):
        check_period(self.period, 1)

    def transfers(self, steps: int) -> list[Transfer]:
        """See :class:`Algorithm`."""
        return Streaming(self.period, fragments=self.period, delay=1).transfers(steps)
