"""What runs a round: a front door (pmap, shard_map, vmap), fused or split."""

import functools
import os
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from cocod_jax._text import shown
from cocod_jax._typing import Batches
from cocod_jax.rounds._round import (
    Round,
    RoundMetrics,
    RoundState,
    StepMetrics,
    check_batches,
    check_round,
    check_workers,
)
from cocod_jax.workers._place import place

SCHEDULER = "xla_gpu_enable_latency_hiding_scheduler"

Door: TypeAlias = Literal["pmap", "shard_map", "vmap"]
Execution: TypeAlias = Literal["fused", "split"]
Run: TypeAlias = Callable[[RoundState, Batches], tuple[RoundState, RoundMetrics]]


def distribute(
    round_: Round,
    axis_name: str = "workers",
    *,
    via: Door = "pmap",
    execution: Execution | None = None,
    devices: Sequence[jax.Device] | None = None,
    exchange_devices: Sequence[jax.Device] | None = None,
    check_vma: bool = True,
) -> Run:
    """The round on all workers, ready to call.

    ==============  ==============================================================
    ``via``         Workers
    ==============  ==============================================================
    ``pmap``        one on each device
    ``shard_map``   one on each device of a one-axis mesh
    ``vmap``        all on one device: a simulation, for dense models (it turns
                    convolutions into grouped convolutions, slow on a CPU)
    ==============  ==============================================================

    ==============  ==============================================================
    ``execution``   The round
    ==============  ==============================================================
    ``fused``       is one program, which the compiler schedules with the exchange
                    beside the local steps: for GPUs and TPUs
    ``split``       is the same functions as separate programs, one per local step:
                    for CPUs, where a convolution inside a loop is much slower
    ==============  ==============================================================

    All combinations follow the same algorithm with the same numbers.

    On NVIDIA GPUs before Hopper the compiler overlaps nothing unless its
    latency-hiding scheduler is on. ``shard_map`` and ``vmap`` turn it on; ``pmap``
    cannot, and warns when ``XLA_FLAGS`` does not either.

    A CPU device runs one program at a time, the exchange before the steps. With
    ``exchange_devices`` the split execution runs it on other devices, beside the
    steps: give every process twice as many devices as it has workers, and take
    :func:`cocod_jax.execution.device_pairs`.

    Args:
      round_: what :func:`cocod_jax.make_round` returned.
      axis_name: the axis that the round's rule averages over.
      via: the front door.
      execution: None takes ``split`` on CPUs and ``fused`` elsewhere.
      devices: where the workers run, one for each, over all processes; None takes
        the first N of ``jax.devices()``. ``vmap`` uses the default device.
      exchange_devices: where the split execution runs the exchange, one for each
        worker, in the order of ``devices``; None is ``devices``.
      check_vma: ``shard_map``'s check of what varies between devices. It refuses some
        optimizers whose state is a constant at first, such as those of
        ``optax.inject_hyperparams`` with a constant schedule (TypeError of JAX); they
        run without it, and all numbers are the same.

    Returns:
      ``run(state, batches) -> (state, metrics)`` over all workers: the leaves of
      ``state`` and ``metrics`` have a leading axis N, those of ``batches`` have
      leading axes [N, period]. In each of several processes, N is the number of its
      own workers. The fused execution donates the state that is passed in.

    Raises:
      TypeError: when ``round_`` is not a Round, or ``axis_name`` not a string; in use,
        when ``state`` is not a RoundState.
      ValueError: when ``via`` or ``execution`` is none of the above, when ``devices``
        is empty, when devices are given to ``vmap``, ``exchange_devices`` to a fused
        execution or in another number than ``devices``, or another door than ``pmap``
        is asked to span processes; in use, when ``state`` has no axis of workers, when
        ``batches`` do not begin with its workers and the period, when counts of
        micro-batches do not fit, there is not one device for each worker, or a run has
        taken the memory of ``state`` before.

    Examples:
      >>> loss = lambda w, batch: 0.5 * (w - batch) ** 2
      >>> round_ = cj.make_round(loss, optax.sgd(0.5), cj.cocod("workers"), period=2)
      >>> run = cj.distribute(round_, via="vmap")
      >>> state = cj.replicate(round_.init(jnp.array(8.0)), 2)
      >>> state, metrics = run(state, np.zeros([2, 2], np.float32))
      >>> print(state.params, metrics.loss[0])
      [2. 2.] [32.  8.]
    """
    check_round(round_)
    if not isinstance(axis_name, str):
        raise TypeError(f"axis_name={shown(axis_name)} must be a string.")
    if via not in ("pmap", "shard_map", "vmap"):
        raise ValueError(f"via={via!r} must be 'pmap', 'shard_map' or 'vmap'.")
    if devices is not None and not len(devices):
        raise ValueError("devices is empty; give one for each worker, or None.")
    if via == "vmap" and not (devices is None and exchange_devices is None):
        raise ValueError("devices have no meaning for via='vmap', which uses one.")
    if via != "pmap" and jax.process_count() > 1:
        raise ValueError(f"via={via!r} is for one process; use 'pmap' for several.")
    if execution is None:
        platform = (jax.devices() if devices is None else devices)[0].platform
        execution = "split" if platform == "cpu" else "fused"
    if execution not in ("fused", "split"):
        raise ValueError(f"execution={execution!r} must be 'fused', 'split' or None.")
    if execution == "fused" and exchange_devices is not None:
        raise ValueError(
            "exchange_devices belong to execution='split'; fused is one program."
        )
    if (
        devices is not None
        and exchange_devices is not None
        and len(devices) != len(exchange_devices)
    ):
        raise ValueError(
            f"exchange_devices has {len(exchange_devices)} entries, but devices has "
            f"{len(devices)}; give two for each worker: one in each."
        )

    def door(
        function: Callable,
        donate: tuple[int, ...] = (),
        devices: Sequence[jax.Device] | None = devices,
    ) -> Callable:
        if via == "vmap":
            mapped = jax.vmap(function, axis_name=axis_name)
            return _jit(mapped, donate, jax.devices()[0])
        return _on_devices(function, axis_name, via, devices, check_vma, donate)

    if execution == "fused":
        if via == "pmap":
            _check_scheduler((jax.devices() if devices is None else devices)[0])
        program = door(round_.run, donate=(0,))
    else:
        program = _split(
            round_, door, devices if exchange_devices is None else exchange_devices
        )

    def run(state: RoundState, batches: Batches) -> tuple[RoundState, RoundMetrics]:
        check_batches(batches, round_.period, workers=check_workers(state))
        if any(map(_is_used_up, jax.tree.leaves(state))):
            raise ValueError(
                "state was given to a run before, which took its memory; go on with "
                "the state that the run returned."
            )
        return program(state, batches)

    return run


