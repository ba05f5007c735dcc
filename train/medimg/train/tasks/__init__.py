"""What training and evaluation do differently by task; see `medimg.runtime.tasks`."""

from medimg.runtime.tasks import Head, TaskName, task_of_head
from medimg.train.tasks.base import Mistake, TrainedHead, TrainTask
from medimg.train.tasks.multiclass import Multiclass
from medimg.train.tasks.multilabel import Multilabel

__all__ = ["Mistake", "TrainTask", "TrainedHead", "head_of", "train_task", "train_task_of_head"]

_TASKS: tuple[TrainTask, ...] = (Multiclass(), Multilabel())


def train_task(name: TaskName) -> TrainTask:
    """Look up a task by its name."""
    return next(task for task in _TASKS if task.name == name)


def head_of(activation: str, units: int) -> Head:
    """Tell the head of a network from its last activation and its units."""
    if activation == "sigmoid":
        return "sigmoid" if units == 1 else "multilabel"
    return "softmax" if activation == "softmax" else "logits"


def train_task_of_head(head: Head) -> TrainTask:
    """Look up the task of networks with a head."""
    return train_task(task_of_head(head).name)
