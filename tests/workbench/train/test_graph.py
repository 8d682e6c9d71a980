"""Recorded passes train as passes that aren't: through a recorder for the CPU that executes nothing while it records,
and then what it recorded on the same tensors, as a CUDA graph does."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from slim.errors import SlimError
from slim.workbench.config import ComputeConfig, OptimConfig, SparsityConfig
from slim.workbench.data import Dataset
from slim.workbench.train import fit, step
from slim.workbench.train.graph import MOST, WARM_UP, GraphedPasses, graph_recorder_for
from slim.workbench.train.snapshots import Snapshots

ON_CPU = ComputeConfig(device="cpu", precision="32-true", channels_last=False)
Calls = list[tuple[Any, Any, Any, Any]]


class Recording(TorchDispatchMode):
    """Every operator that runs, with its arguments and results."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Calls = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing\nand more lines")
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        return out


class CpuRecorder:
    """A CUDA graph's stand-in. It undoes what recording changed in the model, since a graph's recording doesn't run."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.recorded = self.replayed = self.warmed = 0

    def warm_up(self, function: Callable[[], Any]) -> Any:
        self.warmed += 1
        return function()

    def record(self, function: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        before = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        with torch.random.fork_rng(), Recording() as recording:
            result = function()
        for name, tensor in self.model.state_dict().items():
            tensor.copy_(before[name])
        self.recorded += 1
        return result, lambda: self._replay(recording.calls)

    @torch.no_grad()
    def _replay(self, calls: Calls) -> None:
        self.replayed += 1
        for func, args, kwargs, out in calls:
            arguments = func._schema.arguments
            writes = any(argument.alias_info and argument.alias_info.is_write for argument in arguments)
            if any(argument.alias_info for argument in arguments) and not writes:
                continue  # a view: it shows what is there
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(out), tree_leaves(again)):
                if isinstance(old, Tensor) and not writes:
                    old.copy_(new)


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 12, 3, bias=False), nn.BatchNorm2d(12), nn.ReLU()),
        *(nn.Flatten(), nn.Dropout(0.3), nn.Linear(12, 10)),
    )


@pytest.fixture
def recorders(monkeypatch: pytest.MonkeyPatch) -> list[CpuRecorder]:
    """The recorders that trainings used from here on."""
    made: list[CpuRecorder] = []

    made_for: list[nn.Module] = []

    def recorder(wanted: Any, fabric: Any, sparsity: Any) -> CpuRecorder | None:
        if wanted is False:
            return None
        made.append(CpuRecorder(made_for[0]))
        return made[-1]

    set_up = step.Step.set_up

    def known(self: step.Step) -> None:
        made_for[:] = [self.state.model]
        set_up(self)

    monkeypatch.setattr(step, "graph_recorder_for", recorder)
    monkeypatch.setattr(step.Step, "set_up", known)
    return made


def trained(digits: Dataset, graph: bool, sparsity: SparsityConfig | None = None, **optim: Any) -> nn.Module:
    model = network()
    compute = replace(ON_CPU, graph=graph)
    fit(model, digits, OptimConfig(**{"epochs": 13, "lr": 0.05, **optim}), compute=compute, sparsity=sparsity)
    return model


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(a.state_dict()[name], tensor) for name, tensor in b.state_dict().items())


@pytest.mark.parametrize(
    ("sparsity", "optim"),
    [
        (None, {}),
        (SparsityConfig(strength=1e-3), {"clip_norm": 1.0}),
        (SparsityConfig(strength=1e-3, method="proximal", target=0.4), {"ema": 0.9}),
        (None, {"optimizer": "adamw", "lr": 1e-3, "mixup": 0.2}),
        (None, {"epochs": 13, "label_smoothing": 0.1}),
    ],
)
def test_a_hundred_replayed_steps_give_the_same_bits(
    digits: Dataset, recorders: list[CpuRecorder], sparsity: SparsityConfig | None, optim: dict[str, Any]
) -> None:
    replayed, plain = (trained(digits, graph, sparsity, **optim) for graph in (True, False))
    assert same(replayed, plain)
    [recorder] = recorders
    assert recorder.recorded == 1 and recorder.warmed == WARM_UP and recorder.replayed == 13 * 8 - WARM_UP


def test_it_is_recorded_anew_when_channels_have_gone(digits: Dataset, recorders: list[CpuRecorder]) -> None:
    gradual = SparsityConfig(strength=1e-3, gradual=3)
    replayed, plain = (trained(digits, graph, gradual, epochs=8) for graph in (True, False))
    assert same(replayed, plain)
    assert len(recorders) > 1 and all(recorder.recorded == 1 for recorder in recorders)


def test_a_training_that_is_resumed_goes_on_alike(
    digits: Dataset, recorders: list[CpuRecorder], tmp_path: Path
) -> None:
    optim = OptimConfig(epochs=4, lr=0.05, schedule="constant", warmup=0.0)
    resumed, whole = network(), network()
    for epochs in (2, 4):
        snapshots = Snapshots(tmp_path / "state", {}, resume=epochs == 4)
        fit(resumed, digits, replace(optim, epochs=epochs), compute=ON_CPU, snapshots=snapshots)
    fit(whole, digits, optim, compute=ON_CPU)
    assert same(resumed, whole) and [recorder.recorded for recorder in recorders] == [1, 1, 1]


class LooksAtValues(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum().item() < 1e9 else super().forward(-x)


def test_a_network_that_cannot_be_recorded_trains_without(digits: Dataset, recorders: list[CpuRecorder]) -> None:
    ends = []
    for graph in (True, False):
        model = LooksAtValues(*network())
        compute = ComputeConfig(device="cpu", precision="32-true", channels_last=False, graph=graph)
        if graph:
            with pytest.warns(
                UserWarning, match="without a CUDA graph.*not permitted when stream is capturing$"
            ) as told:
                fit(model, digits, OptimConfig(epochs=2), compute=compute)
            assert len([w for w in told if "CUDA graph" in str(w.message)]) == 1
        else:
            fit(model, digits, OptimConfig(epochs=2), compute=compute)
        ends.append(model)
    assert same(*ends) and recorders[0].replayed == 0


def test_shapes_are_recorded_apart_and_not_without_end() -> None:
    model = nn.Linear(3, 2)

    def passes(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        loss = (model(inputs) - targets).square().mean()
        loss.backward()
        return loss.detach(), targets.sum(0)

    recorder = CpuRecorder(model)
    graphed = GraphedPasses(passes, list(model.parameters()), recorder)
    for round_number in range(2 * WARM_UP):
        for size in range(1, MOST + 3):
            inputs, targets = torch.randn(size, 3), torch.randn(size, 2)
            model.zero_grad()
            found = *graphed(inputs, targets), model.weight.grad
            model.zero_grad()
            truth = *passes(inputs, targets), model.weight.grad
            assert all(torch.equal(a, b) for a, b in zip(found, truth)), (round_number, size)  # type: ignore[arg-type]
    assert recorder.recorded == MOST


@pytest.mark.parametrize(
    ("device", "world_size", "precision", "method", "part"),
    [
        ("cpu", 1, "32-true", "subgradient", "the device is cpu"),
        ("cuda", 2, "32-true", "subgradient", "several processes"),
        ("cuda", 1, "16-mixed", "subgradient", "16-mixed"),
        ("cuda", 1, "32-true", "loss", "method 'loss'"),
    ],
)
def test_where_it_cannot_be(device: str, world_size: int, precision: str, method: str, part: str) -> None:
    fabric: Any = SimpleNamespace(
        device=torch.device(device), world_size=world_size, _precision=SimpleNamespace(precision=precision)
    )
    sparsity: Any = SimpleNamespace(method=method)
    assert graph_recorder_for("auto", fabric, sparsity) is None and graph_recorder_for(False, fabric, sparsity) is None
    with pytest.raises(SlimError, match=part):
        graph_recorder_for(True, fabric, sparsity)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_replays_what_it_computes(digits: Dataset) -> None:
    ends = []
    for graph in (True, False):
        model = network()
        compute = ComputeConfig(device="cuda", precision="32-true", graph=graph, deterministic=True)
        fit(model, digits, OptimConfig(epochs=13, lr=0.05), compute=compute, sparsity=SparsityConfig(strength=1e-3))
        ends.append(model)
    for a, b in zip(*(model.state_dict().values() for model in ends)):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
