"""The two questions that can be asked about a program: its flow, its schedule."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from cocod_jax._checks import check_choices, check_counts, check_kind
from cocod_jax._text import shown
from cocod_jax.certify._certificate import Certificate
from cocod_jax.certify._compile import compile_program
from cocod_jax.certify._dataflow import CollectiveFlow, flows_of
from cocod_jax.certify._memory import overlap_bytes
from cocod_jax.certify._nvidia import NVIDIA
from cocod_jax.certify._program import (
    Program,
    for_workers,
    jaxpr_of,
    mesh_of_workers,
    one_axis,
    over_workers,
    trace,
)
from cocod_jax.certify._reasons import diagnose
from cocod_jax.certify._schedule import read_schedule
from cocod_jax.certify._tpu import TPU
from cocod_jax.exchanges._base import check_one_axis, workers_axis
from cocod_jax.exchanges._shards import shards_of
from cocod_jax.execution._distribute import distribute
from cocod_jax.rounds._round import Round
from cocod_jax.rounds._types import RoundState

_MAKERS = {"gpu": NVIDIA, "tpu": TPU}
TARGETS = {target: maker for maker in _MAKERS.values() for target in maker.targets}
"""The devices that a program can be compiled for, and who makes them."""


def dataflow(
    fn: Round | Callable[..., Any], *args: Any, axis_name: str | None = None
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
      TypeError: when ``fn`` is no program, or what :func:`cocod_jax.distribute`
        returned.
      ValueError: when ``axis_name`` is not the rule's, the arrays of ``args`` have no
        leading axis in common, or ``fn`` was jitted with options of the compiler.

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
    axis_name = _axis_of_workers(fn, axis_name)
    run, shapes = _all_workers(fn, args, axis_name, None)
    jaxpr = jaxpr_of(run, *shapes).jaxpr
    return flows_of(jaxpr, axis_name, one_round=isinstance(fn, Round))


def certify(
    fn: Round | Callable[..., Any],
    *args: Any,
    axis_name: str | None = None,
    target: str | None = None,
    devices: int | None = None,
    hosts: int = 1,
    compiler_options: Mapping[str, float] | None = None,
) -> Certificate:
    """Compiles for GPUs or TPUs, and says whether a program's communication is hidden.

    The GPUs or TPUs need not exist: the compiler of JAX runs on any machine, and the
    schedule that it writes is the one that they would follow. The certificate is
    about that schedule: a collective is hidden when it starts before local steps
    and ends after them. No compiler knows how long both take.

    A program of one step, such as one with ``cj.every(..., streamed=True)``, and the
    body of a loop that exchanges in every step have no local steps between start and
    end. There the share of the step's work that stands between them is read.

    Args:
      fn: one of

        * a :class:`cocod_jax.Round`: its ``run`` with the state donated;
        * the function of one worker, as ``jax.pmap`` takes it;
        * what ``jax.pmap`` or ``jax.jit`` returned, such as a jitted
          ``jax.shard_map``. It runs on the number of devices that it was made for.
      *args: what all workers together take: arrays or
        :class:`jax.ShapeDtypeStruct`, with a leading axis of workers for a Round
        or the function of one worker. Arrays that are spread over a mesh with axes
        beside the workers' keep their sharding: a worker then has several devices.
      axis_name: the axis of workers; None is that of a Round's rule, and ``"workers"``
        for other programs. Collectives over other axes alone stay inside a worker,
        between its devices, and need not be hidden. In a jitted program without that
        axis every collective is an exchange.
      target: ``h100``, ``h200``, ``a100`` or ``v100``; ``v5e``, ``v5p`` or ``v6e``
        for TPUs. None takes this machine's GPUs or TPUs, or ``h100`` where
        there are none.
      devices: the number of devices; None takes it from ``args``. Where workers have
        one device each, another number changes the leading axis.
      hosts: the number of hosts that the target's devices are spread over, evenly.
      compiler_options: as ``jax.jit`` takes them. Give
        ``cj.compiler_options("gpu")``, or ``cj.compiler_options(target)`` for TPUs,
        where the program will run with these, as rounds do by ``via="shard_map"``; None
        compiles with the flags of the environment alone, as ``jax.pmap`` does. JAX
        hides the options of a jitted function: take it without.

    Returns:
      A :class:`Certificate`; print it, plot it, or ``check()`` it in a test.

    Raises:
      ImportError: when the compiler for the target is not installed; it says how to.
      NotImplementedError: when the compiler of this machine's GPUs is not NVIDIA's, or
        shows no schedule.
      TypeError: when ``fn`` is no program, or what :func:`cocod_jax.distribute`
        returned.
      ValueError: when ``axis_name`` is not the rule's, ``target`` is not known,
        ``devices`` and ``hosts`` do not fit the program or the target, several hosts
        have no target, the arrays of ``args`` have no leading axis in common, or ``fn``
        was jitted with options of the compiler.

    Examples:
      >>> loss = lambda w, batch: jnp.mean((batch @ w) ** 2)
      >>> round_ = cj.make_round(loss, optax.sgd(0.1), cj.cocod("workers"), period=8)
      >>> state = cj.replicate(round_.init(jnp.ones([64, 64])), 2)
      >>> batches = jax.ShapeDtypeStruct((2, 8, 32, 64), jnp.float32)
      >>> certificate = certify(round_, state, batches)  # doctest: +SKIP
      >>> print(certificate.verdict)  # doctest: +SKIP
      hidden behind 8 of 8 local steps
    """
    if target is None and jax.default_backend() not in _MAKERS:
        target = "h100"
    if target is not None:
        check_choices(TARGETS, target=target)
    if compiler_options is not None:
        check_kind(Mapping, compiler_options=compiler_options)
    maker = TARGETS[target] if target else _MAKERS[jax.default_backend()]
    check_counts(hosts=hosts)
    if devices is not None:
        check_counts(devices=devices)
    if target is None and hosts > 1:
        raise ValueError(
            f"hosts={hosts} needs a target, such as target='h100': without one the "
            "program is compiled for the devices of this machine."
        )
    axis_name = _axis_of_workers(fn, axis_name)
    program = trace(*_all_workers(fn, args, axis_name, devices), maker.platform)
    _check_devices(program, devices, hosts)
    compiled = compile_program(
        program, maker, target=target, hosts=hosts, options=compiler_options or {}
    )
    flows = flows_of(program.jaxpr, axis_name, one_round=isinstance(fn, Round))
    steps = max((f.all_work for f in flows if f.unit == "local steps"), default=0)
    worker_of_device = program.worker_of_device(axis_name)
    schedule = read_schedule(compiled.hlo, steps, worker_of_device)
    return Certificate(
        target=target or jax.devices()[0].device_kind,
        devices=program.exported.nr_devices,
        workers=len(set(worker_of_device)),
        hosts=hosts,
        flows=flows,
        schedule=schedule,
        reasons=diagnose(flows, schedule, compiled.flags),
        temp_bytes=compiled.temp_bytes,
        overlap_bytes=overlap_bytes(compiled.hlo, worker_of_device),
    )


def _axis_of_workers(fn: Round | Callable[..., Any], axis_name: str | None) -> str:
    if not (isinstance(fn, Round) or callable(fn)):
        raise TypeError(
            f"fn={shown(fn)} must be a Round, the function of one worker, or what "
            "jax.pmap or jax.jit returned."
        )
    if isinstance(fn, Round):
        return workers_axis(fn.rule.exchange, axis_name)
    if axis_name is None:
        return "workers"
    check_one_axis(axis_name)
    return axis_name


def _all_workers(
    fn: Round | Callable[..., Any],
    args: tuple[Any, ...],
    axis_name: str,
    devices: int | None,
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The program over all workers, and what it takes."""
    if isinstance(fn, Round):
        if len(args) != 2:
            raise TypeError(
                f"args has {len(args)} entries, but a Round takes two: the state and "
                "the batches."
            )
        check_kind(RoundState, **{"args[0]": args[0]})
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
    mesh = mesh_of_workers(args, axis_name)
    if mesh is not None:
        if isinstance(fn, Round):
            shards = shards_of(args[0].params, axis_name, of_all=True)
            one_worker = fn.over(shards).run
        return over_workers(one_worker, axis_name, mesh, donate=donate), args
    args = jax.eval_shape(lambda *args: args, *args)
    if devices is None:
        sizes = {x.shape[:1] for x in jax.tree.leaves(args)}
        if len(sizes) != 1 or () in sizes:
            raise ValueError(
                "all arrays must have the same leading axis, one entry for each "
                f"worker; the leading axes of args are {sorted(sizes)}."
            )
        ((devices,),) = sizes
    mesh = one_axis(devices, axis_name)
    run = over_workers(one_worker, axis_name, mesh, donate=donate)
    return run, for_workers(args, devices)


def _check_devices(program: Program, devices: int | None, hosts: int) -> None:
    """Compares the devices that a program is for with those that were asked for.

    Raises:
      ValueError: when there are more or fewer, or the hosts cannot share them evenly.
    """
    wanted = program.exported.nr_devices
    if devices is not None and devices != wanted:
        raise ValueError(f"devices={devices}, but fn was made for {wanted} devices.")
    if wanted % hosts:
        raise ValueError(f"hosts={hosts} cannot share {wanted} devices evenly.")
