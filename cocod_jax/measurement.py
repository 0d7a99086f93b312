"""Tc and Tm of a round on the machine at hand, for :func:`cocod_jax.advise`."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cocod_jax._checks import check_counts
from cocod_jax._meshes import outside_of_meshes
from cocod_jax._trees import own_copy
from cocod_jax._typing import Batches, Sent
from cocod_jax.exchanges import nothing
from cocod_jax.exchanges._base import workers_axis
from cocod_jax.exchanges._shards import shards_of
from cocod_jax.execution._distribute import distribute
from cocod_jax.execution._map import Via, WorkerMap
from cocod_jax.rounds._checks import of_all_workers
from cocod_jax.rounds._round import Round, check_round
from cocod_jax.rounds._types import RoundState


class Measurement(NamedTuple):
    """What :func:`measure` found, in seconds; ``print`` it for a sentence.

    Times vary: each is the median of ``repeats``, and a range has the least and the
    greatest of them.

    Attributes:
      tc: of a local step with nothing to send.
      tm: of an exchange of all that is trained with no steps beside it.
      latency: of an exchange of a single number, at most ``tm``.
      tc_range: least and greatest.
      tm_range: least and greatest.
      latency_range: least and greatest; it may reach beyond ``tm``.
      repeats: how often each was timed, in turn.
      workers: N, over all processes.
      period: k, local steps that were timed at once.
      sent_bytes: the bytes of one worker's parameters that are trained.
      device: the kind of device that the workers have.
    """

    tc: float
    tm: float
    latency: float
    tc_range: tuple[float, float]
    tm_range: tuple[float, float]
    latency_range: tuple[float, float]
    repeats: int
    workers: int
    period: int
    sent_bytes: int
    device: str

    def __str__(self) -> str:
        between = lambda ends: f"({ends[0]:.3g} to {ends[1]:.3g})"
        return (
            f"{self.workers} workers on {self.device}, medians of {self.repeats}: a "
            f"local step takes {self.tc:.3g} s {between(self.tc_range)}, an exchange "
            f"of {self.sent_bytes / 1e6:.3g} MB {self.tm:.3g} s "
            f"{between(self.tm_range)}, of one number {self.latency:.3g} s; Tm/Tc = "
            f"{self.tm / self.tc:.3g}."
        )


def measure(
    round_: Round,
    state: RoundState,
    batches: Batches,
    *,
    repeats: int = 10,
    via: Via = "pmap",
    devices: Sequence[jax.Device] | None = None,
    exchange_devices: Sequence[jax.Device] | None = None,
) -> Measurement:
    """How long a local step and an exchange take here, each by itself.

    The local steps are those of a round that sends nothing. The exchange is that of the
    round's rule, of all that is trained, also where the round is streamed: a piece
    takes about ``latency + (tm - latency) / k``. Both run where
    :func:`cocod_jax.distribute` would run them, and in turn, so that a slow minute of
    the machine slows both. Nothing else should run meanwhile.

    With several processes all of them must call it at once. Each times itself; what it
    waits for the others is in ``tm``.

    Args:
      round_: what :func:`cocod_jax.make_round` returned, with a rule that exchanges.
      state: of all workers; it is copied, and stays as it is.
      batches: of one round, leaves of shape [N, period, ...]; all rounds take them.
      repeats: how often each is timed, at least 1.
      via: as in :func:`cocod_jax.distribute`.
      devices: as there.
      exchange_devices: as there.

    Returns:
      A :class:`cocod_jax.measurement.Measurement`, which :func:`cocod_jax.advise`
      takes.

    Raises:
      TypeError: when ``round_`` is not a Round, or ``state`` not a RoundState.
      ValueError: when the rule sends nothing, workers have several devices each,
        ``repeats`` is not a positive integer, or :func:`cocod_jax.distribute` refuses
        an argument.

    Examples:
      >>> loss = lambda w, batch: jnp.mean((batch @ w) ** 2)
      >>> rule = cj.cocod("workers")
      >>> round_ = cj.make_round(loss, optax.sgd(0.1), rule, period=4)
      >>> state = cj.replicate(round_.init(jnp.ones([64, 8])), 2)
      >>> batches = np.ones([2, 4, 16, 64], np.float32)
      >>> times = cj.measure(round_, state, batches, repeats=3)
      >>> times.sent_bytes, times.tm > 0
      (2048, True)
      >>> advice = cj.advise(times, period=4)
    """
    check_round(round_)
    check_counts(repeats=repeats)
    if round_.axis_name is None:
        raise ValueError(
            "the round's rule sends nothing: there is no exchange to time."
        )
    state = of_all_workers(state)
    axis = workers_axis(round_.rule.exchange)
    if shards_of(state.params, axis, of_all=True) is not None:
        raise ValueError(
            "the devices of a worker share its parameters, and measure times workers "
            "of one device each; time the rounds of cj.distribute(..., mesh=mesh) by "
            "themselves."
        )
    silent = round_.rule._replace(exchange=nothing(round_.rule.weights))
    run = distribute(
        round_._replace(rule=silent),
        axis,
        via=via,
        devices=devices,
        exchange_devices=exchange_devices,
    )
    on = devices if exchange_devices is None else exchange_devices
    exchange = WorkerMap(via, axis, None if on is None else tuple(on))
    each = {
        "tc": _carried(run, own_copy(state), batches),
        "tm": _sends(exchange, _whole_of_round(round_), state.params, state.weight),
        "latency": _sends(exchange, _one_number(round_), state.weight),
    }
    times: dict[str, list[float]] = {name: [] for name in each}
    with outside_of_meshes():
        for call in each.values():
            call()  # compiles
        for _ in range(repeats):
            for name, call in each.items():
                start = time.perf_counter()
                call()
                times[name].append(time.perf_counter() - start)
    times["tc"] = [seconds / round_.period for seconds in times["tc"]]
    median = {name: statistics.median(values) for name, values in times.items()}
    ends = {name: (min(values), max(values)) for name, values in times.items()}
    trained = jax.eval_shape(jax.vmap(round_.portion.part_of), state.params)
    sizes = [leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(trained)]
    workers = len(state.count)
    return Measurement(
        tc=median["tc"],
        tm=median["tm"],
        latency=min(median["latency"], median["tm"]),
        tc_range=ends["tc"],
        tm_range=ends["tm"],
        latency_range=ends["latency"],
        repeats=repeats,
        workers=workers * jax.process_count(),
        period=round_.period,
        sent_bytes=sum(sizes) // workers,
        device=(jax.devices() if devices is None else devices)[0].device_kind,
    )


def _carried(
    run: Callable[[RoundState, Batches], tuple[RoundState, Any]],
    state: RoundState,
    batches: Batches,
) -> Callable[[], None]:
    """A round, and the next time the one after it."""

    def call() -> None:
        nonlocal state
        state, _ = jax.block_until_ready(run(state, batches))

    return call


def _sends(
    workers: WorkerMap, send: Callable[..., Sent], *args: Any
) -> Callable[[], None]:
    """An exchange, always of the same."""
    program, placed = workers.over(send), workers.place(args)
    return lambda: jax.block_until_ready(program(*placed))


def _whole_of_round(round_: Round) -> Callable[..., Sent]:
    """The exchange of all that the round trains, as the rule's first is."""

    def send(params: Any, weight: jax.Array) -> Sent:
        snapshot = round_.portion.part_of(params)
        state: Any = round_.rule.init(snapshot)
        sent, _ = round_.rule.send(state, snapshot, weight)
        return sent

    return send


def _one_number(round_: Round) -> Callable[..., Sent]:
    """The exchange of a single number."""
    exchange = round_.rule.exchange

    def send(weight: jax.Array) -> Sent:
        number = jnp.ones([1])
        return exchange.send(exchange.init(number), number, weight)[0]

    return send
