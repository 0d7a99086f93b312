"""A round in numbers: what a worker holds and sends, and what hides it."""

import math
from collections import Counter
from typing import NamedTuple

import jax

from cocod_jax._checks import check_counts
from cocod_jax._text import human_bytes
from cocod_jax.certify import dataflow
from cocod_jax.certify._program import for_workers
from cocod_jax.exchanges._base import workers_axis
from cocod_jax.exchanges._shards import shards_of
from cocod_jax.rounds._checks import check_workers
from cocod_jax.rounds._round import Round, check_round
from cocod_jax.rounds._types import RoundState


class Summary(NamedTuple):
    """What :func:`summary` found; ``print`` it for the sentences.

    Attributes:
      workers: N, over all processes.
      parameters: the number of parameters of one worker.
      devices: F, those of each worker.
      sent_bytes: the bytes that a device puts into one exchange, by dtype on the wire;
        of a piece where it is streamed; empty when the merge rule sends nothing.
      exchanges_per_epoch: their average number; None without ``steps_per_epoch``.
      kept_bytes: the memory that a device keeps for ``delay`` local steps beside its
        parameters: the snapshot, or a piece of it, and the buffers in flight; 0 with
        delay 0. ``Certificate.overlap_bytes`` says what a compiler makes of it.
      period: k, local steps in a round.
      delay: d, the local steps that the exchange can run beside.
      streamed: whether every local step has an exchange, of a piece.
    """

    workers: int
    parameters: int
    devices: int
    sent_bytes: dict[str, int]
    exchanges_per_epoch: float | None
    kept_bytes: int
    period: int
    delay: int
    streamed: bool

    def __str__(self) -> str:
        held = f"Workers: {self.workers}, with {self.parameters:,} parameters each."
        if self.devices > 1:
            held += f" Devices of a worker: {self.devices}."
        if not self.sent_bytes:
            return f"{held}\nThe merge rule exchanges nothing."
        return "\n".join([held, self._exchange(), self._hidden()])

    def _exchange(self) -> str:
        buffers = " and ".join(
            f"{human_bytes(size)} of {dtype}" for dtype, size in self.sent_bytes.items()
        )
        who = "Each device" if self.devices > 1 else "Each"
        each = f"{who} sends {buffers} in a round of {self.period} local steps"
        if self.streamed:
            total = human_bytes(self.period * sum(self.sent_bytes.values()))
            each = (
                f"{who} sends {buffers} in every local step ({total} in {self.period})"
            )
        if self.exchanges_per_epoch is None:
            return f"{each}."
        return f"{each}, {self.exchanges_per_epoch:.4g} times in an epoch."

    def _hidden(self) -> str:
        if not self.delay:
            return "Nothing hides the exchange; the local steps wait for it."
        beside, what = (
            f"the first {self.delay} of {self.period} local steps",
            "snapshot",
        )
        if self.streamed:
            beside, what = "that step", "piece"
            if self.delay > 1:  # a step for each of its collectives
                beside, what = "that step and the next", "pieces"
        holder = "device" if self.devices > 1 else "worker"
        return (
            f"The exchange can run beside {beside}, for which each {holder} keeps "
            f"{human_bytes(self.kept_bytes)}: the {what} and what is in flight."
        )


def summary(
    round_: Round,
    state: RoundState,
    *,
    steps_per_epoch: int | None = None,
) -> Summary:
    """What a round sends and keeps, before anything is compiled or run.

    The bytes are those of the merge rule's exchange, read from its data flow.
    :mod:`cocod_jax.certify` finds out what an inner optimizer sends in every step, such
    as :func:`cocod_jax.mean_gradients`, and whether a compiler hides what it can.

    Args:
      round_: what :func:`cocod_jax.make_round` returned.
      state: after ``replicate`` (per worker, leading axis N); shapes are enough, as
        from ``jax.eval_shape``.
      steps_per_epoch: the local steps of a worker in an epoch, at least 1 (shared).

    Returns:
      A :class:`Summary`.

    Raises:
      TypeError: when ``round_`` is not a Round, or ``state`` not a RoundState.
      ValueError: when ``state`` has no axis of workers, when ``steps_per_epoch`` is
        not an integer of at least 1, or when the rule averages over several axes.

    Examples:
      >>> loss = lambda w, batch: jnp.mean((batch @ w) ** 2)
      >>> rule = cj.cocod("workers")
      >>> round_ = cj.make_round(loss, optax.sgd(0.1), rule, period=8, delay=4)
      >>> state = cj.replicate(round_.init(jnp.ones([64, 64])), 2)
      >>> print(cj.summary(round_, state, steps_per_epoch=100))
      Workers: 2, with 4,096 parameters each.
      Each sends 16.4 kB of float32 in a round of 8 local steps, 12.5 times in an epoch.
      The exchange can run beside the first 4 of 8 local steps, for which each worker
      keeps 32.8 kB: the snapshot and what is in flight.
      >>> round_ = cj.make_round(loss, optax.sgd(0.1), rule, period=8, streamed=True)
      >>> print(cj.summary(round_, state))
      Workers: 2, with 4,096 parameters each.
      Each sends 2.05 kB of float32 in every local step (16.4 kB in 8).
      The exchange can run beside that step, for which each worker keeps 4.1 kB: the
      piece and what is in flight.
    """
    if steps_per_epoch is not None:
        check_counts(steps_per_epoch=steps_per_epoch)
    check_round(round_)
    axis_name = workers_axis(round_.rule.exchange)
    workers, devices, all_of_it = check_workers(state), 1, state
    shards = shards_of(state.params, axis_name, of_all=True)
    if shards is None:
        if getattr(state.weight, "is_fully_addressable", True):
            workers *= jax.process_count()
        all_of_it = for_workers(state, workers)
    else:
        devices = shards.mesh.size // shards.mesh.shape[axis_name]
    own = round_.over(shards)
    sent_bytes = Counter[str]()
    for flow in dataflow(own.send, all_of_it, axis_name=axis_name):
        sent_bytes[flow.dtype] += flow.bytes // devices
    sizes = [math.prod(leaf.shape[1:]) for leaf in jax.tree.leaves(state.params)]
    snapshots = jax.eval_shape(jax.vmap(round_.snapshot), state)
    in_flight = round_.delay if round_.streamed else 1
    snapshot_bytes = in_flight * sum(
        math.prod(leaf.shape[1:]) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(snapshots)
    )
    exchanges = None
    if steps_per_epoch is not None:
        steps = 1 if round_.streamed else round_.period
        exchanges = steps_per_epoch / steps if sent_bytes else 0.0
    return Summary(
        workers=workers,
        parameters=sum(sizes),
        devices=devices,
        sent_bytes=dict(sent_bytes),
        exchanges_per_epoch=exchanges,
        kept_bytes=(
            snapshot_bytes // devices + sent_bytes.total() if round_.delay else 0
        ),
        period=round_.period,
        delay=round_.delay,
        streamed=round_.streamed,
    )
