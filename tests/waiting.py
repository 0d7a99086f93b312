"""What tests of processes wait for, and what must not stay."""

import os
import time
from pathlib import Path


def alive(pid: int) -> bool:
    """Whether a process runs; one that is dead may still have its number."""
    state = Path(f"/proc/{pid}/stat")
    return state.exists() and ") Z " not in state.read_text()


def wait_until(holds, seconds=20) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def left_behind() -> set[str]:
    """The processes and the network namespaces that this process has at the moment."""
    tasks = Path("/proc/self/task").glob("*/children")
    children = {pid for task in tasks for pid in task.read_text().split()}
    own = Path("/run/netns").glob(f"*-{os.getpid()}-*")
    return {pid for pid in children if alive(int(pid))} | {path.name for path in own}
