"""What a worker computed and exchanged, and when, as the runtime's profiler saw it."""

import tempfile
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax

_SHORTEST = 1e-3
"""Seconds; what is shorter would not be seen beside steps of seconds."""


class Interval(NamedTuple):
    """Something that ran, in seconds of the machine's clock.

    Attributes:
      lane: a program on the device that computes, or an all-reduce on any device.
      start: when it began.
      end: when it ended.
    """

    lane: Literal["compute", "exchange"]
    start: float
    end: float


def record(run: Callable[[], object], device: jax.Device) -> list[Interval]:
    """What ran during ``run`` on the device that computes, and all exchanges.

    A synchronous step is one program with an all-reduce in it: it is cut into what
    is computed before, the exchange, and what is computed after.
    """
    return intervals(_profile(run), device.id)


def operations(
    run: Callable[[], object],
    kind_of: Callable[[str], str] = lambda name: name.split(".")[0],
) -> dict[str, float]:
    """Seconds of each kind of the compiler's operations in ``run``, longest first.

    The kind of an operation follows from its name; by default it is the name without
    its number.
    """
    seconds: defaultdict[str, float] = defaultdict(float)
    for stats, start, end in _events(_profile(run)):
        if "hlo_op" in stats:
            seconds[kind_of(stats["hlo_op"])] += end - start
    longest = sorted(seconds.items(), key=lambda item: -item[1])
    return {kind: s for kind, s in longest if s >= _SHORTEST}


STAGES = {
    "shardy-xla": "propagating shardings",
    "spmd-partitioning": "partitioning",
    "HLO passes through layout assignment": "optimising",
    "HLO passes after layout assignment": "optimising",
    "CpuCompiler::RunBackend": "generating code",
}
"""What parts of a compilation are for, by how XLA names them to a profiler."""


def compilation(run: Callable[[], object]) -> dict[str, float]:
    """Seconds of the parts of XLA's compilation for CPUs in ``run``."""
    seconds: defaultdict[str, float] = defaultdict(float)
    planes = {plane.name: plane for plane in _profile(run, detail=3).planes}
    for line in planes["/host:CPU"].lines:
        for event in line.events:
            part = STAGES.get(event.name.split(" (")[0])
            if part is not None:
                seconds[part] += event.duration_ns / 1e9
    return dict(seconds)


def _profile(run: Callable[[], object], detail: int = 2) -> Any:
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    options.host_tracer_level = detail
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            run()
        (path,) = Path(folder).rglob("*.xplane.pb")
        return jax.profiler.ProfileData.from_file(str(path))


def intervals(profile: Any, device: int) -> list[Interval]:
    """The programs of one device and the all-reduces of all, in order."""
    # Every event of a program, each operation too, names the run of the program. One of
    # them, where the runtime waits for the rest, names the device; in some versions all
    # do, and in some the devices share the number of a run.
    events = list(_events(profile))
    sharing: defaultdict[Any, set[int]] = defaultdict(set)
    for stats, _, _ in events:
        if "device_ordinal" in stats:
            sharing[stats.get("run_id")].add(stats["device_ordinal"])
    programs, exchanges, devices = {}, {}, {}
    for stats, start, end in events:
        run, operation = stats.get("run_id"), stats.get("hlo_op", "")
        if len(sharing[run]) > 1:
            run = run, stats.get("device_ordinal")
        first, last = programs.get(run, (start, end))
        programs[run] = min(first, start), max(last, end)
        if "device_ordinal" in stats:
            devices[run] = stats["device_ordinal"]
        if "psum" in operation or "all-reduce" in operation:
            exchanges[run] = start, end
    found = [Interval("exchange", *span) for span in exchanges.values()]
    for run, (start, end) in programs.items():
        if devices.get(run) == device:
            begin, finish = exchanges.get(run, (end, end))
            found.append(Interval("compute", start, begin))
            found.append(Interval("compute", finish, end))
    kept = (each for each in found if each.end - each.start >= _SHORTEST)
    return sorted(kept, key=lambda each: each.start)


def _events(profile: Any) -> Iterator[tuple[dict[str, Any], float, float]]:
    planes = {plane.name: plane for plane in profile.planes}
    origin = _stats(planes["Task Environment"])["profile_start_time"]
    for line in planes["/host:CPU"].lines:
        for event in line.events:
            start = (origin + event.start_ns) / 1e9
            yield _stats(event), start, start + event.duration_ns / 1e9


def _stats(item: Any) -> dict[str, Any]:
    with warnings.catch_warnings():
        # Python 3.12 and later say of a type of jaxlib's that it has no __module__; an
        # error there would end the process.
        warnings.filterwarnings("ignore", "builtin type", DeprecationWarning)
        return dict(item.stats)


def hidden(found: list[Interval]) -> float | None:
    """The share of the exchanges' time in which the worker computed as well.

    None where no exchange took long enough to be seen.
    """
    compute = [each for each in found if each.lane == "compute"]
    exchanges = [each for each in found if each.lane == "exchange"]
    if not exchanges:
        return None
    both = sum(
        max(0.0, min(a.end, b.end) - max(a.start, b.start))
        for a in exchanges
        for b in compute
    )
    return both / sum(each.end - each.start for each in exchanges)


def idle(found: list[Interval]) -> float:
    """The share of the time, from first to last event, in which it did not compute."""
    start = min(each.start for each in found)
    end = max(each.end for each in found)
    busy = sum(each.end - each.start for each in found if each.lane == "compute")
    return 1 - busy / (end - start)
