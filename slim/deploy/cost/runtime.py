"""Where a network is to run: a target and the size of a batch, or several of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from slim.deploy.cost.model import SECONDS, LatencyModel, SharedModel, latency_model
from slim.deploy.target import Target
from slim.errors import SlimError
from slim.extras import named_if_missing
from slim.prune.rules import checked_number
from slim.trace.traced import Trace

Holds = Literal["worst", "mean"]


def _default_target() -> Target:
    return _onnxruntime("auto", 0)


def _onnxruntime(provider: str, threads: int) -> Target:
    with named_if_missing():
        from slim.deploy.onnx.target import OnnxRuntime  # imports onnxruntime

    return OnnxRuntime(provider, threads)


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

    @property
    def each(self) -> "tuple[Runtime, ...]":
        """Return the settings in which networks run: this one."""
        return (self,)

    def taken(self, parts: Sequence[float]) -> float:
        """Return what a network takes in all settings, given what it takes in each."""
        return parts[0]

    def cost_model(self, traced: Trace) -> LatencyModel:
        """Return what a traced network costs here, measured where it isn't known from an earlier time."""
        return latency_model(traced, self.target, self.batch_size)

    def __str__(self) -> str:
        return f"{self.target}, batch {self.batch_size}"


@dataclass(frozen=True)
class Runtimes:
    """Several settings in which a network is to run, such as batches of 1 and 32, on one thread and on all.

    `each`: the settings, whose targets read the same kind of file. `holds`: whether a budget of latency holds for the
    "worst" of them (default) or for the weighted "mean". `weights`: one for each, above 0 (default: all alike).
    Channels go by the weighted mean of what they take of the unpruned network's time.

    Raises SlimError where there are no settings, their files differ, or weights aren't one number above 0 for each.

        one, all_cores = slim.OnnxRuntime("cpu", threads=1), slim.OnnxRuntime("cpu")
        slim.plan(model, x, slim.Flops(0.5), round_to=slim.Runtimes([slim.Runtime(one), slim.Runtime(all_cores, 32)]))
    """

    each: Sequence[Runtime]
    holds: Holds = "worst"
    weights: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if not self.each or not all(isinstance(one, Runtime) for one in self.each):
            raise SlimError(f"runtimes {list(self.each)!r}: expected one slim.Runtime or more")
        if len(kinds := {one.target.suffix for one in self.each}) > 1:
            raise SlimError(f"runtimes read files of several kinds, {', '.join(sorted(kinds))}: expected one kind")
        if self.holds not in get_args(Holds):
            raise SlimError(f"holds {self.holds!r}: expected one of {', '.join(get_args(Holds))}")
        given = self.weights
        if given is not None and (len(given) != len(self.each) or min(checked_number("weight", w) for w in given) <= 0):
            raise SlimError(f"weights {list(given)!r}: expected {len(self.each)} numbers above 0, one for each runtime")

    @property
    def shares(self) -> list[float]:
        """Return the weights, which add up to 1."""
        weights = self.weights or [1.0] * len(self.each)
        return [weight / sum(weights) for weight in weights]

    def taken(self, parts: Sequence[float]) -> float:
        """Return what a network takes in all settings, given what it takes in each."""
        if self.holds == "worst":
            return max(parts)
        return sum(share * part for share, part in zip(self.shares, parts))

    def cost_model(self, traced: Trace) -> SharedModel:
        """Return what a traced network costs, as a share of the unpruned one; measured as for one runtime, in the time
        of one."""
        seconds = SECONDS / len(self.each)
        models = [latency_model(traced, one.target, one.batch_size, seconds) for one in self.each]
        return SharedModel(models, self.shares, self.taken, len(traced.classes))

    def __str__(self) -> str:
        targets = dict.fromkeys(str(one.target) for one in self.each)
        batches = dict.fromkeys(one.batch_size for one in self.each)
        return f"{' and '.join(targets)}, batch {' and '.join(map(str, batches))}"


def usual_runtimes(
    provider: str = "auto",
    threads: Sequence[int] = (0, 1),
    batch_sizes: Sequence[int] = (1, 32),
    weights: Sequence[float] | None = None,
) -> Runtimes:
    """Return the settings that networks are planned for where none are named: onnxruntime on all cores and on one, with
    one image and with 32. Raises SlimError where onnxruntime isn't installed, and as `Runtimes` does."""
    targets = [_onnxruntime(provider, number) for number in threads]
    return Runtimes([Runtime(target, size) for target in targets for size in batch_sizes], weights=weights)
