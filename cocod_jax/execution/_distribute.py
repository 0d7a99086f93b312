"""What runs a round: a mapping transform, fused or split."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cocod_jax._checks import check_flags
from cocod_jax._meshes import outside_of_meshes
from cocod_jax._typing import Batches
from cocod_jax.exchanges._base import workers_axis
from cocod_jax.exchanges._shards import Shards, shards_of
from cocod_jax.execution._flags import (
    tpu_generation,
    warn_of_nan,
    warn_without_flags,
)
from cocod_jax.execution._foreign import names_foreign_state
from cocod_jax.execution._in_flight import InFlight
from cocod_jax.execution._map import Via, WorkerMap
from cocod_jax.execution._split import Split
from cocod_jax.rounds._checks import check_batches, check_workers, of_all_workers
from cocod_jax.rounds._round import Round, check_round
from cocod_jax.rounds._types import RoundMetrics, RoundState
from cocod_jax.workers._mesh import check_devices, check_mesh

Execution: TypeAlias = Literal["fused", "split"]
Run: TypeAlias = Callable[[RoundState, Batches], tuple[RoundState, RoundMetrics]]


def distribute(
    round_: Round,
    axis_name: str | None = None,
    *,
    via: Via = "pmap",
    execution: Execution | None = None,
    devices: Sequence[jax.Device] | None = None,
    exchange_devices: Sequence[jax.Device] | None = None,
    mesh: Mesh | None = None,
    check_vma: bool = True,
) -> Run:
    """The round on all workers, ready to call.

    ==============  ==============================================================
    ``via``         Workers
    ==============  ==============================================================
    ``pmap``        one on each device
    ``shard_map``   one on each device of a one-axis mesh; or, given a ``mesh`` of
                    several axes, one on the devices of each place along the
                    workers' axis
    ``vmap``        all on one device: a simulation, for dense models (it turns
                    convolutions into grouped convolutions, slow on a CPU)
    ==============  ==============================================================

    ==============  ==============================================================
    ``execution``   The round
    ==============  ==============================================================
    ``fused``       is one program, which the compiler schedules with the exchange
                    beside the local steps where it can
    ``split``       is the same functions as separate programs, one per local step:
                    for CPUs, where the exchange can be given devices of its own
    ==============  ==============================================================

    All combinations follow the same algorithm. ``pmap`` and ``shard_map`` give the
    same numbers to the bit; ``vmap``, and fused against split, differ by rounding,
    since compilers fuse and order the same sums in other ways. Under ``vmap`` JAX draws
    other random numbers from keys of the implementation ``rbg``.

    Whether the exchange is hidden is the compiler's choice, which
    :func:`cocod_jax.certify.certify` reads. On NVIDIA GPUs before Hopper nothing is
    hidden unless the latency-hiding scheduler is on, and on all of them a streamed
    round is hidden in part only unless exchanges start early
    (:func:`cocod_jax.compiler_options`): ``shard_map`` and ``vmap`` give the compiler
    these options; ``pmap`` cannot, and warns when ``XLA_FLAGS`` do not either. On TPUs
    nothing is hidden without options, which are given in the same way; for ``pmap``
    they go into ``LIBTPU_INIT_ARGS``. No TPU has run a round yet. AMD's GPUs are
    untried.

    A CPU device runs the exchange before the steps, whatever the program. With
    ``exchange_devices`` the split execution runs it on other devices, beside the
    steps: give every process twice as many devices as it has workers, and take
    :func:`cocod_jax.execution.device_pairs`.

    Args:
      round_: what :func:`cocod_jax.make_round` returned.
      axis_name: the rule's axis, from which None takes it. It has to be given only
        where the rule sends nothing and the inner optimizer averages over another
        axis than "workers".
      via: the mapping transform.
      execution: None takes ``split`` with ``exchange_devices`` and ``fused`` without.
      devices: where the workers run, one for each, over all processes; None takes
        the first N of ``jax.devices()``. ``vmap`` uses the default device.
      exchange_devices: where the split execution runs the exchange, one for each
        worker, in the order of ``devices``; None is ``devices``.
      mesh: of workers that have several devices each, for ``shard_map``. One axis is
        the rule's; the other axes are within a worker, and how its arrays are shared
        over them is yours to say and the compiler's to use: by their shardings, as
        ``cj.replicate(state, mesh=mesh)`` keeps them. Each device sends what it has
        of the parameters, and none of them is gathered.
      check_vma: ``shard_map``'s check of what varies between devices. It refuses some
        optimizers whose state is a constant at first, such as those of
        ``optax.inject_hyperparams`` with a constant schedule (TypeError of JAX); they
        run without it, and all numbers are the same.

    Returns:
      ``run(state, batches) -> (state, metrics)`` over all workers: the leaves of
      ``state`` and ``metrics`` have a leading axis N, those of ``batches`` have
      leading axes [N, period]. In each of several processes, N is the number of its
      own workers; with a mesh the arrays are those of all processes. The fused
      execution donates the state that is passed in, and on CPUs it waits for the round
      before the last. The split execution does neither.

    Raises:
      TypeError: when ``round_`` is not a Round, ``axis_name`` not a string,
        ``check_vma`` not a bool, or what is given as a device is none; in use, when
        ``state`` is not a RoundState.
      ValueError: when ``axis_name`` is not the rule's, or the rule has several axes,
        when ``via`` or ``execution`` is none of the above, when ``devices``
        is empty, when devices are given to ``vmap``, ``exchange_devices`` to a fused
        execution or in another number than ``devices``, when ``mesh`` has no axis of
        workers or stands beside what it excludes, or when ``vmap``, or ``shard_map``
        without a mesh, is asked to span processes; in use, when ``state`` has no axis
        of workers, when ``batches`` do not begin with its workers and the period, when
        counts of micro-batches do not fit, there is not one device for each worker,
        ``state`` is that of another round, or a run has taken its memory before.

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
    check_flags(check_vma=check_vma)
    axis_name = workers_axis(round_.rule.exchange, axis_name)
    _check_mapping(via, devices, exchange_devices, mesh)
    if mesh is not None:
        _check_mesh(mesh, axis_name, via, execution, devices)
        devices = list(mesh.devices.flat)
    first = (jax.devices() if devices is None else devices)[0]
    if execution is None:
        execution = "fused" if exchange_devices is None else "split"
    if execution not in ("fused", "split"):
        raise ValueError(f"execution={execution!r} must be 'fused', 'split' or None.")
    if execution == "fused" and exchange_devices is not None:
        raise ValueError(
            "exchange_devices belong to execution='split'; fused is one program."
        )
    _check_pairs(devices, exchange_devices)

    def over(devices: Sequence[jax.Device] | None) -> WorkerMap:
        at = None if devices is None else tuple(devices)
        return WorkerMap(via, axis_name, at, check_vma, mesh)

    if execution == "fused":
        if via == "pmap":
            warn_without_flags(first, streamed=round_.streamed)
        if first.platform == "tpu":
            warn_of_nan(tpu_generation(first))
        program = _fused(round_, over(devices))
        if first.platform == "cpu":
            program = _not_far_ahead(program)
    else:
        exchange = over(devices if exchange_devices is None else exchange_devices)
        program = Split(round_, over(devices), exchange, first.platform == "cpu")

    @outside_of_meshes()
    def run(state: RoundState, batches: Batches) -> tuple[RoundState, RoundMetrics]:
        check_batches(batches, round_.period, workers=check_workers(state))
        state = of_all_workers(state)
        if any(map(_is_used_up, jax.tree.leaves(state))):
            raise ValueError(
                "state was given to a run before, which took its memory; go on with "
                "the state that the run returned."
            )
        with names_foreign_state(round_, state):
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


