"""How a task's name becomes a task."""

from collections.abc import Callable

from slim.errors import SlimError, unknown
from slim.workbench.causes import told
from slim.workbench.code import FAILURES, Allowed, import_object, names_code
from slim.workbench.tasks.classification import Classification
from slim.workbench.tasks.detection import Detection
from slim.workbench.tasks.metric import Metric
from slim.workbench.tasks.multilabel import MultiLabel
from slim.workbench.tasks.regression import Regression
from slim.workbench.tasks.segmentation import Segmentation
from slim.workbench.tasks.task import Task

TASKS: dict[str, Callable[[int | None], Task]] = {  # from the number of classes
    "classification": Classification,
    "multilabel": MultiLabel,
    "regression": lambda classes: Regression(),
    "segmentation": Segmentation,
    "detection": Detection,
}


def build_task(name: str, *, classes: int | None = None, allow_code: Allowed = ()) -> Task:
    """Make the task of a name: one of TASKS, or `package.module:Task` or `file.py:Task`, called without arguments.

    classes: how many the data have, where they have any
    allow_code: names of code that may be run: those that the user wrote

    Raises SlimError for an unknown name, and for code that isn't allowed, can't be run or makes no task.
    """
    if name in TASKS:
        return TASKS[name](classes)
    if not names_code(name):
        raise unknown("task", name, TASKS)
    made = import_object("task", name, allow_code=allow_code)
    try:
        task = made()
    except FAILURES as error:
        raise SlimError(f"task {name!r} can't be made without arguments ({told(error)})") from error
    if not isinstance(task, Task):
        raise SlimError(f"task {name!r} made {type(task).__name__}: expected a slim.workbench.tasks.Task")
    if not isinstance(getattr(task, "metric", None), Metric):
        raise SlimError(f'task {name!r} has no metric: expected one such as metric = Metric("error", "min")')
    return task
