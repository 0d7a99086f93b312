"""Alarms for a run whose workers drift apart, read from the metrics of its rounds."""

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from cocod_jax.exchanges._base import normalised, worker_shares
from cocod_jax.rounds._types import RoundMetrics, by_name, of_whole_rounds, on_host

# Chosen on small networks: see the tests.
_IN_A_ROW = 3  # rounds
_LOSS_RISE = 1.5
_DISTANCE_RISE = 2.0
_WINDOW = 10  # rounds


class DriftAlarm:
    r"""Says in a sentence that workers drift apart, and what to do about it.

    Call it with the metrics of every round, from the first one on. What it remembers
    of them stays on the host. Each of three kinds of alarm rings once:

    - **Not finite**: a metric of some worker is not.
    - **The workers move apart**, and it does not pay: for three rounds their average
      distance from the mean was more than twice that of the second round, the first
      in which they differ, and the average loss more than half again that of the
      first. Distance alone says little: it grows with a learning rate that is warmed
      up, and often while the loss falls fastest.
    - **The merge over-corrects**: over ten rounds the workers had gone more than the
      whole way to the mean on their own before the merge went it once more.

    The share of the way that they had gone is

    .. math::

       a = \frac{\sum_i p_i \langle x_i - s_i, \, m - s_i \rangle}
                {\sum_i p_i \|m - s_i\|^2}

    the mean of :math:`\text{alignment} \cdot \text{progress\_norm} \cdot
    \text{distance}` over that of :math:`\text{distance}^2`. CoCoD-SGD multiplies
    the workers' differences by :math:`-a`, and adds noise: they die out for a below 1
    and grow above. Where gradients are noise alone, a is 0. No alarm rings below 0:
    momentum takes a worker further in its old direction, and data of its own pull it
    the same way in every round, while the loss falls all the same.

    Args:
      weights: the rule's, one positive number for each worker (shared); they are
        normalised. None counts all workers the same.

    Raises:
      TypeError: when ``weights`` is not a sequence.
      ValueError: when a weight is not positive and finite; in use, when there is not
        one for each worker of the metrics.

    Examples:
      >>> loss = lambda w, batch: 0.5 * (w - batch) ** 2
      >>> round_ = cj.make_round(loss, optax.sgd(2.5), cj.cocod("workers"), period=4)
      >>> run = cj.distribute(round_, via="vmap")
      >>> state = cj.replicate(round_.init(jnp.array(0.0)), 2)
      >>> batches = np.array([[0.0] * 4, [1.0] * 4], np.float32)
      >>> alarm = cj.DriftAlarm()
      >>> for _ in range(5):
      ...     state, metrics = run(state, batches)
      ...     if sentence := alarm(metrics):
      ...         print(sentence.partition(":")[0])
      The workers move apart
    """

    def __init__(self, weights: Sequence[float] | None = None):
        self._weights = None if weights is None else normalised(weights)
        self._first_loss: float | None = None
        self._first_distance: float | None = None
        self._in_a_row = 0
        self._ways = deque[tuple[float, float]](maxlen=_WINDOW)
        self._rung: set[str] = set()

    def __call__(self, metrics: RoundMetrics) -> str | None:
        """The sentence of an alarm that rings now, or None.

        Args:
          metrics: one round's, for all workers, [N, period] and [N]. With several
            processes, gather them first, in every process:
            ``multihost_utils.process_allgather(metrics, tiled=True)``.

        Returns:
          The sentence, or None. When two alarms ring together, the second comes with
          the next round's metrics, if it still holds.
        """
        metrics = of_whole_rounds(on_host(metrics))
        shares = worker_shares(self._weights, len(metrics.distance))
        if all(np.isfinite(values).all() for values in by_name(metrics).values()):
            # Both run, also when one rings: they remember the rounds before.
            sentences = {
                "apart": self._apart(metrics, shares),
                "over-corrected": self._over_corrected(metrics, shares),
            }
        else:
            sentences = {"not finite": _not_finite(metrics)}
        for kind, sentence in sentences.items():
            if sentence is not None and kind not in self._rung:
                self._rung.add(kind)
                return sentence
        return None

    def memory(self) -> dict[str, Any]:
        """What it remembers of the rounds so far, for JSON, such as in a checkpoint."""
        return {
            "first_loss": self._first_loss,
            "first_distance": self._first_distance,
            "in_a_row": self._in_a_row,
            "ways": [list(way) for way in self._ways],
            "rung": sorted(self._rung),
        }

    def remember(self, memory: dict[str, Any]) -> None:
        """Goes on from what an alarm of the same run remembered.

        Args:
          memory: what :meth:`memory` returned.

        Raises:
          ValueError: when something of it is missing.
        """
        missing = sorted(self.memory().keys() - memory.keys())
        if missing:
            raise ValueError(
                f"memory has no {', '.join(missing)}; give what memory() returned."
            )
        self._first_loss = memory["first_loss"]
        self._first_distance = memory["first_distance"]
        self._in_a_row = memory["in_a_row"]
        self._ways.clear()
        self._ways.extend((gone, whole) for gone, whole in memory["ways"])
        self._rung = set(memory["rung"])

    def _apart(self, metrics: RoundMetrics, shares: np.ndarray) -> str | None:
        loss = float(shares @ metrics.loss.mean(axis=1))
        distance = float(shares @ metrics.distance)
        if self._first_loss is None:  # the workers were equal, but for rounding
            self._first_loss = loss
            return None
        if not self._first_distance:  # learning rate 0 keeps the workers equal
            self._first_distance = distance
        first_loss, first_distance = self._first_loss, self._first_distance
        # A loss may be negative, such as that of a density.
        rise = (_LOSS_RISE - 1) * abs(first_loss)
        apart = distance > _DISTANCE_RISE * first_distance and loss > first_loss + rise
        self._in_a_row = self._in_a_row + 1 if apart else 0
        if self._in_a_row < _IN_A_ROW:
            return None
        return (
            "The workers move apart: their distance from the mean has grown from "
            f"{first_distance:.3g} to {distance:.3g}, and the loss from "
            f"{first_loss:.3g} to {loss:.3g}. A stale mean does not hold workers that "
            "go this far in a round. Take a smaller learning rate (momentum multiplies "
            "it), a shorter period or a smaller delay. If they move apart at any rate, "
            "the optimizer may undo merges: see cocod_jax.testing.check_inner."
        )

    def _over_corrected(self, metrics: RoundMetrics, shares: np.ndarray) -> str | None:
        # Corrections have the weighted mean 0: what is common to the progress of all
        # workers drops out of the mean of these products.
        gone = shares @ (metrics.alignment * metrics.progress_norm * metrics.distance)
        self._ways.append((float(gone), float(shares @ metrics.distance**2)))
        gone, whole = np.sum(self._ways, axis=0)
        if len(self._ways) < _WINDOW or gone <= whole:
            return None
        return (
            f"The merge over-corrects: over {_WINDOW} rounds the workers' own steps "
            f"had gone {gone / whole:.0%} of the way to the mean when it arrived, and "
            "the merge went all of it once more. Take a smaller delay, a shorter "
            "period or a smaller learning rate."
        )


def _not_finite(metrics: RoundMetrics) -> str:
    finite = {
        name: np.isfinite(values).reshape(len(values), -1).all(axis=1)
        for name, values in by_name(metrics).items()
    }
    found = " and ".join(
        f"{name} of worker {', '.join(map(str, np.flatnonzero(~ok)))}"
        for name, ok in finite.items()
        if not ok.all()
    )
    return (
        f"Not finite: {found}. If all workers are named, the run has diverged: go back "
        "to a checkpoint, with a smaller learning rate or a shorter period. If one "
        "worker is, look at its data first."
    )
