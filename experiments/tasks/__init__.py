"""What is learnt: a task is one module here, and the data sets it is chosen by."""

from collections.abc import Callable

from experiments.config import TrainConfig
from experiments.tasks import images
from experiments.tasks.task import Data as Data
from experiments.tasks.task import Task as Task

TASKS: dict[str, Callable[[TrainConfig], Task]] = {
    **dict.fromkeys(images.DATA, images.task),
}
"""By data set, the function that makes its task from a configuration."""


def task_of(config: TrainConfig) -> Task:
    """The task of a configuration; its data are not loaded yet."""
    return TASKS[config.data](config)
