"""The clock: when every worker computes, waits and exchanges."""

import math
from collections.abc import Callable

import numpy as np

from cocod_jax._checks import (
    check_counts,
    check_fractions,
    check_kind,
    check_non_negative,
    check_sequence,
)
from cocod_jax._text import shown
from cocod_jax.timeline._algorithms import Algorithm, Transfer
from cocod_jax.timeline._timeline import Timeline
from cocod_jax.timeline._times import Compute, Link


def simulate(
    algorithm: Algorithm,
    compute: Compute,
    exchange_seconds: float | None = None,
    *,
    link: Link | None = None,
    size: float | None = None,
    latency: float = 0.0,
    steps: int,
    busy: float = 0.0,
    seed: int = 0,
) -> Timeline:
    """The timeline of ``steps`` local steps of every worker.

    Args:
      algorithm: :class:`SSGD`, :class:`PipeSGD`, :class:`LocalSGD`,
        :class:`CoCoDSGD`, :class:`Gossip`, :class:`Streamed`, :class:`Streaming`, or
        your own :class:`Algorithm`.
      compute: the local steps of all workers.
      exchange_seconds: Tm, one exchange of all parameters, 0 or more. A fragment
        takes its share of what the latency leaves of it.
      link: the network, in place of ``exchange_seconds``; it needs ``size``, and has a
        latency of its own.
      size: bytes of the parameters.
      latency: the part of Tm that does not depend on the bytes, 0 to Tm: seconds of an
        exchange of nothing. Every fragment pays it again.
      steps: local steps; a last round may be shorter than the others.
      busy: seconds for which an exchange occupies the processor, 0 to Tm. While
        it is in flight steps run slower, at the rate 1 - busy/Tm; a worker that
        waits loses nothing more, as Tm includes it. 0 where the exchange has
        hardware to spare, as on GPUs with idle multiprocessors; above 0 where the
        core that computes also moves the data, as with gloo on that core.
      seed: seeds the times that ``compute`` draws, the same for every algorithm.

    Returns:
      A :class:`Timeline`.

    Raises:
      TypeError: when ``algorithm``, ``compute`` or ``link`` is of another kind.
      ValueError: when a value is out of its range, also one of a transfer; unless
        either ``exchange_seconds`` or both ``link`` and ``size`` are given; and when
        the link's topology is not the algorithm's.

    Examples:
      >>> from cocod_jax.timeline import CoCoDSGD, Compute, LocalSGD, simulate
      >>> compute = Compute(seconds=0.1, workers=2)
      >>> timeline = simulate(LocalSGD(4), compute, exchange_seconds=0.2, steps=8)
      >>> print(timeline.text(width=58))
      worker 0  ........################........++++++++++++++++
      worker 1  ........################........++++++++++++++++
      exchange  ========                --------
                0                                          1.2 s
      >>> timeline = simulate(CoCoDSGD(4), compute, exchange_seconds=0.2, steps=8)
      >>> print(f"{timeline.seconds:.1f}")
      0.8
    """
    check_kind(Compute, compute=compute)
    if link is not None:
        check_kind(Link, link=link)
    if not (hasattr(algorithm, "period") and hasattr(algorithm, "transfers")):
        raise TypeError(
            f"algorithm={shown(algorithm)} must be one of cj.timeline, such as "
            "CoCoDSGD(8), or have a period and transfers as Algorithm says."
        )
    check_counts(steps=steps)
    check_non_negative(busy=busy)
    seconds_of = _exchange_time(exchange_seconds, link, size, latency, compute.workers)
    whole = seconds_of(1)
    if busy > whole:
        raise ValueError(f"busy={busy} must be at most the exchange's {whole:.3g} s.")
    # Never quite 0: it is divided by.
    rate = max(1 - busy / whole, 1e-12) if busy else 1.0
    clock = _Clock(compute.draw(steps, seed), rate)
    plan = algorithm.transfers(steps)
    _check_plan(plan, algorithm, link, steps)
    starts = np.empty((len(plan), compute.workers))
    ends = np.empty_like(starts)
    # At one position the wait for an exchange comes before the next one is sent.
    events = [(transfer.sent, i, False) for i, transfer in enumerate(plan)]
    events += [(transfer.needed, i, True) for i, transfer in enumerate(plan)]
    for position, index, waits in sorted(events):
        clock.compute_until(position)
        if waits:
            clock.now = np.maximum(clock.now, ends[index])
        else:
            transfer = plan[index]
            times = clock.send(transfer, seconds_of(transfer.share))
            starts[index], ends[index] = times
    clock.compute_until(steps)
    return Timeline(
        step_starts=clock.step_starts,
        step_ends=clock.step_ends,
        step_rounds=np.arange(steps) // algorithm.period,
        exchange_starts=starts.T,
        exchange_ends=ends.T,
        exchange_rounds=np.array([t.round for t in plan], int),
    )


