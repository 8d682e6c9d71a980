"""A step's passes as a CUDA graph: one launch from Python in the place of hundreds.

A small network on a GPU waits for Python: ResNet-20 takes 12 ms for 64 images, whatever the GPU. What the GPU is told
to do in a forward and a backward pass is the same in each step but for the numbers in its tensors, so it is recorded
once for each shape of batch and replayed. Batches are copied into the tensors that were there when it was recorded,
and the gradients come out in those. What needs Python in each step (learning rates, λ, a target share of zeros) stays
outside: it is a few kernels, and the GPU has work meanwhile.

Random draws follow from the seed of each step as they do without: a replay reads the generator's seed anew.
"""

import warnings
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from slim.errors import SlimError
from slim.sparsity import Sparsity

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Result = TypeVar("Result")
Passes = Callable[[Any, Any], tuple[Tensor, Tensor]]

WARM_UP = 3  # steps of a shape without a graph: libraries allocate and choose their algorithms in the first
MOST = 4  # shapes; each graph holds the memory of its activations


class GraphRecorder(Protocol):
    """What records what a device is told to do."""

    def warm_up(self, function: Callable[[], Result]) -> Result:
        """Run a function as it will be run when it is recorded."""

    def record(self, function: Callable[[], Result]) -> tuple[Result, Callable[[], None]]:
        """Record a function without executing it; return what it returned, and what executes it. That writes its
        results, and the gradients that it left, into the same tensors."""


class CudaGraphRecorder:
    """CUDA graphs, of one device."""

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)

    def warm_up(self, function: Callable[[], Result]) -> Result:
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            result = function()
        torch.cuda.current_stream().wait_stream(self.stream)
        return result

    def record(self, function: Callable[[], Result]) -> tuple[Result, Callable[[], None]]:
        graph = torch.cuda.CUDAGraph()
        # Other threads may pin memory meanwhile.
        with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
            result = function()
        return result, graph.replay


def graph_recorder_for(
    wanted: bool | Literal["auto"], fabric: "Fabric", sparsity: Sparsity | None = None
) -> GraphRecorder | None:
    """Return what records a training's passes, where that is wanted and can be.

    Raises `SlimError` where it is wanted by `True` and can't be.
    """
    if wanted is False:
        return None
    hindrances = {
        f"the device is {fabric.device.type}: expected a GPU": fabric.device.type != "cuda",
        "several processes wait for each other in every pass: expected one": fabric.world_size > 1,
        "precision 16-mixed scales the loss anew in each step: expected bf16-mixed": fabric._precision.precision
        == "16-mixed",
        "method 'loss' has λ in the loss: expected 'subgradient' or 'proximal'": sparsity is not None
        and sparsity.method == "loss",
    }
    reason = next((reason for reason, holds in hindrances.items() if holds), None)
    if wanted is True and reason:
        raise SlimError(f"graph is true, but {reason}, or graph auto")
    return None if reason else CudaGraphRecorder(fabric.device)


class GraphedPasses:
    """The same as `passes(inputs, targets)`, which computes a loss and a metric's sums and leaves gradients; replayed
    where the shapes have been seen before.

    Where a network can't be recorded (its code looks at values, say, or computes on the CPU), it warns once, and
    computes as without.
    """

    def __init__(self, passes: Passes, parameters: Sequence[nn.Parameter], recorder: GraphRecorder) -> None:
        self.passes, self.parameters, self.recorder = passes, parameters, recorder
        self.seen: dict[Hashable, int] = {}
        self.replays: dict[Hashable, _Replay] = {}
        self.works = True

    def __call__(self, inputs: Any, targets: Any) -> tuple[Tensor, Tensor]:
        leaves, structure = tree_flatten((inputs, targets))
        shapes = _shapes(leaves, structure)
        if shapes in self.replays:
            return self.replays[shapes](leaves)
        self.seen[shapes] = self.seen.get(shapes, 0) + 1
        if self.works and self.seen[shapes] > WARM_UP and len(self.replays) < MOST:
            try:
                self.replays[shapes] = _Replay(self.passes, leaves, structure, self.parameters, self.recorder)
                return self.replays[shapes](leaves)
            except (RuntimeError, NotImplementedError) as error:
                self._give_up(error)
        return self.recorder.warm_up(lambda: self.passes(inputs, targets))

    def _give_up(self, error: Exception) -> None:
        self.works = False
        for parameter in self.parameters:
            parameter.grad = None
        reason = str(error).strip().partition("\n")[0]
        warnings.warn(f"trains without a CUDA graph, as this network can't be recorded: {reason}", stacklevel=2)


class _Replay:
    """What was recorded for batches of one shape."""

    def __init__(
        self,
        passes: Passes,
        leaves: list[Any],
        structure: TreeSpec,
        parameters: Sequence[nn.Parameter],
        recorder: GraphRecorder,
    ) -> None:
        self.inputs = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self.results, self.replay = recorder.record(lambda: passes(*tree_unflatten(self.inputs, structure)))
        self.gradients = [(parameter, parameter.grad) for parameter in parameters if parameter.grad is not None]

    def __call__(self, leaves: list[Any]) -> tuple[Tensor, Tensor]:
        for static, leaf in zip(self.inputs, leaves):
            if isinstance(leaf, Tensor):
                static.copy_(leaf, non_blocking=True)
        self.replay()
        for parameter, gradient in self.gradients:
            parameter.grad = gradient
        loss, sums = self.results
        return loss.clone(), sums.clone()  # the next replay writes over them


def _shapes(leaves: list[Any], structure: TreeSpec) -> Hashable:
    return str(structure), *(
        (leaf.shape, leaf.stride(), leaf.dtype) if isinstance(leaf, Tensor) else repr(leaf) for leaf in leaves
    )
