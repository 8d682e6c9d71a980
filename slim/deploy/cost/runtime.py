"""Where a network is to run: a target, and the size of a batch."""

from dataclasses import dataclass, field

from slim.deploy.cost.model import LatencyModel, latency_model
from slim.deploy.target import Target
from slim.errors import SlimError
from slim.extras import named_if_missing
from slim.trace.tracer import Trace


def _default_target() -> Target:
    with named_if_missing():
        from slim.deploy.onnx.target import OnnxRuntime  # imports onnxruntime

    return OnnxRuntime()


@dataclass(frozen=True)
class Runtime:
    """The runtime that a plan is made for.

    `target`: what runs it: `slim.OnnxRuntime` (default: the best provider, all cores), or one of your own.
    `batch_size`: images in one call (default 1).

    Raises SlimError for a number out of range.

        slim.plan(model, x, slim.Latency(0.5, slim.Runtime(slim.OnnxRuntime("cpu", threads=1), batch_size=8)))
    """

    target: Target = field(default_factory=_default_target)
    batch_size: int = 1

    def __post_init__(self) -> None:
        if isinstance(self.target, (str, int)):
            raise SlimError(f"target {self.target!r}: expected one such as slim.OnnxRuntime({self.target!r})")
        if isinstance(self.batch_size, bool) or not isinstance(self.batch_size, int) or self.batch_size < 1:
            raise SlimError(f"batch_size {self.batch_size!r}: expected a whole number, 1 or more")

    def cost_model(self, traced: Trace) -> LatencyModel:
        """Return what a traced network costs here, measured where it isn't known from an earlier time."""
        return latency_model(traced, self.target, self.batch_size)

    def __str__(self) -> str:
        return f"{self.target}, batch {self.batch_size}"
