"""How far programs are launched ahead of what CPU devices have done."""

import collections

import jax


class InFlight:
    """Keeps two of a kind in flight: rounds, or the local steps of a split one.

    XLA queues 32 programs for a CPU device. To launch one more is to wait for a place
    in the queue, in a thread of the pool that the devices share. Workers that wait so,
    and others that wait in an all-reduce for them, leave no thread to those whose turn
    it is, and the process is stuck.
    """

    def __init__(self) -> None:
        self._latest: collections.deque[jax.Array] = collections.deque()

    def make_room(self) -> None:
        """Waits for the one before the last; called before another is launched."""
        if len(self._latest) == 2:
            before_last = self._latest.popleft()
            if not before_last.is_deleted():
                before_last.block_until_ready()

    def launched(self, result: jax.Array) -> None:
        """Takes note of something that the new one computes."""
        if not isinstance(result, jax.core.Tracer):
            self._latest.append(result)