def _fused(round_: Round, workers: WorkerMap) -> Run:
    """The round as one program, which takes the state's memory."""
    if workers.mesh is not None:
        return _fused_on_mesh(round_, workers, workers.mesh)
    program = workers.over(round_.run, donate=(0,))
    return lambda state, batches: program(workers.place(state), workers.place(batches))


def _fused_on_mesh(round_: Round, workers: WorkerMap, mesh: Mesh) -> Run:
    """The same for workers of several devices: a program for each way to share."""
    by_worker = NamedSharding(mesh, PartitionSpec(workers.axis_name))

    @functools.cache
    def program(shards: Shards | None, treedef: Any, shardings: tuple) -> Run:
        # The compiler would choose how to share what comes out, and the next call
        # compile again.
        after = jax.tree.unflatten(treedef, shardings), by_worker
        run = round_.over(shards).run
        return workers.over(run, donate=(0,), out_shardings=after)

    def run(state: RoundState, batches: Batches) -> tuple[RoundState, RoundMetrics]:
        if isinstance(state.count, jax.core.Tracer):
            raise ValueError(
                "a run with a mesh reads from its arrays how devices share them, and "
                "cannot be traced; call it outside of jax.jit."
            )
        state = workers.place(state)
        leaves, treedef = jax.tree.flatten(state)
        shards = shards_of(state.params, workers.axis_name, of_all=True)
        if shards is not None and round_.streamed:
            _check_rows(state.rule_state, shards)
        one = program(shards, treedef, tuple(leaf.sharding for leaf in leaves))
        return one(state, workers.place(batches))

    return run


