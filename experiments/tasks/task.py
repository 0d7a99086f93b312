"""What the training loop has to know of a task, and all that it knows."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import optax


class Data(NamedTuple):
    """The data of a task, loaded and divided between workers.

    Attributes:
      steps_per_epoch: local steps of each worker in one pass.
      per_step: what all workers together see in a local step, in the task's unit.
      rounds: ``(*, first_step, period, count, workers) -> iterator`` of ``count``
        rounds' batches of these workers, a range, or of all; every leaf is
        [workers, period, ...].
      evaluate: ``(params, model_state) -> {name: value}``, one model on the test data.
      digest: of the data; equal where they are.
      notes: sentences on the data for people, shown before the training and logged.
      sample: ``(params, model_state) -> text`` of the trained model, shown and logged
        at the end; None for models that write nothing.
    """

    steps_per_epoch: int
    per_step: int
    rounds: Callable[..., Iterator[Any]]
    evaluate: Callable[[Any, Any], dict[str, float]]
    digest: str
    notes: tuple[str, ...] = ()
    sample: Callable[[Any, Any], str] | None = None


class Task(NamedTuple):
    """A model, its loss, its optimizer and its data.

    Attributes:
      init: ``(key) -> (params, model_state)``, the initial values.
      loss_fn: ``(params, model_state, batch, key) -> (loss, model_state)`` of one
        worker's local batch.
      optimizer: ``(workers, steps_per_epoch) -> optimizer`` of one worker.
      load: ``(workers) -> data``; takes seconds, and is not needed for a certificate.
      batch_shapes: ``(workers, period) -> tree`` of :class:`jax.ShapeDtypeStruct`,
        like a round's batches.
      unit: what speed is counted in.
      flops: floating-point operations of the training on one of them, without those
        that ``remat`` repeats; None where nobody counted.
      result: ``(record) -> (name, value)``, an epoch's result for people.
    """

    init: Callable[[jax.Array], tuple[Any, Any]]
    loss_fn: Callable[..., tuple[jax.Array, Any]]
    optimizer: Callable[[int, int], optax.GradientTransformation]
    load: Callable[[int], Data]
    batch_shapes: Callable[[int, int], Any]
    unit: str
    result: Callable[[Mapping[str, float]], tuple[str, str]]
    flops: float | None = None
