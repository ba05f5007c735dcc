"""What differs by task: one object a task, looked up once by its name.

Nothing outside this folder, and its likes in the other rooms, compares names of tasks or heads.
"""

from medimg.runtime.statistics.metrics import Probabilities
from medimg.runtime.tasks.base import ACTIVATION_MAP, PROBABILITIES, Arrays, Head, Task, TaskName
from medimg.runtime.tasks.multiclass import Multiclass
from medimg.runtime.tasks.multilabel import Multilabel

__all__ = [
    "ACTIVATION_MAP",
    "PROBABILITIES",
    "Arrays",
    "Head",
    "Probabilities",
    "Task",
    "TaskName",
    "task_named",
    "task_of_head",
]

_TASKS: tuple[Task, ...] = (Multiclass(), Multilabel())


def task_named(name: TaskName) -> Task:
    """Look up a task by its name."""
    return next(task for task in _TASKS if task.name == name)


def task_of_head(head: Head) -> Task:
    """Look up the task of networks with a head."""
    return next(task for task in _TASKS if head in task.heads)
