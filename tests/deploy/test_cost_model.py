"""The cost model: sums of operators, measured once, in onnxruntime or on a made-up machine."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from deploy.made_up import MadeUp, synthetic
from networks import ZOO, randomise

import slim
from slim.deploy import timing
from slim.deploy.cost import model
from slim.deploy.onnx.kernel_graph import KernelGraph
from slim.deploy.target import Kernel, SizedKernel
from slim.trace.traced import trace
from slim.workbench.models import build

X = torch.randn(1, 3, 32, 32)


ONE_THREAD = slim.OnnxRuntime("cpu", 1)


def test_cost_model_sums_what_the_operators_take() -> None:
    net = randomise(torchvision.models.resnet18())
    traced = trace(net, X)
    found = model.latency_model(traced, MadeUp(), 4)
    assert {s.widths for o, s in zip(found.operators, found.surfaces) if o.kernel.kind == "conv"} == {(16, 8)}
    whole = np.ones(len(traced.classes), bool)
    for share in (1.0, 0.7, 0.3, 0.02):
        some = np.random.default_rng(0).random(len(whole)) < share
        each = [float(surface(*o.counts(some))) for o, surface in zip(found.operators, found.surfaces)]
        assert found.of(some) == pytest.approx(sum(each), rel=1e-12)
    truth = sum(synthetic(o.kernel, *o.counts(whole)) for o in found.operators)
    assert found.of(whole) == pytest.approx(truth, rel=0.05)  # what takes long is measured on one image
    single = model.latency_model(traced, MadeUp())
    assert single.of(whole) == pytest.approx(sum(synthetic(o.kernel, *o.counts(whole)) for o in single.operators))
    plan = slim.plan(net, X, ratio=0.5, round_to=16)
    thin = model.latency_model(trace(plan.apply(net), X), MadeUp(), 4)
    kept = ~np.isin(
        traced.classes.roots(np.arange(len(whole))),
        np.concatenate([traced.classes.roots(traced.norms[bn][gone]) for bn, gone in plan.removed.items()]),
    )
    assert found.of(kept) == pytest.approx(thin.of(np.ones(10**6, bool)), rel=0.02)


def test_times_are_measured_once_for_each_target() -> None:
    traced = trace(build("slim:vgg7", num_classes=10), X)
    first, again, other, broken = MadeUp(), MadeUp(), MadeUp("another one"), MadeUp()
    a, b = model.latency_model(traced, first), model.latency_model(traced, again)
    whole = np.ones(len(traced.classes), bool)
    assert first.asked and not again.asked and a.of(whole) == b.of(whole)
    assert len(set(first.asked)) == len(first.asked)
    model.latency_model(traced, other)
    assert len(other.asked) == len(first.asked)
    [file] = [file for file in model.cache_folder().iterdir() if '"made up"' in file.read_text()]
    file.write_text('{"identity"')
    model.latency_model(traced, broken)
    assert len(broken.asked) == len(first.asked)  # a broken file counts as none


def test_a_target_is_another_with_other_threads_and_on_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    identities = {slim.OnnxRuntime("cpu", threads).identity for threads in (1, 2)}
    monkeypatch.setattr("slim.deploy.onnx.target.machine", lambda: "another one")
    identities.add(slim.OnnxRuntime("cpu", 1).identity)
    assert len(identities) == 3 and "1 threads" in min(identities)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("NVIDIA H100 80GB HBM3, 570.86.15\n", "NVIDIA H100 80GB HBM3, driver 570.86.15"),
        ("B, 1.0\nA, 1.0\nB, 1.0\n", "A, B, driver 1.0"),
        ("No devices were found\n", ""),
        (None, ""),
    ],
)
def test_a_target_on_a_gpu_names_it(
    said: str | None, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if said is not None:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\nprintf '{said}'\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin" if said else str(tmp_path))
    timing.gpu.cache_clear()
    assert timing.gpu() == expected
    target = slim.OnnxRuntime("cpu", 1)
    assert expected == "" or expected not in target.identity
    object.__setattr__(target, "provider", "CUDAExecutionProvider")
    assert target.identity.endswith(expected)
    timing.gpu.cache_clear()


def test_an_interrupted_measurement_goes_on() -> None:
    traced = trace(build("slim:vgg7", num_classes=10), X)
    whole, cut, rest = MadeUp("whole"), MadeUp(batch_of_kernels=25, stop_after=50), MadeUp()
    model.latency_model(traced, whole)
    with pytest.raises(KeyboardInterrupt):
        model.latency_model(traced, cut)
    model.latency_model(traced, rest)
    assert set(cut.asked) | set(rest.asked) == set(whole.asked) and not set(cut.asked) & set(rest.asked)


WINDOW = ((3, 3), (2, 2), (1, 1), (1, 1))


def test_onnxruntime_times_every_kind_of_kernel() -> None:
    tail = (("BatchNormalization", ""), ("Add", "same"), ("Silu", ""))
    kernels = [
        (Kernel("conv", (2, 16, 16), WINDOW, 1, tail), 16, 32),
        (Kernel("conv", (2, 16, 16), WINDOW, 4), 8, 32),
        (Kernel("conv", (2, 16), ((3,), (1,), (1,), (1,)), 1, (("Relu", ""),)), 8, 16),
        (Kernel("conv", (1, 4, 8, 8), ((3,) * 3, (1,) * 3, (1,) * 3, (1,) * 3), 1, (("Clip", ""),)), 4, 16),
        (Kernel("conv_transpose", (2, 8, 8), WINDOW, 1, (("Relu", ""),)), 16, 8),
        (Kernel("conv", (2, 16, 16), WINDOW, whole=8), 4, 24),
        (Kernel("conv_transpose", (2, 8, 8), WINDOW, whole=4), 12, 8),
        (Kernel("depthwise", (2, 16, 16), WINDOW, 2, (("HardSwish", ""), ("Mul", "channel"))), 8, 32),
        (Kernel("gemm", (2,), (), 1, (("Relu", ""),)), 64, 32),
        (Kernel("MaxPool", (2, 16, 16), WINDOW), 16, 16),
        (Kernel("AveragePool", (2, 16, 16), ((2, 2), (2, 2), (0, 0), (1, 1))), 16, 16),
        (Kernel("ReduceMean", (2, 16, 16)), 16, 16),
        (Kernel("Concat", (2, 64)), 32, 32),
        (Kernel("Resize-nearest", (2, 16, 16), ((2, 2),)), 16, 16),
        (Kernel("Resize-linear", (2, 7, 8), ((2, 3),), 1, (("Relu", ""),)), 16, 16),
        (Kernel("Resize-cubic", (1, 8, 8), ((4, 4),)), 8, 8),
        (Kernel("Copy", (2, 4096)), 32, 32),
        (Kernel("Copy", (2, 4096), (), 1, (("Mul", "same"), ("Add", ""), ("Gelu", ""), ("Sigmoid", ""))), 32, 32),
    ]
    for op in ("HardSigmoid", "Tanh", "LeakyRelu", "Elu", "Mish"):
        kernels.append((Kernel("Copy", (2, 4096), (), 1, ((op, ""),)), 32, 32))
    batches = list(ONE_THREAD.time(kernels))
    times = dict(itertools.chain.from_iterable(batches))
    assert set(times) == set(kernels) and all(0 < ms < 50 for ms in times.values())
    graph = KernelGraph()
    for index, each in enumerate(kernels):
        graph.add(index, each)
    assert b"k0_" in graph.serialized()


@pytest.mark.parametrize("name", ["grouped", "depthwise with multiplier", "squeeze-excite", "shuffle", "transposed"])
def test_cost_model_of_unlike_networks(name: str) -> None:
    """Every size on the grid is one that onnxruntime runs."""
    traced = trace(randomise(ZOO[name]()), X)
    found = model.latency_model(traced, ONE_THREAD)
    assert 0 < found.of(np.ones(len(traced.classes), bool)) < 1000


def test_more_work_takes_more_time() -> None:
    few, many = (Kernel("conv", (1, 28, 28), ((3, 3), (1, 1), (1, 1), (1, 1))), 32, 32), None
    many = (few[0], 128, 128)
    times = dict(itertools.chain.from_iterable(ONE_THREAD.time([few, many])))
    assert times[many] > 4 * times[few]  # 16 times the arithmetic


@dataclass
class Slow(MadeUp):
    """A machine on which each kernel takes its time to be measured, by a clock of its own."""

    seconds_each: float = 0.0
    seconds: float = 0.0

    def time(self, kernels: Sequence[SizedKernel]) -> Iterator[list[tuple[SizedKernel, float]]]:
        for batch in super().time(kernels):
            self.seconds += self.seconds_each * len(batch)
            yield batch


@pytest.mark.parametrize("seconds_each, finest", [(0.0, True), (0.01, True), (0.05, False)])
def test_measuring_ends_in_time(seconds_each: float, finest: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A coarser grid, where the finer one would take longer than the 20 s; its predictions stay near the truth."""
    traced = trace(randomise(torchvision.models.resnet18()), X)
    machine, patient = Slow(seconds_each=seconds_each, batch_of_kernels=64), MadeUp("patient")
    monkeypatch.setattr(model.time, "monotonic", lambda: machine.seconds)
    found, whole = model.latency_model(traced, machine), model.latency_model(traced, patient)
    probes = 3 * len(model.PROBED) * seconds_each
    assert machine.seconds - probes <= model.SECONDS
    assert (len(machine.asked) == len(patient.asked)) == finest
    kept = np.random.default_rng(0).random(len(traced.classes)) < 0.6
    assert found.of(kept) == pytest.approx(whole.of(kept), rel=1e-9 if finest else 0.1)


def test_a_bar_shows_only_where_it_takes_long(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as in a terminal
    for seconds_each, shown in [(0.0, False), (1.0, True)]:
        machine = Slow(f"{seconds_each} s each", batch_of_kernels=4, seconds_each=seconds_each)
        monkeypatch.setattr(model.time, "monotonic", lambda machine=machine: machine.seconds)
        model.TimeTable(machine).measure((Kernel("gemm", (1,)), 8, makes) for makes in range(1, 20))
        assert ("timing 19 operators" in capsys.readouterr().err) == shown
