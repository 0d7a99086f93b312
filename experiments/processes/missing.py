"""Which processes the others miss, by what JAX says before it ends them."""

import re
import threading

_VERDICT = "unhealthy (stopped sending heartbeats):"
_UNANSWERED = "xla.coordination.CoordinationService/Heartbeat"


class Missing:
    """Reads what the processes of a run print on stderr.

    Process 0 has JAX's coordination service. The service ends a run when a process
    sends no heartbeats, and names that process; a process ends by itself when the
    service does not answer, and names nobody.

    Args:
      processes: how many there are.
    """

    def __init__(self, processes: int):
        self._others = processes - 1
        self._reading = threading.Lock()
        self._verdict_comes: set[int] = set()
        self._silent: set[int] = set()
        self._unanswered = False

    def read(self, index: int, line: str) -> None:
        """Takes a line of a process."""
        with self._reading:
            if index in self._verdict_comes:
                self._silent |= {int(task) for task in re.findall(r"\d+", line)}
                self._verdict_comes.discard(index)
            elif _VERDICT in line:
                self._verdict_comes.add(index)
            elif _UNANSWERED in line:
                self._unanswered = True

    @property
    def processes(self) -> list[int]:
        """Those that are missing, as far as has been read.

        Where process 0 hears of none of several others, it is missing itself.
        """
        with self._reading:
            cut_off = 1 < self._others == len(self._silent)
            if self._silent and not cut_off:
                return sorted(self._silent)
            return [0] if cut_off or self._unanswered else []