def _check_rows(rule_state: Any, shards: Shards) -> None:
    """Raises ValueError where the rows of a rule are those of whole leaves.

    They have the right shapes, and would belong to other numbers.
    """
    rows = [leaf for leaf in jax.tree.leaves(rule_state) if leaf.ndim > 2]
    shared = [set(jax.tree.leaves(tuple(leaf.sharding.spec))) for leaf in rows]
    if rows and not any(names & {*shards.axes} for names in shared):
        raise ValueError(
            "the rule's state was made of parameters that no devices shared, or while "
            "JAX traced; call round_.init(params) outside of jax.jit, with parameters "
            "that are sharded already."
        )


def _not_far_ahead(program: Run) -> Run:
    """The same rounds, at most two of them in flight."""
    in_flight = InFlight()

    def run(state: RoundState, batches: Batches) -> tuple[RoundState, RoundMetrics]:
        in_flight.make_room()
        state, metrics = program(state, batches)
        in_flight.launched(metrics.loss)
        return state, metrics

    return run


def _check_mesh(
    mesh: Any,
    axis_name: str,
    via: str,
    execution: str | None,
    devices: Sequence[jax.Device] | None,
) -> None:
    """Raises unless the round can run on this mesh."""
    check_mesh(mesh, axis_name)
    if via != "shard_map":
        raise ValueError(f"mesh belongs to via='shard_map', not to {via!r}.")
    if execution == "split":
        raise ValueError(
            "execution='split' gives the exchange devices of its own, and the workers "
            "of a mesh have none to spare; leave execution out."
        )
    if devices is not None:
        raise ValueError("devices were given beside a mesh, which has its own.")


def _check_mapping(
    via: str,
    devices: Sequence[jax.Device] | None,
    exchange_devices: Sequence[jax.Device] | None,
    mesh: Mesh | None,
) -> None:
    """Raises ValueError unless the mapping transform can use these devices."""
    if via not in ("pmap", "shard_map", "vmap"):
        raise ValueError(f"via={via!r} must be 'pmap', 'shard_map' or 'vmap'.")
    given = {"devices": devices, "exchange_devices": exchange_devices}
    check_devices(**{name: own for name, own in given.items() if own is not None})
    if via == "vmap" and not (devices is None and exchange_devices is None):
        raise ValueError("devices have no meaning for via='vmap', which uses one.")
    if via != "pmap" and mesh is None and jax.process_count() > 1:
        raise ValueError(
            f"via={via!r} is for one process; use 'pmap' for several, or 'shard_map' "
            "with a mesh of all their devices."
        )


def _check_pairs(
    devices: Sequence[jax.Device] | None, exchange_devices: Sequence[jax.Device] | None
) -> None:
    """Raises ValueError unless there are as many devices of either kind."""
    if (
        devices is not None
        and exchange_devices is not None
        and len(devices) != len(exchange_devices)
    ):
        raise ValueError(
            f"exchange_devices has {len(exchange_devices)} entries, but devices has "
            f"{len(devices)}; give two for each worker: one in each."
        )


def _is_used_up(leaf: Any) -> bool:
    tracer = isinstance(leaf, jax.core.Tracer)
    return isinstance(leaf, jax.Array) and not tracer and leaf.is_deleted()
