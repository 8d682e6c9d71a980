"""The training loop, against a plain loop in PyTorch and closed forms."""

import copy
import functools
import math
import time
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from functorch.compile import make_boxed_func as make_boxed
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd

from slim.errors import SlimError
from slim.sparsity import parameter_groups
from slim.workbench.config import ComputeConfig, DataConfig, OptimConfig, SparsityConfig
from slim.workbench.data import Dataset, Split, batches, load
from slim.workbench.train import Callbacks, Progress, evaluate, fit, learning_rate, resolve_device, resolve_precision
from slim.workbench.train.devices import with_sound_layout
from slim.workbench.train.state import mixed


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load(DataConfig(), seed=0)


def network(seed: int = 0, dropout: float = 0.0, channels: int = 1, classes: int = 10) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(channels, 12, 3, padding=1, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(12, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(64, classes),
    )


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values()))


def test_fit_is_a_plain_loop(digits: Dataset) -> None:
    """Every part written out by hand: schedule, decay, penalty, means, validation. Equal bit for bit."""
    optim = OptimConfig(epochs=2, lr=0.08, weight_decay=1e-3, warmup=0.2, label_smoothing=0.1)
    sparsity = SparsityConfig(strength=2e-3, schedule="ramp")
    ours, plain = network(), network()
    records = fit(
        ours,
        replace(digits, batch_size=50),
        optim,
        compute=ComputeConfig(device="cpu", precision="32-true", channels_last=False),
        seed=7,
        sparsity=sparsity,
    )

    torch.manual_seed(7)
    steps = 2 * (len(digits.train) // 50)
    norms = [m for m in plain.modules() if isinstance(m, nn.BatchNorm2d)]
    undecayed = [p for m in norms for p in (m.weight, m.bias)] + [plain.get_parameter("10.bias")]
    decayed = [plain.get_parameter(f"{i}.weight") for i in (0, 4, 10)]
    groups: list[dict[str, Any]] = [{"params": decayed, "weight_decay": 1e-3}, {"params": undecayed}]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True)
    warmup = round(0.2 * steps)
    step = 0
    for epoch in (1, 2):
        plain.train()
        losses, correct = [], 0
        for images, labels in batches(digits.train, digits, 50, shuffle_seed=mixed(7, epoch), augment=True):
            if step < warmup:
                lr = 0.08 * (step + 1) / (warmup + 1)
            else:
                lr = 0.08 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2
            logits = plain(images)
            loss = F.cross_entropy(logits, labels, label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            for module in norms:
                assert module.weight.grad is not None
                module.weight.grad += 2e-3 * (step + 1) / steps * module.weight.detach().sign()
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
            losses.append(loss.item())
            correct += (logits.argmax(1) == labels).sum().item()
            step += 1
        plain.eval()
        with torch.no_grad():
            ((images, labels),) = batches(digits.val, digits, len(digits.val))
            logits = plain(images)
        record = records[epoch - 1]
        assert record["epoch"] == epoch
        assert record["train_loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-6)
        assert record["train_accuracy"] == pytest.approx(correct / (50 * len(losses)), abs=1e-9)
        assert record["val_loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
        assert record["val_accuracy"] == (logits.argmax(1) == labels).double().mean().item()
        assert record["lr"] == pytest.approx(lr, rel=1e-12)
        assert record["strength"] == pytest.approx(2e-3 * step / steps, rel=1e-12)
        near = torch.cat([m.weight.detach().abs() < 0.01 for m in norms]).double().mean().item()
        assert record["near_zero"] == near
    assert len(records) == 2
    assert same(ours, plain)


def test_it_learns_and_sparsity_shrinks_the_scales(digits: Dataset) -> None:
    share = {}
    for strength in (0.0, 0.1):
        model = network()
        records = fit(
            model, digits, OptimConfig(epochs=8, warmup=0.0), seed=0, sparsity=SparsityConfig(strength=strength)
        )
        share[strength] = records[-1]["near_zero"]
        if strength == 0:
            assert records[-1]["val_accuracy"] > 0.9
            assert evaluate(model, digits.test, digits)["accuracy"] > 0.9
        assert records[0]["near_zero"] == 0
    assert share[0.0] == 0 < 0.3 < share[0.1] < 0.9


def test_one_seed_one_result(digits: Dataset) -> None:
    def run(seed: int, threads: int = 1) -> nn.Module:
        torch.set_num_threads(threads)
        model = network(dropout=0.3)
        torch.rand(seed + threads)  # the state of torch's generator beforehand doesn't matter
        fit(model, digits, OptimConfig(epochs=2), seed=seed, sparsity=SparsityConfig(strength=1e-3))
        torch.set_num_threads(1)
        return model

    first = run(1)
    assert same(first, run(1))
    assert not same(first, run(2))
    assert same(run(1, threads=2), run(1, threads=2))


def test_the_test_set_is_never_looked_at(digits: Dataset) -> None:
    class Sealed(Split):
        def __getattribute__(self, name: str) -> Any:
            raise AssertionError("the test set was opened")

    sealed = replace(digits, test=Sealed(digits.test.images, digits.test.labels))
    ours, reference = network(), network()
    fit(ours, sealed, OptimConfig(epochs=1), seed=0)
    fit(reference, digits, OptimConfig(epochs=1), seed=0)
    assert same(ours, reference)


def test_without_validation_images(digits: Dataset) -> None:
    empty = replace(digits, val=digits.val[:0])
    (record,) = fit(network(), empty, OptimConfig(epochs=1), seed=0)
    assert record["val_loss"] is None
    assert record["val_accuracy"] is None
    assert record["near_zero"] is None
    assert record["strength"] == 0.0


def test_memory_layout_changes_only_the_rounding(digits: Dataset) -> None:
    models = network(), network()
    for model, channels_last in zip(models, (True, False)):
        few = replace(digits, train=digits.train[:256])
        fit(model, few, OptimConfig(epochs=1), compute=ComputeConfig(channels_last=channels_last), seed=0)
        assert all(p.is_contiguous() for p in model.parameters())
        assert not model.training
    for a, b in zip(models[0].parameters(), models[1].parameters()):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_compiling_changes_only_the_rounding(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and backward go through torch.compile, without the C++ compiler, which users have and CI may not."""
    graphs = []

    def traced(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        graphs.append(graph)
        return make_boxed(graph)

    backend = aot_autograd(fw_compiler=traced, bw_compiler=traced)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    few = replace(digits, train=digits.train[:320])
    compute = ComputeConfig(device="cpu", precision="32-true")
    sparsity = SparsityConfig(strength=1e-3, method="proximal")
    plain, compiled = network(), network()
    expected = fit(plain, few, OptimConfig(epochs=1), compute=compute, sparsity=sparsity)
    assert not graphs
    found = fit(compiled, few, OptimConfig(epochs=1), compute=replace(compute, compile=True), sparsity=sparsity)
    assert len(graphs) >= 2, "a graph forward and one backward were expected"
    assert found[0]["train_loss"] == pytest.approx(expected[0]["train_loss"], rel=1e-4)
    for a, b in zip(plain.state_dict().values(), compiled.state_dict().values()):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-4)


def test_bf16(digits: Dataset) -> None:
    model, exact = network(), network()
    few = replace(digits, train=digits.train[:256])
    records = fit(model, few, OptimConfig(epochs=1), compute=ComputeConfig(precision="bf16-mixed"), seed=0)
    reference = fit(exact, few, OptimConfig(epochs=1), compute=ComputeConfig(precision="32-true"), seed=0)
    assert not same(model, exact)
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert records[0]["train_loss"] == pytest.approx(reference[0]["train_loss"], rel=0.02)


# Callbacks


def test_progress_is_told_seldom(digits: Dataset) -> None:
    calls: list[Progress] = []
    seen: list[dict] = []
    started = time.perf_counter()
    records = fit(
        network(),
        replace(digits, batch_size=4),
        OptimConfig(epochs=3),
        seed=0,
        sparsity=SparsityConfig(),
        callbacks=Callbacks(on_step=calls.append, on_epoch=seen.append),
    )
    elapsed = time.perf_counter() - started
    assert seen == records
    assert len(calls) <= elapsed / 0.1 + 3 + 1
    per_epoch = len(digits.train) // 4
    assert {call.steps for call in calls} == {3 * per_epoch}
    assert [call.step for call in calls] == sorted({call.step for call in calls})
    ends = {call.epoch: call for call in calls if call.step == call.epoch * per_epoch}
    for record in records:  # the last report of an epoch is its record
        end = ends[record["epoch"]]
        assert (end.loss, end.value) == (record["train_loss"], record["train_accuracy"])
        assert (end.lr, end.near_zero) == (record["lr"], record["near_zero"])


def test_callbacks_change_nothing(digits: Dataset) -> None:
    quiet, loud = network(), network()
    fit(quiet, digits, OptimConfig(epochs=1), seed=0)
    fit(
        loud,
        digits,
        OptimConfig(epochs=1),
        seed=0,
        callbacks=Callbacks(on_step=lambda _: None, on_epoch=lambda _: None),
    )
    assert same(quiet, loud)


# Schedules and weight decay


@pytest.mark.parametrize("steps", [7, 40, 1000])
def test_cosine_against_torch(steps: int) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    optim = OptimConfig(lr=0.3, schedule="cosine", warmup=0.0)
    for step in range(steps):
        assert learning_rate(optim, step, steps) == pytest.approx(scheduler.get_last_lr()[0], abs=1e-9)
        optimizer.step()
        scheduler.step()


def test_step_schedule_is_the_papers() -> None:
    """160 epochs: 0.1 at first, 0.01 from epoch 80, 0.001 from epoch 120 (Liu et al. 2017, section 4.2)."""
    optim = OptimConfig(lr=0.1, schedule="step", warmup=0.0)
    rates = [learning_rate(optim, step, 160 * 10) for step in range(1600)]
    assert rates == pytest.approx([0.1] * 800 + [0.01] * 400 + [0.001] * 400)
    optim = OptimConfig(lr=1.0, schedule="step", warmup=0.0, milestones=[0.333333])  # on MNIST at 1/3 (and 2/3)
    assert [learning_rate(optim, step, 930) for step in (309, 310)] == pytest.approx([1.0, 0.1])


def test_warm_up_rises_linearly_to_the_full_rate() -> None:
    optim = OptimConfig(lr=0.5, schedule="constant", warmup=0.1)
    rates = [learning_rate(optim, step, 90) for step in range(90)]
    assert rates[:10] == pytest.approx([0.05 * k for k in range(1, 11)])
    assert rates[9:] == [0.5] * 81
    cosine = [learning_rate(replace(optim, schedule="cosine"), step, 90) for step in range(90)]
    assert max(cosine) == cosine[9] == 0.5
    assert cosine[:9] == rates[:9]
    assert 0 < cosine[-1] < 0.001


def test_weight_decay_spares_vectors() -> None:
    model = network()
    names = {id(parameter): name for name, parameter in model.named_parameters()}

    def decay(decay_norm: bool) -> dict[str, float]:
        groups = parameter_groups(model, 0.3, decay_norm)
        return {names[id(p)]: group["weight_decay"] for group in groups for p in group["params"]}

    assert decay(False) == {
        "0.weight": 0.3,
        "1.weight": 0.0,
        "1.bias": 0.0,
        "4.weight": 0.3,
        "5.weight": 0.0,
        "5.bias": 0.0,
        "10.weight": 0.3,
        "10.bias": 0.0,
    }
    assert decay(True) == dict.fromkeys(names.values(), 0.3)
    model[0].weight.requires_grad_(False)
    assert "0.weight" not in decay(False)


# Evaluation


def test_evaluate_against_a_loop_over_single_images(digits: Dataset) -> None:
    model = network()
    fit(model, digits, OptimConfig(epochs=1), seed=0)
    model.train()
    model[1].eval()
    before = weights(model)
    result = evaluate(model, digits.test, digits, batch_size=100)
    assert [module.training for module in model] == [index != 1 for index in range(len(model))]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())

    model.eval()
    assert digits.spec.mean and digits.spec.std
    (mean,), (std,) = digits.spec.mean, digits.spec.std
    hits, losses = 0, []
    with torch.no_grad():
        for image, label in zip(digits.test.decoded(), digits.test.labels):
            logits = model((image[None] / 255 - mean) / std)[0]
            hits += int(logits.argmax() == label)
            losses.append(-logits.log_softmax(0)[label].item())
    assert result["accuracy"] == hits / len(digits.test)
    assert 0.2 < result["accuracy"] < 1
    assert result["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_networks_with_auxiliary_heads(digits: Dataset) -> None:
    class WithHeads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, images: Tensor) -> Any:
            from torchvision.models.googlenet import GoogLeNetOutputs

            logits = self.net(images)
            return GoogLeNetOutputs(logits, logits + 1, logits - 1) if self.training else logits

    model, plain = WithHeads(), network()
    fit(model, digits, OptimConfig(epochs=1), seed=0)
    fit(plain, digits, OptimConfig(epochs=1), seed=0)
    assert same(model, plain)


# Mistakes


class NanAtStep(nn.Module):
    def __init__(self, step: int) -> None:
        super().__init__()
        self.net, self.left = network(), step

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self.left -= 1
        return self.net(images) * (math.nan if self.left == 0 else 1)


@pytest.mark.parametrize("step", [1, 9, 41, 80])
def test_a_loss_that_is_not_finite_stops_training(digits: Dataset, step: int) -> None:
    with pytest.raises(SlimError, match=rf"loss is nan at step {step}, .*try a lower lr") as error:
        fit(NanAtStep(step), digits, OptimConfig(epochs=4), seed=0)  # 20 steps in an epoch
    assert "\n" not in str(error.value)


def test_a_huge_learning_rate_is_told(digits: Dataset) -> None:
    with pytest.raises(SlimError, match="try a lower lr"):
        fit(network(), digits, OptimConfig(epochs=3, lr=1e25), seed=0)


def test_networks_that_do_not_fit_the_data(digits: Dataset) -> None:
    def refused(model: nn.Module) -> str:
        before = weights(model)
        with pytest.raises(SlimError) as error:
            fit(model, digits, OptimConfig(epochs=1), seed=0)
        with pytest.raises(SlimError):
            evaluate(model, digits.test, digits)
        assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "can't run on images of shape [1, 8, 8] from digits" in refused(network(channels=3))
    assert "10 classes" in refused(network(classes=7))
    assert "can't run" in refused(nn.Sequential(network()[:8], nn.MaxPool2d(4)))


def test_penalising_nothing_is_told(digits: Dataset) -> None:
    with pytest.raises(SlimError, match="no BatchNorm"):
        fit(network(), digits, OptimConfig(epochs=1), seed=0, sparsity=SparsityConfig(targets="body.*"))


def test_no_images_to_evaluate_on(digits: Dataset) -> None:
    with pytest.raises(SlimError, match="no images"):
        evaluate(network(), digits.val[:0], digits)


def test_devices_and_precisions(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert resolve_device("cpu") == cpu
    with pytest.raises(SlimError, match="did you mean 'cuda'"):
        resolve_device("cudas")
    with pytest.raises(SlimError, match="did you mean 'bf16-mixed'"):
        resolve_precision("bf16", cpu)
    with pytest.raises(SlimError, match="needs a CUDA device"):
        resolve_precision("16-mixed", cpu)
    for hardware, expected in ((True, "bf16-mixed"), (False, "32-true")):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda hardware=hardware: hardware)
        assert resolve_precision("auto", cpu) == expected
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert resolve_device("auto") == cpu
    with pytest.raises(SlimError, match="'cuda' isn't available: expected auto or cpu"):
        resolve_device("cuda")


def strided(reads: int, kernel: int = 1, stride: int = 2, groups: int = 1) -> nn.Sequential:
    """What ends in a strided convolution, which shortcuts of residual networks have, and a head."""
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(1, reads, 3, padding=1), nn.BatchNorm2d(reads), nn.ReLU()),
        *(nn.Conv2d(reads, 12, kernel, stride, groups=groups), nn.Flatten(), nn.LazyLinear(10)),
    )


@pytest.mark.parametrize(
    ("layers", "prunes", "device", "expected"),
    [
        ({"reads": 4}, False, "cpu", False),
        ({"reads": 15, "stride": 3}, False, "cpu", False),
        ({"reads": 16}, False, "cpu", True),
        ({"reads": 16}, True, "cpu", False),
        ({"reads": 4}, False, "cuda", True),
        ({"reads": 4, "stride": 1}, True, "cpu", True),
        ({"reads": 4, "kernel": 3}, True, "cpu", True),
        ({"reads": 4, "groups": 4}, True, "cpu", True),
    ],
)
def test_channels_last_is_left_where_its_gradients_would_be_wrong(
    layers: dict[str, int], prunes: bool, device: str, expected: bool
) -> None:
    compute = with_sound_layout(ComputeConfig(), strided(**layers), torch.device(device), prunes)
    assert compute.channels_last == expected


def test_few_channels_through_a_strided_shortcut_train_as_in_a_plain_loop(digits: Dataset) -> None:
    few = replace(digits, train=digits.train[:64], val=digits.val[:0], augment="none")
    ours = strided(5)
    images, labels = next(batches(few.train, few, 64, shuffle_seed=mixed(0, 1)))
    ours(images)
    plain = copy.deepcopy(ours).double()
    fit(ours, few, OptimConfig(epochs=1, lr=0.1, momentum=0.0, warmup=0.0, weight_decay=0.0), seed=0)
    F.cross_entropy(plain.train()(images.double()), labels).backward()
    for trained, before in zip(ours.parameters(), plain.parameters()):
        assert before.grad is not None
        torch.testing.assert_close(trained.double(), before - 0.1 * before.grad, rtol=1e-4, atol=1e-5)
