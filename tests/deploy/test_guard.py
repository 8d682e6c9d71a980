"""A thin network is timed against the original in each setting, and another plan takes its place where it is slower."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from deploy.made_up import WHOLE, MadeUp, MadeUpFile, synthetic
from networks import randomise
from torch import nn

import slim
from slim.deploy import guard, timing
from slim.deploy.cost.operators import operators
from slim.deploy.target import InputArrays, NodeTime
from slim.trace.traced import trace
from slim.workbench.models import build

X = torch.randn(1, 3, 32, 32)


@dataclass
class Blocked(MadeUp):
    """A machine that takes ten times as long for what is no multiple of `width` channels, in batches of 8 and more."""

    width: int = 16
    from_batch: int = 8

    def nodes(self, model: nn.Module, example_inputs: Any, batch_size: int) -> list[float]:
        found = operators(trace(model, example_inputs), batch_size)
        off = [batch_size >= self.from_batch and each.counts(WHOLE)[1] % self.width > 0 for each in found]
        return [(1 + 9 * slow) * synthetic(each.kernel, *each.counts(WHOLE)) for each, slow in zip(found, off)]

    def ms(self, model: nn.Module, example_inputs: Any, batch_size: int = 1) -> float:
        return sum(self.nodes(model, example_inputs, batch_size))

    def open(self, file: Path) -> "BlockedFile":
        return BlockedFile(self, *self.networks[int(file.read_text())])


class BlockedFile(MadeUpFile):
    machine: Blocked

    def profile(self, feed: InputArrays, runs: int, warmup: int) -> list[NodeTime]:
        times = self.machine.nodes(self.model, self.example, len(feed["images"]))
        return [NodeTime(f"node {i}", "Conv", ms, ms / sum(times)) for i, ms in enumerate(times)]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Blocked]:
    """Makes a machine of a width, whose clock is the only one."""

    def make(width: int) -> Blocked:
        made = Blocked(width=width)
        monkeypatch.setattr(timing.time, "perf_counter_ns", lambda: made.ns)
        return made

    return make


def network() -> nn.Module:
    net = randomise(build("slim:vgg7", num_classes=16, in_channels=3))
    for conv in (module for module in net.modules() if isinstance(module, nn.Conv2d)):
        conv.weight.data *= 2
    return net.eval()


@pytest.mark.parametrize("width, tried, kept", [(1, 1, None), (8, 2, 8), (16, 3, 16), (64, 3, 16)])
def test_the_first_plan_that_is_slower_nowhere_is_kept(
    machine: Callable[[int], Blocked], width: int, tried: int, kept: int | None
) -> None:
    target, net = machine(width), network()
    settings = slim.Runtimes([slim.Runtime(target, 1), slim.Runtime(target, 8)])
    ways: list[int] = [1, 8, 16]
    plans = [slim.plan(net, X, ratio=0.3, round_to=step) for step in ways]
    found = guard.never_slower(iter(plans), guard.against(net, X, settings))
    assert found.tried == tried
    for each, batch in zip(found.compared, (1, 8), strict=True):
        truth = target.ms(net, X, batch) / target.ms(found.plan.apply(net), X, batch)
        assert each.low == each.high == pytest.approx(each.speedup) == pytest.approx(truth, rel=1e-3)
        assert each.setting == f"the made-up machine, batch {batch}"
    if width < 64:
        assert not found.slower and (kept is None or all(layer.after % kept == 0 for layer in found.plan.layers))
    else:  # none is faster: the one that is least slow, and what is slow in it
        assert [each.setting for each in found.slower] == ["the made-up machine, batch 8"]
        worst = [target.ms(plan.apply(net), X, 8) for plan in plans]
        assert found.plan is plans[int(np.argmin(worst))]
        before, after = (target.nodes(each, X, 8) for each in (net, found.plan.apply(net)))
        node = int(np.argmax(np.subtract(after, before)))
        assert f"node {node} takes {after[node]:.3g} ms, {before[node]:.3g} before" in str(found.slower[0])


def test_files_are_compared_in_the_settings_whose_batch_they_take(tmp_path: Path) -> None:
    net = network()
    plan = slim.plan(net, X, ratio=0.6)
    for name, each in (("whole", net), ("thin", plan.apply(net))):
        slim.export_onnx(each, X, tmp_path / f"{name}.onnx", batch=4)
    target = slim.OnnxRuntime("cpu", 1)
    settings = slim.Runtimes([slim.Runtime(target, 1), slim.Runtime(target, 4)])
    [found] = guard.compare_files(tmp_path / "whole.onnx", tmp_path / "thin.onnx", settings)
    assert found.setting == "onnxruntime, CPU, 1 thread, batch 4"
    assert found.low <= found.speedup <= found.high and found.speedup > 1.2
    assert found.to_dict() | {"slower": False} == found.to_dict()
