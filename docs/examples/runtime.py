"""A runtime of one's own: eager PyTorch on one thread, as slim's cost model and benchmarks know a runtime."""

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import slim
from slim.deploy.target import BatchUnit, FileInput, SizedKernel


class Eager:
    """A `slim.deploy.target.Target`."""

    suffix = ".pt2"
    identity = f"torch {torch.__version__}, eager, 1 thread"  # all that a measured time depends on

    def export(self, model: nn.Module, example_inputs: Tensor, path: Path) -> None:
        batch = {0: torch.export.Dim("batch")}
        program = torch.export.export(model, (example_inputs.repeat(2, 1, 1, 1),), dynamic_shapes=(batch,))
        torch.export.save(program, path)

    def check(self, file: Path, model: nn.Module, example_inputs: Tensor) -> float:
        theirs = self.open(file).run({"x": example_inputs.numpy()})[0]
        ours = model(example_inputs).detach().numpy()
        return float(np.abs(theirs - ours).max() / np.abs(ours).max())

    def open(self, file: Path) -> "EagerFile":
        return EagerFile(file)

    def time(self, kernels: Sequence[SizedKernel]) -> Iterable[list[tuple[SizedKernel, float]]]:
        for each in kernels:
            yield [(each, milliseconds(call_of(*each)))]

    def __str__(self) -> str:
        return "eager PyTorch"


class EagerFile:
    """A `slim.deploy.target.Executable`."""

    provider, batch, metadata = "eager", BatchUnit(), dict[str, str]()

    def __init__(self, file: Path) -> None:
        self.module = torch.export.load(file).module()
        self.inputs = [FileInput("x", ("batch", None, None, None), "float32")]

    def run(self, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        return [self.module(torch.from_numpy(feed["x"])).detach().numpy()]

    def timed_call(self, feed: dict[str, np.ndarray]) -> Callable[[], Tensor]:
        x = torch.from_numpy(feed["x"])
        return lambda: self.module(x)

    def profile(self, feed: dict[str, np.ndarray], runs: int, warmup: int) -> list:
        return []


def call_of(kernel, reads: int, makes: int) -> Callable[[], Tensor]:
    """One operator with so many channels, on random numbers."""
    batch, *space = kernel.shape
    if kernel.kind == "gemm":
        x, w = torch.randn(batch, reads), torch.randn(makes, reads)
        return lambda: F.linear(x, w)
    if kernel.kind in ("conv", "depthwise"):
        size, stride, padding, dilation = kernel.window
        groups = makes // kernel.groups if kernel.kind == "depthwise" else kernel.group_count(reads, makes)
        x = torch.randn(batch, (makes // kernel.groups) if kernel.kind == "depthwise" else reads * groups, *space)
        w = torch.randn(makes, x.shape[1] // groups, *size)
        return lambda: F.conv2d(x, w, None, stride, padding, dilation, groups)
    x = torch.randn(makes, *kernel.shape)  # whatever else works channel by channel takes a pass over memory
    return lambda: x * 1.0


def milliseconds(call: Callable[[], Tensor], runs: int = 7) -> float:
    taken = []
    for _ in range(runs):
        start = time.perf_counter()
        call()
        taken.append(1000 * (time.perf_counter() - start))
    return median(taken)


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.BatchNorm2d(64), nn.ReLU()]
    net = nn.Sequential(*layers, nn.Conv2d(64, 4, 1)).eval()
    for layer in (net[1], net[4]):
        nn.init.uniform_(layer.weight)
    x = torch.randn(1, 3, 32, 32)
    plan = slim.plan(net, x, slim.Flops(0.5), round_to=slim.Runtime(Eager()))  # widths that suit it
    print(plan)
    thin = plan.apply(net)
    Eager().export(thin, x, Path("thin.pt2"))
    print(f"exported, {Eager().check(Path('thin.pt2'), thin, x):.1e} from the network")