def device_pairs() -> tuple[list[jax.Device], list[jax.Device]]:
    """Every process's devices in halves: for its workers, and for their exchange.

    For the split execution on CPUs. Each process must have been given two devices
    for each of its workers, before anything else used JAX:
    ``jax.config.update("jax_num_cpu_devices", 2)``.

    Returns:
      ``devices`` and ``exchange_devices`` of :func:`cocod_jax.distribute`, in the
      same order over all processes.

    Raises:
      ValueError: when a process has an odd number of devices.

    Examples:
      >>> devices, exchange_devices = cj.execution.device_pairs()
      >>> len(devices), len(exchange_devices)
      (4, 4)
    """
    compute, exchange = [], []
    for process in range(jax.process_count()):
        own = jax.local_devices(process_index=process)
        if len(own) % 2:
            raise ValueError(
                f"process {process} has {len(own)} devices; pairs need two for each "
                'worker: jax.config.update("jax_num_cpu_devices", 2).'
            )
        compute += own[: len(own) // 2]
        exchange += own[len(own) // 2 :]
    return compute, exchange


def _split(
    round_: Round,
    door: Callable[..., Callable],
    exchange_devices: Sequence[jax.Device] | None,
) -> Run:
    """The round as programs of their own: send, each local step, merge.

    None of them may overwrite what it is given: XLA would copy it first on a CPU, which
    takes longer than new buffers do. So the snapshot is the state's own parameters.
    """
    send = door(round_.send, devices=exchange_devices)
    step = door(round_.step)
    merge = door(round_.merge)

    def local_steps(
        state: RoundState, batches: Batches, start: int, stop: int
    ) -> tuple[RoundState, list[StepMetrics]]:
        taken = []
        for t in range(start, stop):
            state, metrics = step(state, jax.tree.map(lambda b, t=t: b[:, t], batches))
            taken.append(metrics)
        return state, taken

    def run(state: RoundState, batches: Batches) -> tuple[RoundState, RoundMetrics]:
        snapshot = state.params
        # It may be on other devices, which get no more than the exchange needs.
        arriving = send(_for_exchange(state))
        state, early = local_steps(state, batches, 0, round_.delay)
        light, merged = merge(_for_exchange(state), snapshot, arriving)
        state = state._replace(params=light.params, rule_state=light.rule_state)
        state, late = local_steps(state, batches, round_.delay, round_.period)
        steps = early + late
        return state, RoundMetrics(
            loss=jnp.stack([metrics.loss for metrics in steps], axis=1),
            grad_norm=jnp.stack([metrics.grad_norm for metrics in steps], axis=1),
            **merged._asdict(),
        )

    return run


def _is_used_up(leaf: Any) -> bool:
    tracer = isinstance(leaf, jax.core.Tracer)
    return isinstance(leaf, jax.Array) and not tracer and leaf.is_deleted()


def _for_exchange(state: RoundState) -> RoundState:
    """The state without what neither send nor merge reads."""
    return state._replace(opt_state=(), model_state=None)


def _on_devices(
    function: Callable,
    axis_name: str,
    via: Door,
    devices: Sequence[jax.Device] | None,
    check_vma: bool,
    donate: tuple[int, ...],
) -> Callable:
    """``function`` of one worker, on one device for each worker."""

    def block(*args: Any) -> Any:
        # A worker's block still has the worker axis, of length 1.
        result = function(*jax.tree.map(lambda leaf: leaf[0], args))
        return jax.tree.map(lambda leaf: leaf[None], result)

    @functools.cache
    def program(workers: int) -> tuple[Callable, list[jax.Device]]:
        every, own = _worker_devices(devices, workers)
        if via == "pmap":
            mapped = jax.pmap(function, axis_name, devices=every, donate_argnums=donate)
            return mapped, own
        mapped = jax.shard_map(
            block,
            mesh=Mesh(np.array(every), axis_name),
            in_specs=PartitionSpec(axis_name),
            out_specs=PartitionSpec(axis_name),
            check_vma=check_vma,
        )
        return _jit(mapped, donate, own[0]), own

    def call(*args: Any) -> Any:
        run, own = program(jax.tree.leaves(args)[0].shape[0])
        # Arguments that start elsewhere would make the second call compile again.
        return run(*(place(arg, own, axis_name) for arg in args))

    return call


def _jit(function: Callable, donate: tuple[int, ...], device: jax.Device) -> Callable:
    options = {SCHEDULER: True} if needs_scheduler(device) else None
    return jax.jit(function, donate_argnums=donate, compiler_options=options)


def _check_scheduler(device: jax.Device) -> None:
    """Warns when the compiler would not hide the exchange on this device."""
    if needs_scheduler(device) and not xla_flag(SCHEDULER):
        warnings.warn(
            f"On {device.device_kind} the exchange is not hidden: set XLA_FLAGS="
            f"--{SCHEDULER}=true before JAX starts, or take via='shard_map'.",
            stacklevel=3,
        )


def xla_flag(name: str) -> bool | None:
    """What ``XLA_FLAGS`` say of a switch, None when nothing; the last word counts."""
    flags = os.environ.get("XLA_FLAGS", "").lower()
    values = re.findall(rf"--{name}(?:=(\w+))?(?=\s|$)", flags)
    return values[-1] in ("", "true", "1") if values else None


def needs_scheduler(device: jax.Device) -> bool:
    """Whether this GPU is one on which the scheduler is off by default.

    From compute capability 9.0 (Hopper) on it is on for programs such as a round.
    """
    major, _, _ = str(getattr(device, "compute_capability", "")).partition(".")
    return device.platform == "gpu" and major in ("6", "7", "8")


def _worker_devices(
    devices: Sequence[jax.Device] | None, workers: int
) -> tuple[list[jax.Device], list[jax.Device]]:
    """One device for each worker: of all processes, and of this one's ``workers``.

    Raises:
      ValueError: when this process does not have one device for each of its workers.
    """
    if devices is None:
        several = jax.process_count() > 1
        devices = jax.devices() if several else jax.devices()[:workers]
    own = [device for device in devices if device.process_index == jax.process_index()]
    if len(own) != workers:
        cure = (
            "each worker needs a device of its own, or via='vmap' to share one."
            if len(own) < workers
            else f"give the first {workers} of them: devices=devices[:{workers}]."
        )
        raise ValueError(f"there are {workers} workers and {len(own)} devices; {cure}")
    return list(devices), own
