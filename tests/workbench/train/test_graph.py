"""Recorded passes train as passes that aren't: through a recorder for the CPU that executes nothing while it records,
and then what it recorded on the same tensors, as a CUDA graph does."""

import itertools
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from slim.errors import SlimError
from slim.workbench.config import ComputeConfig, OptimConfig, SparsityConfig
from slim.workbench.data import Dataset, batches, epoch
from slim.workbench.train import fit, loop, step
from slim.workbench.train.graph import MOST, WARM_UP, CudaGraphRecorder, Recorded, graph_recorder_for
from slim.workbench.train.snapshots import Snapshots

ON_CPU = ComputeConfig(device="cpu", precision="32-true", channels_last=False)
Calls = list[tuple[Any, Any, Any, Any]]


class Recording(TorchDispatchMode):
    """Every operator that runs, with its arguments and results, and what it wrote over."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Calls = []
        self.before: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.lift_fresh.default):
            raise RuntimeError("operation not permitted when stream is capturing\nand more lines")
        if writes(func) or func is torch.ops.aten.native_batch_norm.default:  # which doesn't say so
            for tensor in tree_leaves((args, kwargs)):
                if isinstance(tensor, Tensor) and id(tensor) not in self.before:
                    self.before[id(tensor)] = tensor, tensor.detach().clone()
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        return out

    def undo(self) -> None:
        for tensor, before in self.before.values():
            tensor.detach().copy_(before)


def writes(func: Any) -> bool:
    return any(argument.alias_info and argument.alias_info.is_write for argument in func._schema.arguments)


class CpuRecorder:
    """A CUDA graph's stand-in. It undoes what recording changed, since a graph's recording doesn't run, and refuses
    what a graph can't hold: values that Python looks at, and data from Python."""

    def __init__(self) -> None:
        self.recorded = self.replayed = self.warmed = 0

    def warm_up(self, function: Callable[[], Any]) -> Any:
        self.warmed += 1
        return function()

    def record(self, function: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        recording = Recording()
        try:
            with torch.random.fork_rng(), recording:
                result = function()
        finally:
            recording.undo()
        self.recorded += 1
        return result, lambda: self._replay(recording.calls)

    @torch.no_grad()
    def _replay(self, calls: Calls) -> None:
        self.replayed += 1
        for func, args, kwargs, out in calls:
            aliases = any(argument.alias_info for argument in func._schema.arguments)
            if aliases and not writes(func):
                continue  # a view: it shows what is there
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(out), tree_leaves(again)):
                if isinstance(old, Tensor) and not writes(func):
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
    """The recorders that trainings used from here on, whose optimizers work as on a GPU."""
    made: list[CpuRecorder] = []

    def recorder(wanted: Any, fabric: Any, sparsity: Any) -> CpuRecorder | None:
        if wanted is False:
            return None
        made.append(CpuRecorder())
        return made[-1]

    monkeypatch.setattr(step, "graph_recorder_for", recorder)
    monkeypatch.setattr(loop, "fuses", lambda fabric: True)
    return made


def trained(digits: Dataset, graph: bool, sparsity: SparsityConfig | None = None, **optim: Any) -> nn.Module:
    model = network()
    compute = replace(ON_CPU, graph=graph)
    fit(model, digits, OptimConfig(**{"epochs": 13, "lr": 0.05, **optim}), compute=compute, sparsity=sparsity)
    return model


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(a.state_dict()[name], tensor) for name, tensor in b.state_dict().items())


SETTINGS: list[tuple[SparsityConfig | None, dict[str, Any]]] = [
    (None, {}),
    (SparsityConfig(strength=1e-3), {"clip_norm": 1.0}),
    (SparsityConfig(strength=1e-3, method="proximal", target=0.4), {"ema": 0.9}),
    (SparsityConfig(strength=1e-3, method="proximal", schedule="ramp"), {"optimizer": "adamw", "lr": 1e-3}),
    (SparsityConfig(strength=1e-3, schedule="warmup", penalty="group_lasso"), {"nesterov": False}),
    (SparsityConfig(strength=1e-3, method="proximal", penalty="lp", penalty_kwargs={"p": 0.5}), {"momentum": 0.0}),
    (None, {"optimizer": "adamw", "lr": 1e-3, "mixup": 0.2}),
    (None, {"epochs": 13, "label_smoothing": 0.1}),
]


def agree(models: Sequence[nn.Module], relative: float = 1e-3, absolute: float = 1e-5) -> None:
    for a, b in zip(*(model.state_dict().values() for model in models), strict=True):
        torch.testing.assert_close(a, b, rtol=relative, atol=absolute)


@pytest.mark.parametrize(("sparsity", "optim"), SETTINGS)
def test_a_hundred_replayed_steps_give_the_same_weights(
    digits: Dataset, recorders: list[CpuRecorder], sparsity: SparsityConfig | None, optim: dict[str, Any]
) -> None:
    replayed, plain = (trained(digits, graph, sparsity, **optim) for graph in (True, False))
    if optim.get("optimizer") == "adamw" or (sparsity and sparsity.method == "proximal"):
        agree([replayed, plain])  # rates and λ are in float32 there
    else:
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


def test_a_recording_that_fails_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    generator, done = Mock(), Mock()
    cuda: dict[str, Any] = {
        "CUDAGraph": Mock(),
        "graph_pool_handle": lambda: "pool",
        "current_stream": lambda: "before",
    }
    cuda |= {"Stream": Mock(return_value=Mock(device_index=1)), "default_generators": [None, generator]}
    cuda |= {"set_stream": done.set_stream, "graph": lambda *_, **__: nullcontext()}
    for name, stand_in in cuda.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", done.end, raising=False)
    done.end.side_effect = RuntimeError("not recording")  # a version of torch that has done so
    recorder = CudaGraphRecorder(torch.device("cuda", 1))

    def looks_at_values() -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(RuntimeError, match="not permitted"):
        recorder.record(looks_at_values)
    done.set_stream.assert_called_once_with("before")
    done.end.assert_called_once_with(1, "pool")
    generator.graphsafe_set_state.assert_called_once_with(generator.clone_state())
    assert recorder.record(lambda: 3)[0] == 3 and done.set_stream.call_count == 1


