"""What a network is trained for."""

from slim.workbench.tasks.classification import Classification
from slim.workbench.tasks.detection import Detection
from slim.workbench.tasks.metric import Metric
from slim.workbench.tasks.multilabel import MultiLabel
from slim.workbench.tasks.names import build_task
from slim.workbench.tasks.regression import Regression
from slim.workbench.tasks.segmentation import Segmentation
from slim.workbench.tasks.task import Mixing, Task
from slim.workbench.tasks.unlabelled import Unlabelled

__all__ = [
    "Classification",
    "Detection",
    "Metric",
    "Mixing",
    "MultiLabel",
    "Regression",
    "Segmentation",
    "Task",
    "Unlabelled",
    "build_task",
]
