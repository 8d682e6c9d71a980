"""What can't be pruned, penalised or read says what it is, and what to do, in one line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import slim
from slim.errors import SlimError
from slim.workbench.models import build
from slim.workbench.models.fitting import fit_weights
from slim.workbench.models.reading import read_weights

X = torch.randn(1, 3, 8, 8)


def stack(norm: Callable[[int], nn.Module]) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 16, 3, bias=False), norm(16), nn.ReLU(), nn.Conv2d(16, 4, 3))


def frozen(channels: int) -> nn.Module:
    ops = pytest.importorskip("torchvision.ops")
    return ops.FrozenBatchNorm2d(channels)


def without_gradients(channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels).requires_grad_(False)


@pytest.mark.parametrize(
    ("norm", "says"),
    [
        (frozen, "FrozenBatchNorm2d keep γ untrained: expected nn.BatchNorm2d in their place"),
        (nn.Identity, "without BatchNorms (fused ones are gone) expected run.path direct"),
        (without_gradients, "their scales have requires_grad off: expected requires_grad_(True)"),
    ],
)
def test_nothing_to_penalise(norm: Callable[[int], nn.Module], says: str) -> None:
    net = stack(norm)
    with pytest.raises(SlimError) as caught:
        slim.sparsify(net, torch.optim.SGD(net.parameters(), 0.1), slim.L1(1e-4))
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("net", "says"),
    [
        (lambda: nn.Softmax(1), "no layer makes channels: expected convolutions or linear layers"),
        (lambda: nn.Conv2d(3, 8, 3), "all channels are frozen (the model's output)"),
    ],
)
def test_nothing_to_prune(net: Callable[[], nn.Module], says: str) -> None:
    with pytest.raises(SlimError) as caught:
        slim.plan(net().eval(), X, ratio=0.5)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_the_advice_for_frozen_norms_holds() -> None:
    """BatchNorm2d takes the numbers of FrozenBatchNorm2d, and can be pruned as it stands."""
    old, new = stack(frozen), stack(nn.BatchNorm2d).eval()
    for name, tensor in old.state_dict().items():
        if name.startswith("1."):
            tensor.uniform_(0.5, 1.5)
    new.load_state_dict(old.state_dict(), strict=False)
    new.get_submodule("1").requires_grad_(False)
    torch.testing.assert_close(new(X), old(X))
    plan = slim.plan(new, X, ratio=0.5)
    assert slim.verify(new, plan.apply(new), plan, X) < 1e-10


def test_fused_weights_are_told_from_those_of_another_network(tmp_path: Path) -> None:
    model = build("torchvision:resnet18", num_classes=5)
    state = dict(model.state_dict())
    fused = {name: tensor for name, tensor in state.items() if not name.startswith("bn1.")}
    for content, says in (
        (fused | {"conv1.bias": torch.zeros(64)}, "are fused: their BatchNorms are folded into the convolutions"),
        (fused, "don't fit: they lack bn1.weight"),
    ):
        torch.save(content, tmp_path / "w.pth")
        with pytest.raises(SlimError) as caught:
            fit_weights(model, read_weights("torchvision:resnet18", str(tmp_path / "w.pth")), 5)
        assert says in str(caught.value) and "\n" not in str(caught.value)


def test_a_whole_model_in_a_pickle_is_named_as_such(tmp_path: Path) -> None:
    torch.save(stack(nn.BatchNorm2d), tmp_path / "model.pt")
    with pytest.raises(SlimError, match=r"such as a whole model, which can run code .*: expected tensors alone"):
        read_weights("slim:vgg7", str(tmp_path / "model.pt"))


HUGE = 10**400  # which no float can hold
ODD: Any = torch.zeros(3)  # or what else has no place there


@pytest.mark.parametrize(
    ("misuse", "says"),
    [
        (lambda net: slim.plan(net, X, layer_ratios=ODD), "layer_ratios is of type Tensor"),
        (lambda net: slim.plan(net, X, ratio=0.5, floor=float("inf")), "floor inf is not a finite number"),
        (lambda net: slim.plan(net, X, slim.Flops(HUGE)), "flops 1000"),
        (lambda net: slim.plan(net, X, ratio=0.5, score=nn.ReLU()), "score ReLU(): expected slim.Gamma()"),
        (lambda net: slim.L1(HUGE), "sparsity strength is 1000"),
        (lambda net: slim.Lp(1e-4, p=ODD), "p is tensor"),
        (lambda net: slim.load("x.safetensors", ODD), "model is of type Tensor"),
    ],
)
def test_odd_arguments(
    misuse: Callable[[nn.Module], object], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    slim.save("x.safetensors", nn.Linear(2, 2))
    with pytest.raises(SlimError) as caught:
        misuse(stack(nn.BatchNorm2d).eval())
    assert says in str(caught.value) and "\n" not in str(caught.value)


PRINTS_AS_PAGES: dict[str, Callable[[], Any]] = {
    "a network": lambda: nn.Sequential(*(nn.Conv2d(3, 3, 3) for _ in range(100))),
    "a tensor": lambda: torch.randn(8, 3, 8, 8),
    "an optimizer": lambda: torch.optim.SGD([nn.Parameter(torch.ones(1))], 0.1),
}


@pytest.mark.parametrize("case", PRINTS_AS_PAGES)
@pytest.mark.parametrize("take", [slim.Flops, slim.L1, slim.rule], ids=["a budget", "a strength", "a name"])
def test_a_value_that_prints_as_pages_is_refused_in_one_line(case: str, take: Callable[[Any], object]) -> None:
    with pytest.raises(SlimError) as caught:
        take(PRINTS_AS_PAGES[case]())
    said = str(caught.value)
    assert "\n" not in said and len(said) <= 1000 and "expected" in said[-250:]


SETTINGS: dict[str, tuple[Callable[[Path], object], str]] = {
    "arguments in a list": (
        lambda path: slim.save(path, stack(nn.BatchNorm2d), arch_kwargs=[1]),  # type: ignore[arg-type]
        "arch_kwargs is of type list: expected values by name",
    ),
    "one metric": (
        lambda path: slim.save(path, stack(nn.BatchNorm2d), metrics=0.9),  # type: ignore[arg-type]
        "metrics is of type float: expected values by name",
    ),
    "images themselves": (
        lambda path: slim.save(path, stack(nn.BatchNorm2d), images=X),  # type: ignore[arg-type]
        "images is of type Tensor: expected a slim.ImageSpec",
    ),
    "a plan of nothing": (
        lambda path: slim.PruningPlan.load(None),  # type: ignore[arg-type]
        "path is of type NoneType: expected the plan's file",
    ),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_what_is_none_of_a_file_s_settings_is_refused(case: str, tmp_path: Path) -> None:
    call, said = SETTINGS[case]
    with pytest.raises(SlimError, match=said):
        call(tmp_path / "x.safetensors")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("value", [None, 1, X, X.numpy(), ["layer"], {}], ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("setting", ["scope", "mode", "grouped", "after"])
def test_a_setting_of_a_plan_that_is_no_word_of_it_is_refused(setting: str, value: Any) -> None:
    said = "after is of type" if setting == "after" else f"unknown {setting}"
    with pytest.raises(SlimError, match=said):
        slim.plan(stack(nn.BatchNorm2d), X, **{setting: value})
