"""BatchNorm as people write it: by the function, with γ and β of any name and place, shared, or computed."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

import slim

C = 8
X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Own(nn.Module):
    """γ and β under other names, in a module of its own."""

    mean: Tensor
    var: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.rand(C) + 0.1), nn.Parameter(torch.randn(C))
        self.register_buffer("mean", torch.zeros(C))
        self.register_buffer("var", torch.ones(C))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.mean, self.var, self.gamma, self.beta, self.training)


class Listed(Own):
    """The same in a ParameterList."""

    def __init__(self) -> None:
        super().__init__()
        del self.gamma, self.beta
        self.both = nn.ParameterList([torch.rand(C) + 0.1, torch.randn(C)])

    def forward(self, x: Tensor) -> Tensor:
        gamma, beta = self.both
        return F.batch_norm(x, self.mean, self.var, gamma, beta, self.training)


class ByHand(Own):
    """Arithmetic instead of a function of torch's."""

    def forward(self, x: Tensor) -> Tensor:
        mean, var = self.mean, self.var
        if self.training:
            mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
        normalised = (x - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()
        return normalised * self.gamma.view(1, -1, 1, 1) + self.beta[None, :, None, None]


class Scaled(nn.Module):
    """A scale and a shift of the network's own after a BatchNorm without."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(C, affine=False)
        self.gamma, self.beta = nn.Parameter(torch.rand(C, 1, 1)), nn.Parameter(torch.randn(C, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x) * self.gamma + self.beta


def frozen() -> nn.Module:
    norm = FrozenBatchNorm2d(C)
    for tensor in norm.buffers():
        nn.init.uniform_(tensor, 0.1, 1)
    return norm


class Shifted(nn.Module):
    """A shift of the network's own after a whole BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.shift = nn.BatchNorm2d(C), nn.Parameter(torch.rand(C, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x) + self.shift


class Body(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, C, 3), norm, nn.Conv2d(C, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(x)).relu())


class OnTheNetwork(Own):
    """γ and β on the network itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, C, 3), nn.Conv2d(C, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(super().forward(self.conv(x)).relu())


class TwoViews(nn.Module):
    """One γ for two norms with statistics of their own; β shared or not, or statistics, too."""

    def __init__(self, *, share_bias: bool, share_statistics: bool = False) -> None:
        super().__init__()
        self.conv, self.one, self.two, self.head = (
            nn.Conv2d(3, C, 3),
            nn.BatchNorm2d(C),
            nn.BatchNorm2d(C),
            nn.Conv2d(C, 2, 1),
        )
        nn.init.uniform_(self.one.weight, 0.1, 1)
        nn.init.normal_(self.one.bias), nn.init.normal_(self.two.bias)
        self.two.weight = self.one.weight
        if share_bias:
            self.two.bias = self.one.bias
        if share_statistics:
            self.two.running_mean, self.two.running_var = self.one.running_mean, self.one.running_var

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.one(self.conv(x)).relu() + self.two(self.conv(-x)).relu())


class Conditional(Body):
    """β is computed from the input: no parameter is the channel's own, so that the channel stays."""

    def __init__(self) -> None:
        super().__init__(Own())

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        y = F.batch_norm(y, self.norm.mean, self.norm.var, self.norm.gamma, None, self.training)  # type: ignore
        return self.head((y + x.mean((1, 2, 3), keepdim=True).exp()).relu())


MODELS: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {  # what is zero once a channel is masked
    "other names": (lambda: Body(Own()), ["norm.gamma", "norm.beta"]),
    "a ParameterList": (lambda: Body(Listed()), ["norm.both.0", "norm.both.1"]),
    "on the network itself": (OnTheNetwork, ["gamma", "beta"]),
    "by hand": (lambda: Body(ByHand()), ["norm.gamma", "norm.beta"]),
    "after a norm without": (lambda: Body(Scaled()), ["norm.gamma", "norm.beta"]),
    "without γ and β": (
        lambda: Body(nn.BatchNorm2d(C, affine=False)),
        ["conv.weight", "conv.bias", "norm.running_mean"],
    ),
    "in buffers": (lambda: Body(frozen()), ["norm.weight", "norm.bias"]),
    "and a shift": (lambda: Body(Shifted()), ["norm.norm.weight", "norm.norm.bias", "norm.shift"]),
    "γ and β shared": (lambda: TwoViews(share_bias=True), ["one.weight", "one.bias"]),
    "all shared": (lambda: TwoViews(share_bias=True, share_statistics=True), ["one.weight", "one.bias"]),
    "γ shared, two β": (lambda: TwoViews(share_bias=False), ["one.weight", "one.bias", "two.bias"]),
}


@pytest.mark.parametrize("case", MODELS)
def test_it_is_pruned_exactly(case: str) -> None:
    torch.manual_seed(0)
    make, zeroed = MODELS[case]
    model = make().eval()
    plan = slim.plan(model, X, ratio=0.5)
    thin = plan.apply(model)
    assert slim.verify(model, thin, plan, X) < 1e-10
    gone = plan.cuts["conv.weight"][0]
    assert {name.rpartition(".")[0] for name in zeroed if name.endswith(".bias")} <= plan.removed.keys()
    assert len(gone) == C // 2 and all(channels == gone for channels in plan.removed.values())
    with torch.no_grad():
        named = dict(model.named_parameters()) | dict(model.named_buffers())
        for name in zeroed:
            named[name][gone] = 0
        expected = model.double()(X.double())  # buffers that were shared aren't any more
        for found in (thin.double()(X.double()), plan.apply(model)(X.double())):
            assert (expected - found).abs().max() < 1e-12 * expected.abs().max()


def test_what_is_computed_from_elsewhere_keeps_its_channels() -> None:
    torch.manual_seed(0)
    with pytest.raises(slim.SlimError, match="would remove nothing"):
        slim.plan(Conditional().eval(), X, ratio=0.5)


def test_statistics_of_any_name_are_recovered() -> None:
    torch.manual_seed(0)
    model, images = Body(Own()).eval(), torch.randn(32, 3, 8, 8)
    plan = slim.plan(model, X, ratio=0.5)
    recovered = slim.recover(model, plan.apply(model), plan, images)
    assert recovered.distance[recovered.chosen] < recovered.distance["none"]
