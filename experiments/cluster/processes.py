"""One pinned process per worker; what they print as JSON comes back."""

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from experiments import children
from experiments.cluster.network import Network, free_port

_ENVIRONMENT = {
    # One thread computes. JAX gives a process as many as it has cores or devices; a
    # process of one device, pinned to one core, needs a second to exchange beside it.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "NPROC": "2",
    "PJRT_NPROC": "2",
    # glibc returns large buffers to the system at once. Having their pages cleared anew
    # takes more of the core than the exchange does: let it keep them in one heap.
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
}


def run_workers(
    network: Network,
    argv_of_worker: Callable[[int], Sequence[str]],
    env: Mapping[str, str] | None = None,
    timeout: float = 600.0,
    show: Callable[..., None] = lambda **progress: None,
) -> list[dict[str, Any]]:
    """Runs one process per worker of a network, each on its own core.

    Worker i is pinned to core i, modulo the cores at hand (where the system can pin).
    When one fails the others are ended, and nothing runs on after this returns, nor, on
    Linux, after this process is killed.

    Args:
      network: where they run; entered.
      argv_of_worker: the command of worker i.
      env: added to this process's environment.
      timeout: seconds that all of them have.
      show: called with ``words`` when the workers start, and with the fields of every
        ``{"progress": {...}}`` that worker 0 prints, when it prints it.

    Returns:
      Every JSON object printed on a line of its own, in the order of the workers, with
      the worker's number under "worker". Progress is left out, and so are other lines:
      libraries chat.

    Raises:
      RuntimeError: when a worker fails, with the end of what it wrote to stderr.
      TimeoutError: when they take too long, with the same of every worker.
    """
    environment = {**os.environ, **_ENVIRONMENT, **(env or {})}
    show(words="workers start")
    with ExitStack() as stack:
        workers: list[_Worker] = []
        stack.callback(lambda: children.end(worker.process for worker in workers))
        for i in range(network.workers):
            out, err = (stack.enter_context(tempfile.TemporaryFile()) for _ in "oe")
            with _pinned(i):
                process = children.start(
                    network.command(i, argv_of_worker(i)),
                    env=environment,
                    stdout=out,
                    stderr=err,
                )
            workers.append(_Worker(process, out, err))
        _wait(workers, timeout, show)
        return [
            {**record, "worker": i}
            for i, worker in enumerate(workers)
            for record in worker.records()
        ]


def run_program(
    network: Network,
    program: Sequence[str],
    *,
    timeout: float,
    show: Callable[..., None] = lambda **progress: None,
    **options: Any,
) -> list[dict[str, Any]]:
    """Runs a program that knows its rank as every worker of a network.

    Args:
      network: where they run; entered.
      program: the command. It gets ``--rank``, ``--workers``, the ``--address``
        where they meet, and the options.
      timeout: seconds that all of them have.
      show: takes the progress, as in :func:`run_workers`.
      **options: ``batch_size=16`` becomes ``--batch-size 16``; every entry of a tuple
        becomes a word.

    Returns:
      As :func:`run_workers`, and what that raises.
    """
    address = f"{network.address(0)}:{free_port()}"
    words = []
    for name, value in {
        "workers": network.workers,
        "address": address,
        **options,
    }.items():
        values = value if isinstance(value, tuple) else (value,)
        words += [f"--{name.replace('_', '-')}", *map(str, values)]
    return run_workers(
        network,
        lambda rank: [*program, "--rank", str(rank), *words],
        timeout=timeout,
        show=show,
    )


def machine() -> dict[str, Any]:
    """What else decides how fast a network of processes is."""
    files = {
        "congestion_control": "/proc/sys/net/ipv4/tcp_congestion_control",
        "load": "/proc/loadavg",
    }
    return {
        name: Path(path).read_text().strip()
        for name, path in files.items()
        if Path(path).exists()
    }


@dataclass
class _Worker:
    process: subprocess.Popen
    out: IO[bytes]
    err: IO[bytes]
    seen: int = 0

    def records(self) -> Iterator[dict[str, Any]]:
        """What it has printed, when it has ended."""
        self.out.seek(0)
        return (each for each in _objects(self.out) if "progress" not in each)

    def progress(self) -> Iterator[dict[str, Any]]:
        """The progress that it has printed since the last call, while it runs."""
        # It writes where the file's position is: reading must not move that.
        text = os.pread(self.out.fileno(), 1 << 20, self.seen)
        whole = text[: text.rfind(b"\n") + 1]
        self.seen += len(whole)
        for record in _objects(whole.splitlines()):
            if "progress" in record:
                yield record["progress"]

    def last_words(self, lines: int = 20) -> str:
        self.err.seek(0)
        text = self.err.read().decode(errors="replace")
        return "\n".join(text.splitlines()[-lines:]) or "(nothing on stderr)"


def _objects(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """The lines that are JSON objects."""
    for line in lines:
        with suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict):
                yield record


def _wait(
    workers: Sequence[_Worker], timeout: float, show: Callable[..., None]
) -> None:
    deadline = time.monotonic() + timeout
    while any(worker.process.poll() is None for worker in workers):
        _check(workers)
        for progress in workers[0].progress():
            show(**progress)
        if time.monotonic() > deadline:
            words = "\n".join(
                f"worker {i}: {worker.last_words()}" for i, worker in enumerate(workers)
            )
            raise TimeoutError(f"The workers ran for more than {timeout} s.\n{words}")
        time.sleep(0.05)
    _check(workers)


def _check(workers: Sequence[_Worker]) -> None:
    for i, worker in enumerate(workers):
        if status := worker.process.poll():
            raise RuntimeError(
                f"Worker {i} failed with status {status}:\n{worker.last_words()}"
            )


@contextmanager
def _pinned(worker: int) -> Iterator[None]:
    """Pins what is started meanwhile: a child inherits its parent's cores."""
    if not hasattr(os, "sched_setaffinity"):  # not on Linux
        yield
        return
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {sorted(cores)[worker % len(cores)]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)