def _check_plan(
    plan: list[Transfer], algorithm: Algorithm, link: Link | None, steps: int
) -> None:
    check_counts(**{"algorithm.period": algorithm.period})
    check_sequence("a Transfer for each exchange", transfers=plan)
    for transfer in plan:
        check_kind(Transfer, transfer=transfer)
        check_non_negative(sent=transfer.sent, needed=transfer.needed)
        check_fractions(share=transfer.share)
        if not (0 <= transfer.sent <= transfer.needed <= steps):
            raise ValueError(
                f"{transfer} must be sent at 0 or later, and needed no earlier than it "
                f"is sent and no later than steps={steps}."
            )
        if link is not None and transfer.everyone == (link.topology == "neighbours"):
            raise ValueError(
                f"topology={link.topology!r} is not how {algorithm} exchanges: gossip "
                "needs 'neighbours', everything else an all-reduce ('ring', 'tree')."
            )


def _exchange_time(
    exchange_seconds: float | None,
    link: Link | None,
    size: float | None,
    latency: float,
    workers: int,
) -> Callable[[float], float]:
    """The seconds of an exchange, as a function of the share that is sent."""
    if exchange_seconds is not None and link is None and size is None:
        check_non_negative(exchange_seconds=exchange_seconds, latency=latency)
        if latency > exchange_seconds:
            raise ValueError(
                f"latency={latency} is a part of exchange_seconds={exchange_seconds}, "
                "and cannot be more."
            )
        return lambda share: latency + share * (exchange_seconds - latency)
    if exchange_seconds is None and link is not None and size is not None:
        if latency:
            raise ValueError(
                f"latency={latency} is a part of exchange_seconds; {link} has its own."
            )
        check_non_negative(size=size)
        return lambda share: link.seconds(share * size, workers)
    raise ValueError(
        f"exchange_seconds={exchange_seconds!r}, link={link!r}, size={size!r}: give "
        "either exchange_seconds, or link and size."
    )


class _Clock:
    """How many steps all workers have done, and the time of each worker."""

    def __init__(self, work: np.ndarray, rate: float):
        self.step_starts, self.step_ends = np.empty_like(work), np.empty_like(work)
        self.now = np.zeros(len(work))  # when each worker can go on
        self._work = work
        self._rate = rate  # how fast steps run beside an exchange
        self._done = 0.0  # local steps, the same number on all workers
        self._free = self.now  # when each worker's link is free
        self._flights: list[tuple[np.ndarray, np.ndarray]] = []  # in order of time

    def compute_until(self, position: float) -> None:
        """Takes local steps up to ``position``, the last one perhaps in part."""
        if position <= self._done:
            return
        first, last = math.floor(self._done), math.ceil(position)
        steps = np.arange(first, last)
        parts = np.minimum(position, steps + 1) - np.maximum(self._done, steps)
        work = np.cumsum(self._work[:, first:last] * parts, axis=1)
        times = np.column_stack([self.now, self._finish(work)])
        begun, ended = math.ceil(self._done), math.floor(position)
        self.step_starts[:, begun:last] = times[:, begun - first : -1]
        self.step_ends[:, first:ended] = times[:, 1 : ended - first + 1]
        self.now, self._done = times[:, -1], position

    def _finish(self, work: np.ndarray) -> np.ndarray:
        """When ``work``, in seconds from now on, is done; of the shape of ``work``."""
        time, left = np.broadcast_to(self.now[:, None], work.shape), work
        for start, end in self._flights:
            alone = np.clip(start[:, None] - time, 0, left)
            time, left = time + alone, left - alone
            beside = np.clip(end[:, None] - time, 0, left / self._rate)
            time, left = time + beside, np.maximum(left - beside * self._rate, 0)
        return time + left

    def send(self, transfer: Transfer, seconds: float) -> tuple[np.ndarray, np.ndarray]:
        """Exchanges what all have sent now; its start and end on each worker."""
        start = np.maximum(self._last_sender(transfer), self._free)
        end = start + seconds
        if self._rate < 1:
            now = self.now.min()
            self._flights = [f for f in self._flights if f[1].max() > now]
            self._flights.append((start, end))
        if transfer.sent % 1:  # the last gradients come at the end of the step
            self.compute_until(math.ceil(transfer.sent))
            end = np.maximum(end, self._last_sender(transfer))
        self._free = end
        return start, end

    def _last_sender(self, transfer: Transfer) -> np.ndarray:
        """[N], when the last worker that each one waits for has sent."""
        if transfer.everyone:
            return np.full_like(self.now, self.now.max())
        neighbours = np.roll(self.now, 1), np.roll(self.now, -1)
        return np.maximum(self.now, np.maximum(*neighbours))
