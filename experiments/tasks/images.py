"""Images to be told apart: small networks on digits and CIFAR."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax

from experiments import data, models
from experiments.algorithms import local_optimizer
from experiments.config import TrainConfig
from experiments.tasks.task import Data, Task


def task(config: TrainConfig) -> Task:
    """The network of a configuration on its data set."""
    image_shape, num_classes = data.SHAPES[config.data]
    model = models.build(
        config.model,
        num_classes=num_classes,
        channels=image_shape[-1],
        width=config.width,
    )

    def batch_shapes(workers: int, period: int) -> Any:
        example = data.image_example(image_shape)
        return data.batch_shapes(
            example, workers, period, config.batch_size, config.micro_batches
        )

    return Task(
        init=model.init,
        loss_fn=loss_of(model),
        optimizer=lambda workers, steps: local_optimizer(config, workers, steps),
        load=lambda workers: load(config, model, workers),
        batch_shapes=batch_shapes,
        unit="images",
        result=result,
    )


def load(config: TrainConfig, model: models.Model, workers: int) -> Data:
    """Reads the images, divides them between the workers and prepares the test."""
    dataset = data.load(config.data, config.data_dir)
    shards = data.partition(
        dataset.train_labels,
        workers,
        config.partition,
        config.seed,
        config.micro_batches,
    )
    pipeline = data.Pipeline(
        dataset,
        shards,
        batch_size=config.batch_size,
        seed=config.seed,
        micro_batches=config.micro_batches,
    )
    return Data(
        steps_per_epoch=pipeline.steps_per_epoch,
        per_step=pipeline.examples_per_step,
        rounds=pipeline.rounds,
        evaluate=evaluator(model, dataset),
        digest=data.digest(dataset),
    )


def loss_of(model: models.Model) -> Callable[..., tuple[jax.Array, Any]]:
    """The mean cross-entropy of one local batch, with batch statistics."""

    def loss_fn(params, model_state, batch, key):
        del key  # the networks draw nothing
        logits, model_state = model.apply(
            params, model_state, batch["image"], train=True
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        return losses.mean(), model_state

    return loss_fn


def evaluator(
    model: models.Model, dataset: data.Dataset, batch_size: int = 500
) -> Callable[[Any, Any], dict[str, float]]:
    """Mean cross-entropy and accuracy of one model on the whole test set."""
    images = data.normalised(dataset, dataset.test_images)
    labels = dataset.test_labels

    @jax.jit
    def sums(params, model_state, image, label):
        logits, _ = model.apply(params, model_state, image, train=False)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, label)
        return losses.sum(), (logits.argmax(axis=-1) == label).sum()

    def evaluate(params: Any, model_state: Any) -> dict[str, float]:
        parts = (
            sums(
                params,
                model_state,
                images[i : i + batch_size],
                labels[i : i + batch_size],
            )
            for i in range(0, len(labels), batch_size)
        )
        loss, correct = np.sum([jax.device_get(part) for part in parts], axis=0)
        return {
            "test_loss": float(loss) / len(labels),
            "test_accuracy": float(correct) / len(labels),
        }

    return evaluate


def result(record: Mapping[str, float]) -> tuple[str, str]:
    """The accuracy, for people."""
    return "test accuracy", f"{record['test_accuracy']:.2%}"
