"""The two questions that can be asked about a program: its flow, its schedule."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from cocod_jax._checks import check_counts
from cocod_jax.certify._certificate import Certificate, diagnose
from cocod_jax.certify._dataflow import CollectiveFlow, flows_of
from cocod_jax.certify._nvidia import TARGETS, compile_program
from cocod_jax.certify._program import (
    Program,
    for_workers,
    jaxpr_of,
    over_workers,
    trace,
)
from cocod_jax.certify._schedule import read_schedule
from cocod_jax.execution._distribute import distribute
from cocod_jax.rounds._round import Round


def dataflow(
    fn: Round | Callable[..., Any], *args: Any, axis_name: str = "workers"
) -> tuple[CollectiveFlow, ...]:
    """Every collective of a program, and the local steps it is independent of.

    Nothing is compiled, and any machine will do. A compiler can hide a collective
    only behind the steps counted in ``beside``; whether it does is what
    :func:`certify` finds out.

    Args:
      fn: as in :func:`certify`.
      *args: as in :func:`certify`.
      axis_name: as in :func:`certify`.

    Returns:
      One :class:`CollectiveFlow` for each collective.

    Raises:
      TypeError: when ``fn`` is what :func:`cocod_jax.distribute` returned.
      ValueError: when the arrays of ``args`` have no leading axis in common, or ``fn``
        was jitted with options of the compiler.

    Examples:
      >>> def round_(w, batches):
      ...     m = jax.lax.pmean(w, "workers")
      ...     x, _ = jax.lax.scan(lambda w, b: (w - 0.1 * (w - b), None), w, batches)
      ...     return m + (x - w)
      >>> w, batches = jnp.zeros([2, 3]), jnp.zeros([2, 8, 3])  # two workers
      >>> for collective in dataflow(round_, w, batches):
      ...     print(collective)
      psum float32 12 B: local steps 0 before, 8 beside, 0 after
    """
    run, shapes = _all_workers(fn, args, axis_name, None)
    return flows_of(jaxpr_of(run, *shapes).jaxpr, one_round=isinstance(fn, Round))


def certify(
    fn: Round | Callable[..., Any],
    *args: Any,
    axis_name: str = "workers",
    target: str | None = None,
    devices: int | None = None,
    hosts: int = 1,
    latency_hiding: bool | None = None,
    baseline: Round | Callable[..., Any] | None = None,
) -> Certificate:
    """Compiles a program for GPUs and says whether its communication is hidden.

    The GPUs need not exist: the compiler of JAX runs on any machine, and the
    schedule that it writes is the one that GPUs would follow. The certificate is
    about that schedule: a collective is hidden when it starts before local steps
    and ends after them. How long both take, no compiler knows.

    Args:
      fn: one of

        * a :class:`cocod_jax.Round`: its ``run`` with the state donated;
        * the function of one worker, as ``jax.pmap`` takes it;
        * what ``jax.pmap`` or ``jax.jit`` returned, such as a jitted
          ``jax.shard_map``. It runs on the number of devices that it was made for.
      *args: what all workers together take: arrays or
        :class:`jax.ShapeDtypeStruct`, with a leading axis of workers for a Round
        or the function of one worker.
      axis_name: that the function of one worker averages over.
      target: ``h100``, ``h200``, ``a100`` or ``v100``. None takes this machine's
        GPUs, or ``h100`` where there are none.
      devices: the number of workers; None takes it from ``args``. Another number
        changes the leading axis.
      hosts: the number of hosts that the target's devices are spread over, evenly.
      latency_hiding: turns the compiler's latency-hiding scheduler on or off; None
        leaves it as it is, on for Hopper and later, off for older GPUs.
      baseline: the same program without the overlap, for the memory that the
        overlap costs. A Round brings its own: the round with delay 0.

    Returns:
      A :class:`Certificate`; print it, plot it, or ``check()`` it in a test.

    Raises:
      ImportError: when the compiler for GPUs is not installed; it says how to.
      NotImplementedError: when the compiler of this machine's GPUs is not NVIDIA's, or
        shows no schedule.
      TypeError: when ``fn`` is what :func:`cocod_jax.distribute` returned.
      ValueError: when ``target`` is not known, ``devices`` and ``hosts`` do not fit
        the program, several hosts have no target, the arrays of ``args`` have no
        leading axis in common, or ``fn`` was jitted with options of the compiler.

    Examples:
      >>> loss = lambda w, batch: jnp.mean((batch @ w) ** 2)
      >>> round_ = cj.make_round(loss, optax.sgd(0.1), cj.cocod("workers"), period=8)
      >>> state = cj.replicate(round_.init(jnp.ones([64, 64])), 2)
      >>> batches = jax.ShapeDtypeStruct((2, 8, 32, 64), jnp.float32)
      >>> certificate = certify(round_, state, batches)  # doctest: +SKIP
      >>> print(certificate.verdict)  # doctest: +SKIP
      hidden behind 8 of 8 local steps
    """
    if target is None and jax.default_backend() != "gpu":
        target = "h100"
    if target is not None and target not in TARGETS:
        raise ValueError(f"target={target!r} must be one of {', '.join(TARGETS)}.")
    check_counts(hosts=hosts)
    if devices is not None:
        check_counts(devices=devices)
    if target is None and hosts > 1:
        raise ValueError(
            f"hosts={hosts} needs a target, such as target='h100': without one the "
            "program is compiled for the GPUs of this machine."
        )
    if isinstance(fn, Round) and baseline is None and fn.delay > 0:
        baseline = fn._replace(delay=0)
    compiled_for = functools.partial(
        compile_program, target=target, hosts=hosts, latency_hiding=latency_hiding
    )
    program = trace(*_all_workers(fn, args, axis_name, devices))
    workers = _check_devices(program, devices, hosts)
    compiled = compiled_for(program)
    overlap_bytes = None
    if baseline is not None:
        plain = compiled_for(trace(*_all_workers(baseline, args, axis_name, devices)))
        overlap_bytes = compiled.temp_bytes - plain.temp_bytes
    flows = flows_of(program.jaxpr, one_round=isinstance(fn, Round))
    steps = max((f.before + f.beside + f.after for f in flows), default=0)
    schedule = read_schedule(compiled.hlo, steps)
    return Certificate(
        target=target or jax.devices()[0].device_kind,
        devices=workers,
        hosts=hosts,
        flows=flows,
        schedule=schedule,
        reasons=diagnose(flows, schedule, scheduler=compiled.scheduler),
        temp_bytes=compiled.temp_bytes,
        overlap_bytes=overlap_bytes,
    )


def _all_workers(
    fn: Round | Callable[..., Any],
    args: tuple[Any, ...],
    axis_name: str,
    devices: int | None,
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The program over all workers, and what it takes."""
    if isinstance(fn, Round):
        one_worker, donate = fn.run, True
    elif hasattr(fn, "lower"):  # made by jit or pmap: it knows its axis and devices
        return fn, args
    elif getattr(fn, "__module__", None) == distribute.__module__:
        raise TypeError(
            "fn is what cj.distribute returned, which may be several programs; give "
            "the round itself: certify(round_, state, batches)."
        )
    else:
        one_worker, donate = fn, False
    args = jax.eval_shape(lambda *args: args, *args)
    if devices is None:
        sizes = {x.shape[:1] for x in jax.tree.leaves(args)}
        if len(sizes) != 1 or () in sizes:
            raise ValueError(
                "all arrays must have the same leading axis, one entry for each "
                f"worker; the leading axes of args are {sorted(sizes)}."
            )
        ((devices,),) = sizes
    run = over_workers(one_worker, axis_name, devices, donate=donate)
    return run, for_workers(args, devices)


def _check_devices(program: Program, devices: int | None, hosts: int) -> int:
    """The number of devices of a program.

    Raises:
      ValueError: when it is not the one that was asked for, or the hosts cannot
        share it evenly.
    """
    workers = program.exported.nr_devices
    if devices is not None and devices != workers:
        raise ValueError(f"devices={devices}, but fn was made for {workers} devices.")
    if workers % hosts:
        raise ValueError(f"hosts={hosts} cannot share {workers} devices evenly.")
    return workers
