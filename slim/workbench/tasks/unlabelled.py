"""Nothing to learn: images without labels, which are enough to prune and to recover."""

from typing import Any, NoReturn

from slim.errors import SlimError
from slim.workbench.tasks.metric import Metric
from slim.workbench.tasks.task import Task


class Unlabelled(Task):
    """Images to look at, with nothing said of them. Two networks can agree on them, but none can be right."""

    metric = Metric("agreement", "max")
    labelled = False

    def loss(self, outputs: Any, targets: Any) -> NoReturn:
        """Raise SlimError: there is nothing to learn."""
        raise _refused()

    def tally(self, outputs: Any, targets: Any) -> NoReturn:
        """Raise SlimError: nothing says what is right."""
        raise _refused()

    def check(self, outputs: Any, targets: Any) -> None:
        """Raise SlimError before any training."""
        raise _refused()


def _refused() -> SlimError:
    return SlimError("images without labels train nothing: expected run.path none, or data with labels")
