"""What is learnt: a task is one module here."""

from collections.abc import Callable
from typing import Any

from experiments.config import RunConfig
from experiments.tasks import images, text
from experiments.tasks.task import Data as Data
from experiments.tasks.task import Task as Task

TASKS: dict[str, Callable[[Any], Task]] = {"images": images.task, "text": text.task}
"""By name, the function that makes a task from its configuration."""


def task_of(config: RunConfig) -> Task:
    """The task of a configuration; it is not divided between workers yet."""
    return TASKS[config.task](config)
