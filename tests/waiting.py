"""What tests of processes wait for."""

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