def test_shapes_and_numbers_are_recorded_apart_and_not_without_end() -> None:
    total = torch.zeros(3)

    def function(inputs: Tensor, times: int) -> tuple[Tensor, int]:
        total.add_(inputs.sum(0))
        return total * times, times

    recorder = CpuRecorder()
    recorded = Recorded(function, recorder, nullcontext, nullcontext)
    truth = torch.zeros(3)
    for _ in range(2 * WARM_UP):
        for size, times in itertools.product(range(1, MOST + 1), (2, 3)):
            inputs = torch.randn(size, 3)
            truth += inputs.sum(0)
            found, number = recorded(inputs, times)
            assert torch.equal(total, truth) and torch.equal(found, truth * times) and number == times
    assert recorder.recorded == MOST and recorder.replayed == MOST * WARM_UP


def test_a_batch_cut_into_parts_is_one_recorded_step(digits: Dataset, recorders: list[CpuRecorder]) -> None:
    ends = []
    for graph in (True, False):
        model = network()
        compute = replace(ON_CPU, graph=graph, accumulate=2)
        fit(model, digits, OptimConfig(epochs=2, lr=0.05), compute=compute, sparsity=SparsityConfig(strength=1e-3))
        ends.append(model)
    assert same(*ends) and recorders[0].replayed == 2 * 8 - WARM_UP


def test_images_changed_together_are_the_same(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    ways = []
    augmented = replace(digits, augment="crop+flip+trivialaugment+cutout")
    for count in (1, 3, 100):
        monkeypatch.setattr(epoch, "_at_once", lambda *_, count=count: count)
        ways.append(list(batches(augmented.train, augmented, 64, shuffle_seed=5, augment=True, start=2)))
    for way in ways[1:]:
        for (images, labels), (these, those) in zip(ways[0], way, strict=True):
            assert torch.equal(images, these) and torch.equal(labels, those)


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


ON_GPU = ComputeConfig(device="cuda", precision="32-true", deterministic=True)
on_a_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def on_both_ways(data: Any, sparsity: SparsityConfig | None = None, **optim: Any) -> list[nn.Module]:
    """A network trained on a GPU by recorded steps, and by others; where a step can't be recorded, that fails."""
    ends: list[nn.Module] = []
    for graph in (True, False):
        model = network()
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "trains without a CUDA graph")
            settings = OptimConfig(**{"epochs": 5, "lr": 0.02, **optim})
            fit(model, data, settings, compute=replace(ON_GPU, graph=graph), sparsity=sparsity)
        ends.append(model)
    return ends


class TestOnAGpu:
    pytestmark = on_a_gpu

    @pytest.mark.parametrize(("sparsity", "optim"), SETTINGS)
    def test_replayed_steps_train_as_others(
        self, digits: Dataset, sparsity: SparsityConfig | None, optim: dict[str, Any]
    ) -> None:
        agree(on_both_ways(digits, sparsity, **(optim | {"epochs": 5})), relative=0.01, absolute=1e-3)

    def test_channels_that_go_on_the_way(self, digits: Dataset) -> None:
        ends = on_both_ways(digits, SparsityConfig(strength=1e-3, gradual=3), epochs=8)
        agree(ends, relative=0.05, absolute=5e-3)
        assert sum(p.numel() for p in ends[0].parameters()) < sum(p.numel() for p in network().parameters())

    def test_batches_of_several_sizes(self) -> None:
        torch.manual_seed(0)
        sizes = [16, 16, 7, 16, 16, 16, 7, 16] * 4
        loader = [(torch.randn(size, 1, 8, 8), torch.randint(10, (size,))) for size in sizes]
        agree(on_both_ways(loader, epochs=3), relative=0.01, absolute=1e-3)

    def test_in_parts(self, digits: Dataset) -> None:
        ends: list[nn.Module] = []
        for graph in (True, False):
            ends.append(network())
            fit(ends[-1], digits, OptimConfig(epochs=3, lr=0.02), compute=replace(ON_GPU, graph=graph, accumulate=2))
        agree(ends, relative=0.01, absolute=1e-3)

    def test_a_network_that_looks_at_values_trains_without(self, digits: Dataset) -> None:
        ends: list[nn.Module] = []
        for graph in (True, False):
            ends.append(LooksAtValues(*network()))
            with pytest.warns(UserWarning, match="without a CUDA graph") if graph else nullcontext():
                fit(ends[-1], digits, OptimConfig(epochs=3, lr=0.02), compute=replace(ON_GPU, graph=graph))
        agree(ends, relative=0.01, absolute=1e-3)

    def test_a_loss_that_is_not_finite_is_named_with_its_step(self, digits: Dataset) -> None:
        with pytest.raises(SlimError, match=r"training loss is (nan|inf) at step \d+"):
            fit(network(), digits, OptimConfig(epochs=5, lr=1e30, warmup=0.0), compute=ON_GPU)

    def test_half_precision_learns(self, digits: Dataset) -> None:
        model = network()
        compute = ComputeConfig(device="cuda", precision="bf16-mixed")
        records = fit(model, digits, OptimConfig(epochs=10, lr=0.05, ema=0.9), compute=compute)
        assert records[-1]["train_accuracy"] > 0.6 and records[-1]["waiting_seconds"] < records[-1]["seconds"]
