"""The score `Taylor` against finite differences: masks that are let in by a thousandth, in float64."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import slim
from slim.errors import SlimError
from slim.prune.groups import Groups
from slim.prune.scores import ranked
from slim.trace.traced import trace


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.wide, self.wide_norm = nn.Conv2d(6, 8, 1), nn.BatchNorm2d(8)
        self.deep, self.deep_norm = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8)
        self.back, self.back_norm = nn.Conv2d(8, 6, 1), nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem_norm(self.stem(x)).tanh()
        y = self.deep_norm(self.deep(self.wide_norm(self.wide(x)).tanh())).tanh()
        return self.head((x + self.back_norm(self.back(y))).mean((2, 3)))


def plain() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.Tanh(), nn.Conv2d(6, 5, 3, bias=False), nn.Tanh(), nn.Flatten(), nn.Linear(5 * 16, 4)
    )


def attentive() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, activation=F.gelu, batch_first=True)
    return nn.Sequential(nn.Flatten(2), nn.Linear(64, 8), layer, nn.Flatten(), nn.Linear(24, 4))


NETWORKS = {"BatchNorm, coupled, depthwise": Residual, "no norm": plain, "transformer": attentive}


def network(kind: str) -> nn.Module:
    torch.manual_seed(0)
    model = NETWORKS[kind]().double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.2, 2.0)
            nn.init.uniform_(module.bias, -1.0, 1.0)
    return model


def groups_of(model: nn.Module, x: Any, score: Any) -> Groups:
    traced = trace(model, x)
    return Groups(traced, model, counted=ranked(score, traced))


def by_finite_differences(groups: Groups, images: Tensor, labels: Tensor) -> list[float]:
    """For each group the squared change of the loss when its mask is let in by ε, over ε², in the mean over samples."""
    found, eps = [], 1e-4
    for group in range(len(groups.roots)):
        pruned = np.arange(len(groups.roots)) == group
        masks = groups.traced.masks(groups.traced.pruned(groups.kept(pruned)))
        losses = []
        for scale in (1 + eps, 1 - eps):
            other = copy.deepcopy(groups.model)
            with torch.no_grad():
                for name, dims in masks.items():
                    for dim, indices in dims.items():
                        tensor = other.get_parameter(name)
                        tensor.copy_(
                            tensor.index_copy(
                                dim, torch.tensor(indices), scale * tensor.index_select(dim, torch.tensor(indices))
                            )
                        )
                losses.append(F.cross_entropy(other(images), labels, reduction="none"))
        found.append(float(((losses[0] - losses[1]) / (2 * eps)).square().mean()))
    return found


@pytest.mark.parametrize("kind", NETWORKS)
def test_equals_finite_differences(kind: str) -> None:
    model = network(kind)
    images, labels = torch.randn(5, 3, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 1])
    score = slim.Taylor([(images[:2], labels[:2]), (images[2:], labels[2:])], F.cross_entropy)
    groups = groups_of(model, images[:1], score)
    before = copy.deepcopy(model.state_dict())
    wanted = np.where(groups.frozen, 0, by_finite_differences(groups, images, labels))
    assert (wanted > 0).sum() > 5
    found = np.where(groups.frozen, 0, score(groups) * groups.savings)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-12)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_what_cancels_within_a_group_is_worth_nothing() -> None:
    """Two branches that subtract the same: each channel alone matters, the coupled pair doesn't."""

    class Cancels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.one, self.two = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
            self.head = nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            return self.head(self.one(x) - self.two(x)).mean((2, 3))

    torch.manual_seed(0)
    model = Cancels().double().eval()
    with torch.no_grad():
        model.two.weight[0] = 2.0  # but for the first channel
    x = torch.randn(4, 3, 4, 4, dtype=torch.float64)
    score = slim.Taylor((x, torch.tensor([0, 1, 0, 1])), F.cross_entropy)
    found = score(groups_of(model, x, score))
    assert found[0] > 1e-6
    assert found[1:] == pytest.approx(0, abs=1e-20)


def test_without_labels_it_tells_how_far_the_outputs_move() -> None:
    """In the mean over many draws: the Fisher information for class scores, the squared change for other outputs."""
    torch.manual_seed(0)
    first, last = nn.Linear(3, 4).double(), nn.Linear(4, 3).double()
    model = nn.Sequential(first, nn.Tanh(), last)
    image = torch.randn(1, 3, dtype=torch.float64)
    same = image.expand(20_000 // 8, 3)
    score = slim.Taylor(same, samples=len(same))
    found = score(groups_of(model, image, score)) * 1.0
    hidden = first(image)
    # masking channel c moves the hidden unit by h(1 − tanh²h), and the outputs by the column of the last layer
    moved = last.weight * (hidden * (1 - hidden.tanh() ** 2))
    chances = model(image).softmax(1)[0]
    fisher = torch.diag(chances) - torch.outer(chances, chances)
    np.testing.assert_allclose(found, ((fisher @ moved) * moved).sum(0).detach(), rtol=0.15)
    mapped = nn.Sequential(model, nn.Unflatten(1, (3, 1)))
    np.testing.assert_allclose(score(groups_of(mapped, image, score)), moved.square().sum(0).detach(), rtol=0.15)


def test_a_plan_by_it_removes_what_the_loss_doesn_t_need() -> None:
    """Large γ that nothing reads: |γ| keeps it, Taylor removes it, with labels, without, and from a DataLoader."""
    model = network("BatchNorm, coupled, depthwise")
    assert isinstance(model, Residual)
    with torch.no_grad():
        model.wide_norm.weight[:3] = 5.0
        model.back.weight[:, :3] = 0.0
    data = torch.utils.data.TensorDataset(torch.randn(12, 3, 8, 8, dtype=torch.float64), torch.arange(12) % 4)
    loader = torch.utils.data.DataLoader(data, batch_size=4)
    x = data.tensors[0][:1]
    for score in (slim.Taylor(loader, F.cross_entropy), slim.Taylor(loader), slim.Taylor(data.tensors[0])):
        plan = slim.plan(model, x, ratio=0.25, score=score)
        assert {0, 1, 2} <= set(plan.removed["wide_norm"])
        slim.verify(model, plan.apply(model), plan, x)
    assert {0, 1, 2}.isdisjoint(slim.plan(model, x, ratio=0.25).removed.get("wide_norm", []))


@pytest.mark.parametrize(
    ("score", "said"),
    [
        (slim.Taylor([]), "no samples"),
        (slim.Taylor(torch.zeros(2, 5, 8, 8, dtype=torch.float64)), "can't run on these images"),
        (slim.Taylor([torch.zeros(2, 3, 8, 8)], F.cross_entropy), r"expected \(inputs, targets\)"),
        (slim.Taylor((torch.zeros(1, 3, 8, 8).double(), torch.zeros(1)), lambda o, t: t), "one number"),
    ],
)
def test_mistakes_are_one_line(score: Any, said: str) -> None:
    model = network("no norm")
    with pytest.raises(SlimError, match=said):
        slim.plan(model, torch.zeros(1, 3, 8, 8, dtype=torch.float64), ratio=0.25, score=score)
