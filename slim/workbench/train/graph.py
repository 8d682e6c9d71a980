"""A whole training step as a CUDA graph: one launch from Python in the place of hundreds.

A small network on a GPU waits for Python: a step of ResNet-20 took 12 ms, whatever the GPU and the batch. What the GPU
is told to do in a step is the same each time but for the numbers in its tensors, so the step (forward, loss, backward,
clipping, penalty, optimizer, average) is recorded once for each shape of batch and replayed. Batches are copied into
the tensors that were there when it was recorded; learning rate, λ and the other numbers that change from step to step
are tensors, too, which are written to between two replays.

Random draws follow from the seed of each step as they do without: a replay reads the generator's seed anew.
"""

import warnings
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, suppress
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map, tree_unflatten

from slim.errors import SlimError
from slim.sparsity import Sparsity

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Result = TypeVar("Result")

WARM_UP = 3  # steps of a shape without a graph: libraries allocate and choose their algorithms in the first
MOST = 4  # shapes; each graph holds the memory of its activations


class GraphRecorder(Protocol):
    """What records what a device is told to do."""

    def warm_up(self, function: Callable[[], Result]) -> Result:
        """Run a function as it will be run when it is recorded."""

    def record(self, function: Callable[[], Result]) -> tuple[Result, Callable[[], None]]:
        """Record a function without executing it; return what it returned, and what executes it. That writes its
        results into the same tensors."""


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
        graph, pool, stream = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle(), torch.cuda.current_stream()
        try:
            # Other threads may pin memory meanwhile.
            with torch.cuda.graph(graph, pool, self.stream, capture_error_mode="thread_local"):
                result = function()
        except BaseException:
            self._give_up(pool, stream)
            raise
        return result, graph.replay

    def _give_up(self, pool: Any, stream: torch.cuda.Stream) -> None:
        """Undo what torch leaves of a recording that failed: its stream is the current one, memory goes to its pool,
        and whatever draws random numbers on the device fails from then on."""
        torch.cuda.set_stream(stream)
        device = self.stream.device_index
        generator = torch.cuda.default_generators[device]
        generator.graphsafe_set_state(generator.clone_state())
        with suppress(RuntimeError):  # newer versions have done so
            torch._C._cuda_endAllocateToPool(device, pool)


def graph_recorder_for(
    wanted: bool | Literal["auto"], fabric: "Fabric", sparsity: Sparsity | None = None
) -> GraphRecorder | None:
    """Return what records a training's steps, where that is wanted and can be.

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


class Recorded:
    """The same as a function of nested tensors and numbers, replayed where the shapes and numbers have been seen
    before.

    `recording()` and `replaying()` are entered around that, as Python between two steps wants to know. Where a function
    can't be recorded (its code looks at values, say, or computes on the CPU), it warns once, and calls it as it is.
    """

    def __init__(
        self,
        function: Callable[..., Result],
        recorder: GraphRecorder,
        recording: Callable[[], AbstractContextManager[Any]],
        replaying: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self.function, self.recorder = function, recorder
        self.recording, self.replaying = recording, replaying
        self.seen: dict[Hashable, int] = {}
        self.replays: dict[Hashable, _Replay] = {}
        self.works = True

    def __call__(self, *arguments: Any) -> Any:
        leaves, structure = tree_flatten(arguments)
        if not self.works or not all(isinstance(leaf, Tensor | int | float) for leaf in leaves):
            return self.recorder.warm_up(lambda: self.function(*arguments))
        shapes = _shapes(leaves, structure)
        self.seen[shapes] = self.seen.get(shapes, 0) + 1
        if shapes not in self.replays and self.seen[shapes] > WARM_UP and len(self.replays) < MOST:
            self._record(shapes, leaves, structure)
        if shapes not in self.replays:
            return self.recorder.warm_up(lambda: self.function(*arguments))
        with self.replaying():
            return self.replays[shapes](leaves)

    def _record(self, shapes: Hashable, leaves: list[Any], structure: TreeSpec) -> None:
        try:
            with self.recording():
                self.replays[shapes] = _Replay(self.function, leaves, structure, self.recorder)
        except (RuntimeError, NotImplementedError) as error:
            self.works = False
            reason = str(error).strip().partition("\n")[0]
            warnings.warn(f"trains without a CUDA graph, as this network can't be recorded: {reason}", stacklevel=2)


class _Replay:
    """What was recorded for arguments of one shape."""

    def __init__(
        self, function: Callable[..., Any], leaves: list[Any], structure: TreeSpec, recorder: GraphRecorder
    ) -> None:
        self.inputs = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self.results, self.replay = recorder.record(lambda: function(*tree_unflatten(self.inputs, structure)))

    def __call__(self, leaves: list[Any]) -> Any:
        for static, leaf in zip(self.inputs, leaves):
            if isinstance(leaf, Tensor):
                static.copy_(leaf, non_blocking=True)
        self.replay()
        return tree_map(_cloned, self.results)  # the next replay writes over them


def _cloned(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) else leaf


def _shapes(leaves: list[Any], structure: TreeSpec) -> Hashable:
    return str(structure), *(
        (leaf.shape, leaf.stride(), leaf.dtype) if isinstance(leaf, Tensor) else leaf for leaf in leaves
    )
