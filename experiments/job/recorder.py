"""What a training run logs and shows, one round behind the devices."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np

import cocod_jax as cj
from cocod_jax.observe.loggers import Logbook
from experiments.job.layout import Met
from experiments.job.writers import Write
from experiments.progress import Training
from experiments.tasks import Task


class Recorder:
    """Logs every round and every epoch, in order.

    The metrics of a round are fetched when the next one has been dispatched, so that
    the devices do not wait for the host. :meth:`flush` fetches what is left.

    Args:
      log: where they are written.
      show: where they are shown.
      task: says what an epoch's result is.
      per_step: what all workers see in a local step, in the task's unit.
      sent_bytes: ``(step) -> bytes`` of a worker in the round that ends there.
      write: gets the numbers of rounds and epochs as well.
      weights: of the workers, in the mean of their losses; None for equal ones.
      peak: what all devices can do in a second, in floating-point operations; None
        where nobody knows.
    """

    def __init__(
        self,
        log: Logbook,
        show: Training,
        task: Task,
        per_step: int,
        sent_bytes: Callable[[int], int],
        write: Write,
        weights: tuple[int, ...] | None,
        peak: float | None = None,
    ):
        self._log, self._show, self._task = log, show, task
        self._per_step, self._weights, self._peak = per_step, weights, peak
        self._sent_bytes, self._write = sent_bytes, write
        self._step = 0
        self._alarm = cj.DriftAlarm(weights)
        self._pending: tuple[int, Any, Callable[[], Met]] | None = None
        self._epoch = 0
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        self._losses: list[float] = []
        self._known = 0  # of them, those of an earlier program
        self._start, self._seconds = time.perf_counter(), 0.0

    @contextmanager
    def flushed(self) -> Iterator[None]:
        """Logs the last round however the context ends."""
        try:
            yield
        finally:
            self.flush()

    def memory(self) -> dict[str, Any]:
        """What it remembers when all rounds are flushed, for JSON."""
        return {
            "epoch": self._epoch,
            "losses": self._losses,
            "alarm": self._alarm.memory(),
        }

    def remember(self, memory: dict[str, Any]) -> None:
        """Goes on from what another one remembered."""
        self._epoch, self._losses = memory["epoch"], memory["losses"]
        self._known = len(self._losses)
        self._alarm.remember(memory["alarm"])

    def dispatched(
        self, step: int, metrics: cj.RoundMetrics, met: Callable[[], Met]
    ) -> None:
        """Takes the metrics of a round that has been dispatched, up to this step.

        The rounds before it are logged when this returns.

        Args:
          step: where the round ends.
          metrics: of all workers.
          met: what all workers say of it.

        Raises:
          UsageError: when not all workers took part in an earlier one.
        """
        self.flush()
        self._pending = step, metrics, met

    def flush(self) -> None:
        """Waits for the last round, and logs it."""
        if self._pending is None:
            return
        step, metrics, met = self._pending
        participants = met().participants
        metrics = jax.device_get(metrics)  # interrupted here, it can be tried again
        self._pending, self._step = None, step
        self._seconds = time.perf_counter() - self._start
        scalars = cj.loggers.scalars(metrics, self._weights)
        record = {
            "step": step,
            "seconds": self._seconds,
            "sent_bytes": self._sent_bytes(step),
            "participants": participants,
            **scalars,
        }
        self._log.write("round", **record)
        self._write("round", record)
        self._log.write("workers", step=step, **cj.loggers.per_worker(metrics))
        if sentence := self._alarm(metrics):
            self._log.write("alarm", step=step, sentence=sentence)
            self._show.alarm(sentence)
        losses = np.average(metrics.loss, axis=0, weights=self._weights)
        self._losses.extend(map(float, losses))
        self._show.round_done(
            self._epoch, scalars["loss"], self._speed(), self._utilisation()
        )

    def _speed(self) -> float:
        """Per second of this epoch, in the task's unit."""
        own = len(self._losses) - self._known
        return own * self._per_step / self._seconds if self._seconds else 0.0

    def _utilisation(self) -> float | None:
        """The share of the peak that the model's own operations take (MFU)."""
        if self._peak is None or self._task.flops is None:
            return None
        return self._speed() * self._task.flops / self._peak

    def epoch_done(self, epoch: float, evaluation: dict[str, float]) -> None:
        """Logs an epoch, all rounds of which have been flushed."""
        record = {
            "epoch": epoch,
            "step": self._step,
            "train_loss": float(np.mean(self._losses)),
            f"{self._task.unit}_per_second": self._speed(),
            **evaluation,
        }
        if (utilisation := self._utilisation()) is not None:
            record["model_flops_utilisation"] = utilisation
        self._log.write("epoch", **record)
        self._write("epoch", record)
        self._show.epoch_done(record, self._task.result(record)[1])
        self._epoch = int(epoch)
        self._begin_epoch()
