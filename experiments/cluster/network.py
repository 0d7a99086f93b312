"""A slow network on one machine: one namespace per worker, rate-limited links."""

import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType

from experiments.signals import like_ctrl_c, undisturbed

_PREFIX = "cocod"
_NAMESPACES = Path("/run/netns")
_CONFIGS = Path("/etc/netns")  # iproute2 mounts NAME/hosts over a process's /etc/hosts
_UNITS = {"bit": 1, "kbit": 10**3, "mbit": 10**6, "gbit": 10**9}


def parse_rate(rate: str) -> int:
    """Bits per second of a rate in the notation of ``tc``.

    Examples:
      >>> parse_rate("500mbit")
      500000000
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmg]?bit)", rate)
    bits = round(float(match[1]) * _UNITS[match[2]]) if match else 0
    if bits <= 0:
        raise ValueError(
            f"rate={rate!r} must be a positive number and a unit (bit, kbit, mbit or "
            "gbit), such as '200mbit'."
        )
    return bits


def links_of(rate: str) -> str:
    """Links of this rate, for people.

    Examples:
      >>> links_of("500mbit"), links_of("none")
      ('500 Mbit/s links', 'loopback')
    """
    if rate == "none":
        return "loopback"
    units = {"kbit": "kbit/s", "mbit": "Mbit/s", "gbit": "Gbit/s", "bit": "bit/s"}
    number = rate.rstrip("bitkmg")
    return f"{number} {units[rate.removeprefix(number)]} links"


def free_port() -> int:
    """A TCP port that nothing on this machine listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Network:
    """A context manager: workers joined by one switch, each by its own slow link.

    Every worker lives in a network namespace with one interface. The other end of
    its link hangs on a bridge in a further namespace, so that nothing appears among
    the machine's own interfaces. Both ends are shaped by a token bucket: a worker
    sends and receives at ``rate``, at the same time.

    The namespaces disappear with the context, also when an exception, Ctrl-C, a closed
    terminal or SIGTERM ends it. What a killed run left behind, the next one removes.

    Args:
      workers: how many.
      rate: of each link and direction, as ``tc`` writes it ("200mbit"). None means
        the loopback interface: full speed, no namespaces, no root.
    """

    def __init__(self, workers: int, rate: str | None):
        if not 1 <= workers <= 250:
            raise ValueError(f"workers={workers} must be 1 to 250: one address each.")
        if rate is not None:
            parse_rate(rate)
        self.workers = workers
        self.rate = rate
        self._run = _run_of(os.getpid()) if rate else None
        self._undo = ExitStack()

    def address(self, worker: int) -> str:
        """The IPv4 address that the other workers reach this one at."""
        return "127.0.0.1" if self.rate is None else f"10.77.0.{worker + 1}"

    def command(self, worker: int, argv: Sequence[str]) -> list[str]:
        """The command that runs ``argv`` as this worker."""
        if self.rate is None:
            return list(argv)
        return ["ip", "netns", "exec", self._namespace(worker), *argv]

    def set_link(self, worker: int, *, up: bool) -> None:
        """Cuts the link of a worker, or joins it again: as by its plug in the switch.

        Raises:
          RuntimeError: on the loopback interface, which no worker has to itself.
        """
        if self.rate is None:
            raise RuntimeError(f"worker {worker} has no link to cut: give a rate.")
        state = "up" if up else "down"
        switch = self._namespace("switch")
        _call(f"ip -n {switch} link set port{worker} {state}")

    def __enter__(self) -> "Network":
        # Whatever interrupts the construction, what stands of it goes.
        with ExitStack() as undo:
            undo.enter_context(like_ctrl_c())
            if self.rate is not None:
                _require_tools()
                _remove_stale()
                undo.callback(_remove, self._run)
                self._build(self.rate)
            self._undo = undo.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._undo.close()

    def _namespace(self, member: int | str) -> str:
        return f"{_PREFIX}-{self._run}-{member}"

    def _build(self, rate: str) -> None:
        switch = self._namespace("switch")
        bucket = f"tbf rate {rate} burst 256kb latency 50ms"
        _call(f"ip netns add {switch}")
        _call(f"ip -n {switch} link add bridge type bridge")
        _call(f"ip -n {switch} link set bridge up")
        for worker in range(self.workers):
            name, port = self._namespace(worker), f"port{worker}"
            peer = f"peer name eth0 netns {name}"
            _call(f"ip netns add {name}")
            _call(f"ip -n {switch} link add {port} type veth {peer}")
            _call(f"ip -n {switch} link set {port} master bridge up")
            _call(f"ip -n {name} address add {self.address(worker)}/24 dev eth0")
            _call(f"ip -n {name} link set eth0 up")
            _call(f"ip -n {name} link set lo up")
            _call(f"tc -n {switch} qdisc add dev {port} root {bucket}")
            _call(f"tc -n {name} qdisc add dev eth0 root {bucket}")
            # gloo listens on the address that the machine's name resolves to.
            config = _CONFIGS / name
            config.mkdir(parents=True)
            config.joinpath("hosts").write_text(
                f"127.0.0.1 localhost\n{self.address(worker)} {socket.gethostname()}\n"
            )


def _call(command: str) -> str:
    done = subprocess.run(command.split(), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{command!r} failed: {done.stderr.strip()}")
    return done.stdout


def _require_tools() -> None:
    missing = [tool for tool in ("ip", "tc") if shutil.which(tool) is None]
    if missing:
        raise RuntimeError(
            f"A rate-limited network needs Linux and the command "
            f"{' and '.join(missing)}: install iproute2, or use no rate (loopback)."
        )
    if os.geteuid() != 0:
        raise RuntimeError(
            "A rate-limited network needs root, to make network namespaces: run as "
            "root, or use no rate (loopback)."
        )


def _run_of(pid: int) -> str | None:
    """Names a process for good: its id and, as ids come back, its start time."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # Field 2, the command in parentheses, may hold spaces; 3 is the state, Z of a dead
    # process that its parent has not noticed, and 22 the start time.
    state, *fields = stat.rpartition(")")[2].split()
    return None if state == "Z" else f"{pid}-{fields[18]}"


def _members() -> Iterator[tuple[str, str]]:
    """(run, namespace) of all that runs of ours have made and not removed."""
    names = {
        path.name
        for folder in (_NAMESPACES, _CONFIGS)
        for path in folder.glob(f"{_PREFIX}-*")
    }
    for name in sorted(names):
        if match := re.fullmatch(rf"{_PREFIX}-(\d+-\d+)-(?:\d+|switch)", name):
            yield match[1], name


def _remove_stale() -> None:
    """Removes what runs that no longer live could not remove themselves."""
    for run in {run for run, _ in _members()}:
        if run != _run_of(int(run.partition("-")[0])):
            _remove(run)


def _remove(run: str | None) -> None:
    with undisturbed():
        for name in [name for owner, name in _members() if owner == run]:
            try:
                # A process left in a namespace would keep it alive without a name.
                for pid in _call(f"ip netns pids {name}").split():
                    with suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)
                _call(f"ip netns delete {name}")
            except RuntimeError:
                # Gone already: it had no more than a hosts file, or another run that
                # starts now has just removed it.
                if (_NAMESPACES / name).exists():
                    raise
            shutil.rmtree(_CONFIGS / name, ignore_errors=True)
        with suppress(OSError):  # it is not there, or holds what is not ours
            _CONFIGS.rmdir()
