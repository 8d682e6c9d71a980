"""One number that says how good a network is. No torch in here: reports read metrics from files."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Metric:
    """What a task's number is called, and how it is read.

    name: its key in metrics.jsonl (with train_ or val_ before it) and summary.json, such as "accuracy"
    direction: "max" where more is better, "min" where less is
    share: whether it lies between 0 and 1 and is shown in per cent
    unit: what is written behind a number that is no share, such as " px"

    >>> Metric("error", "min", share=False, unit=" px").format(1.25)
    '1.25 px'
    """

    name: str
    direction: Literal["max", "min"]
    share: bool = True
    unit: str = ""

    @property
    def title(self) -> str:
        """Return the name as people read it."""
        return self.name.replace("_", " ")

    @property
    def worst(self) -> float:
        """Return what every value is better than."""
        return -math.inf if self.direction == "max" else math.inf

    def is_better(self, value: float, than: float) -> bool:
        """Say whether `value` is better than another."""
        return value > than if self.direction == "max" else value < than

    def loss(self, before: float, after: float) -> float:
        """Return how much worse `after` is than `before`, in the metric's own unit; below 0 where it is better."""
        return before - after if self.direction == "max" else after - before

    def format(self, value: float, digits: int = 2) -> str:
        """Write a value: `digits` after the point of a percentage, two more significant ones of another number."""
        return f"{value:{self.spec(digits)}}{'' if self.share else self.unit}"

    def spec(self, digits: int = 2) -> str:
        """Return the format specification of a value, for Python as for plotly: ".2%" or ".4g"."""
        return f".{digits}%" if self.share else f".{digits + 2}g"

    def format_change(self, before: float, after: float, digits: int = 2) -> str:
        """Write a change with its sign: in points where the metric is a share."""
        if self.share:
            return f"{100 * (after - before):+.{digits}f} points".replace("-", "−")
        return f"{after - before:+.{digits + 2}g}".replace("-", "−") + self.unit

    def to_dict(self) -> dict[str, Any]:
        """Return the metric as JSON."""
        return asdict(self)

    @classmethod
    def of(cls, record: Any) -> "Metric":
        """Read the metric of a stage's record in summary.json; of one that names none, accuracy."""
        return cls(**(record.get("metric") or ACCURACY.to_dict()))


ACCURACY = Metric("accuracy", "max")
