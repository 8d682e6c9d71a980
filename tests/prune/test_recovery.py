"""slim.recover against closed forms: what kept channels can say is recovered to rounding, and nothing gets worse."""

import copy
import itertools
import math
import warnings
from typing import Any

import pytest
import torch
import torch.utils.flop_counter
from networks import Network, RandomNet
from torch import Tensor, nn

import slim
from slim.errors import SlimError
from slim.prune import calibration
from slim.prune.recovery import recover as recovery
from slim.prune.recovery import regression
from slim.prune.recovery.recover import recover
from slim.trace.intercept import LayerCall

C = 8


def dependent(first: nn.Conv2d, bn: nn.BatchNorm2d, combination: dict[int, float], channel: int) -> None:
    """Make one channel after `first` and `bn` a linear combination of others, although its γ is the smallest."""
    with torch.no_grad():
        means, variances = bn.get_buffer("running_mean"), bn.get_buffer("running_var")
        scale = bn.weight / variances.sqrt()
        bn.eps = 0.0
        weight = sum(a * scale[i] * first.weight[i] for i, a in combination.items())
        mean = sum(a * scale[i] * means[i] for i, a in combination.items())
        bn.weight[channel] = 1e-3
        variances[channel] = 1.0
        first.weight[channel] = 1000 * weight
        means[channel] = 1000 * mean
        bn.bias[channel] = sum(a * bn.bias[i] for i, a in combination.items())


def lively(model: Network, seed: int = 0) -> Network:
    """Float64, with BatchNorms that are not the identity."""
    torch.manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.get_buffer("running_mean"))
            nn.init.uniform_(module.get_buffer("running_var"), 0.5, 2.0)
    return model.double().eval()


def readers() -> dict[str, tuple[nn.Conv2d, nn.Module]]:
    """What reads the BatchNorm's channels, each with a first layer that makes them; no padding."""
    conv = nn.Conv2d(3, C, 3, bias=False)
    flat = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return {
        "3×3": (conv, nn.Sequential(nn.Conv2d(C, 6, 3), *flat)),
        "without bias, BatchNorm behind": (
            conv,
            nn.Sequential(nn.Conv2d(C, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), *flat),
        ),
        "stride and dilation": (conv, nn.Sequential(nn.Conv2d(C, 6, 3, stride=2, dilation=2), *flat)),
        "grouped": (conv, nn.Sequential(nn.Conv2d(C, 6, 3, groups=2), nn.ReLU(), *flat)),
        "transposed": (conv, nn.Sequential(nn.ConvTranspose2d(C, 6, 3, stride=2, output_padding=1), nn.ReLU(), *flat)),
        "linear": (conv, nn.Sequential(*flat, nn.Linear(C, 4))),
    }


@pytest.mark.parametrize("name", readers())
def test_what_kept_channels_can_say_is_recovered(name: str) -> None:
    torch.manual_seed(1)
    first, rest = readers()[name]
    norm = nn.BatchNorm2d(C)
    model = lively(nn.Sequential(first, norm, rest))
    # a grouped layer loses the same place of each group, and can only ask channels of that group
    dependent(first, norm, {4: 0.7, 7: -1.3} if name == "grouped" else {0: 0.7, 2: -1.3, 4: 2.0}, 5)
    if name == "grouped":
        dependent(first, norm, {0: 1.5, 3: 0.5}, 1)
    images, other = torch.randn(2, 64, 3, 10, 10, dtype=torch.float64)
    plan = slim.plan(model, images[:1], ratio=(2 if name == "grouped" else 1) / C)
    assert plan.removed["1"] == ([1, 5] if name == "grouped" else [5])
    thin = plan.apply(model)
    recovered = recover(model, thin, plan, images)
    with torch.no_grad():
        expected, lost, found = model(other), thin(other), recovered.model(other)
    assert (lost - expected).abs().max() > 0.05 * expected.abs().max()  # the channel mattered
    assert (found - expected).abs().max() < 1e-6 * expected.abs().max()
    assert recovered.chosen == "regression"


def test_depthwise() -> None:
    torch.manual_seed(2)
    first, bn1 = nn.Conv2d(3, C, 1, bias=False), nn.BatchNorm2d(C)
    deep, bn2 = nn.Conv2d(C, C, 3, groups=C, bias=False), nn.BatchNorm2d(C)
    model = lively(nn.Sequential(first, bn1, deep, bn2, nn.Conv2d(C, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    with torch.no_grad():
        deep.weight[[1, 3]] = deep.weight[5].clone()  # the same kernel, so that the combination goes through it
    dependent(first, bn1, {1: 0.8, 3: -0.6}, 5)
    bn2.eps = 0.0
    with torch.no_grad():  # after the second BatchNorm it is a combination with another constant
        bn2.weight[5] = 1e-3
        bn2.get_buffer("running_var")[5] = 1e-6
    images, other = torch.randn(2, 64, 3, 10, 10, dtype=torch.float64)
    plan = slim.plan(model, images[:1], ratio=1 / C)
    assert plan.removed == {"1": [5], "3": [5]}
    thin = plan.apply(model)
    recovered = recover(model, thin, plan, images)
    with torch.no_grad():
        expected, lost, found = model(other), thin(other), recovered.model(other)
    assert (lost - expected).abs().max() > 0.05 * expected.abs().max()
    assert (found - expected).abs().max() < 1e-6 * expected.abs().max()


def test_a_depthwise_layer_itself_is_refitted() -> None:
    """The layer before it changes; the depthwise kernel of a kept channel is scaled to make up for it."""
    torch.manual_seed(0)
    x = torch.randn(32, 4, 8, 8, dtype=torch.float64)
    deep = nn.Conv2d(4, 4, 3, groups=4).double()
    scales = torch.tensor([0.5, 2.0, -1.0, 3.0], dtype=torch.float64)[:, None, None]
    with torch.no_grad():
        layer = LayerCall(
            "product", "weight", torch.conv2d, {"input": x * scales, "weight": deep.weight, "groups": 4}, lambda: x
        )
        made = regression.fit_layer(layer, deep(x), intercept=True)
    assert made is not None
    assert torch.allclose(made.weight * scales[:, None], deep.weight, atol=1e-8)
    assert made.bias is not None and deep.bias is not None
    assert torch.allclose(made.bias, deep.bias, atol=1e-8)


def folded(padding: int) -> tuple[Any, Tensor, Tensor]:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(C)
    model = lively(
        nn.Sequential(
            *(nn.Conv2d(3, C, 3, bias=False), norm, nn.ReLU()),
            *(nn.Conv2d(C, 6, 3, padding=padding, bias=False), nn.BatchNorm2d(6), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)),
        )
    )
    with torch.no_grad():
        norm.weight[[2, 6]] = 0
        norm.bias[[2, 6]] = torch.tensor([1.5, 0.7], dtype=torch.float64)
    return model, *torch.randn(2, 64, 3, 10, 10, dtype=torch.float64)


def test_a_constant_is_folded_exactly_without_padding() -> None:
    model, images, other = folded(padding=0)
    plan = slim.plan(model, images[:1], ratio=2 / 14)
    assert plan.removed == {"1": [2, 6]}
    thin = plan.apply(model)
    recovered = recover(model, thin, plan, images)
    with torch.no_grad():
        expected, lost, found = model(other), thin(other), recovered.model(other)
    assert (lost - expected).abs().max() > 0.01 * expected.abs().max()
    assert (found - expected).abs().max() < 1e-12 * expected.abs().max()
    assert recovered.folded == {"3": 2} and not recovered.at_borders


def test_padding_makes_a_fold_approximate_and_it_says_so() -> None:
    model, images, _ = folded(padding=1)
    plan = slim.plan(model, images[:1], ratio=2 / 14)
    recovered = recover(model, plan.apply(model), plan, images)
    assert recovered.at_borders == ["3"] and "3" in str(recovered).splitlines()[1]
    assert recovered.distance["regression"] < 0.2 * recovered.distance["none"]


def test_least_squares_against_torch() -> None:
    """A second implementation: F.unfold and torch.linalg.lstsq."""
    torch.manual_seed(0)
    x, target = torch.randn(40, 3, 9, 9, dtype=torch.float64), torch.randn(40, 5, 5, 5, dtype=torch.float64)
    weight = torch.randn(5, 3, 3, 3, dtype=torch.float64)
    arguments = {"input": x, "weight": weight, "stride": 2, "padding": 1}
    made = regression.fit_layer(
        LayerCall("product", "weight", torch.conv2d, arguments, lambda: x), target, intercept=True
    )
    assert made is not None and made.bias is not None
    rows = nn.functional.unfold(x, 3, padding=1, stride=2).transpose(1, 2).reshape(-1, 27)
    rows = torch.cat([rows, torch.ones(len(rows), 1)], 1)
    answer = torch.linalg.lstsq(rows, target.flatten(2).transpose(1, 2).reshape(-1, 5)).solution
    best = (rows @ answer - target.flatten(2).transpose(1, 2).reshape(-1, 5)).square().sum()
    fitted = torch.conv2d(x, made.weight, made.bias, stride=2, padding=1)
    missed = (fitted - target).square().sum()
    assert best <= missed < 1.01 * best  # the ridge costs a little


@pytest.mark.parametrize("intercept", [True, False])
def test_rows_and_moments_give_the_same_weights(intercept: bool) -> None:
    """What is computed where there are fewer rows than features is what the moments give."""
    torch.manual_seed(0)
    chunks = [
        (torch.randn(2, 9, n, dtype=torch.float64) + 3, torch.randn(2, 4, n, dtype=torch.float64)) for n in (5, 7, 6)
    ]
    old = torch.randn(2, 4, 9, dtype=torch.float64)
    moments = regression.Moments.of(iter(chunks[:2])) + regression.Moments.of(iter(chunks[2:]))
    rows = regression.Rows.of(iter(chunks[:2])) + regression.Rows.of(iter(chunks[2:]))
    assert torch.allclose(moments.u, rows.u) and torch.allclose(moments.t, rows.t)
    if not intercept:
        moments, rows = moments.about_zero(), rows.about_zero()
    assert moments.variance() == pytest.approx(rows.variance())
    assert moments.missed(old) == pytest.approx(rows.missed(old))
    for ridge in (1e-3, 1.0):
        first, second = moments.solve(old, ridge), rows.solve(old, ridge)
        assert first is not None and second is not None and torch.allclose(first, second, atol=1e-9)


def test_a_wide_layer_costs_little() -> None:
    """96 rows of 6,000 features: no matrix of features × features is made."""
    torch.manual_seed(0)
    x, weight = torch.randn(96, 6000), torch.randn(8, 6000) / 80
    layer = LayerCall("product", "weight", nn.functional.linear, {"input": x, "weight": weight}, lambda: x)
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        made = regression.fit_layer(layer, x @ (weight + 0.01 * torch.randn(8, 6000)).T, intercept=True)
    assert made is not None and made.missed <= made.missed_before
    assert counter.get_total_flops() < 2 * 6000 * 6000 * 48 / 4  # a quarter of one such matrix


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_patches_are_what_the_layer_reads(dims: int) -> None:
    """The fit of a layer to its own output, from other weights, gives its own weights."""
    torch.manual_seed(0)
    x = torch.randn(24, 2, *[7] * dims, dtype=torch.float64)
    for kind, groups, stride, padding, dilation in itertools.product("ct", (1, 2), (1, 2), (0, 1), (1, 2)):
        if kind == "t" and groups == 2:
            continue
        cls = getattr(nn, f"Conv{'Transpose' if kind == 't' else ''}{dims}d")
        extra = {"output_padding": 1} if kind == "t" and stride == 2 else {}
        layer = cls(2, 4, 2, stride=stride, padding=padding, dilation=dilation, groups=groups, **extra).double()
        function = getattr(torch, f"conv_transpose{dims}d" if kind == "t" else f"conv{dims}d")
        given = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups, **extra}
        start = torch.zeros_like(layer.weight)
        with torch.no_grad():
            visited = LayerCall("product", "weight", function, {"input": x, "weight": start, **given}, lambda: x)
            made = regression.fit_layer(visited, layer(x), intercept=True)
        assert made is not None and made.bias is not None
        assert torch.allclose(made.weight, layer.weight, atol=1e-6), (kind, groups, stride, padding, dilation)
        assert torch.allclose(made.bias, layer.bias, atol=1e-6)


def test_nothing_gets_worse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the fits do harm, the network stays as it is, bit for bit."""
    model, images, _ = folded(padding=1)
    plan = slim.plan(model, images[:1], ratio=0.4)
    thin = plan.apply(model)

    def harm(layer: LayerCall, target: Tensor, intercept: bool) -> regression.Fit:
        return regression.Fit(layer.arguments["weight"] * -5, None, 1.0, 1.0)

    monkeypatch.setattr(recovery, "fit_layer", harm)
    monkeypatch.setattr(recovery._Work, "_match_statistics", lambda self, layer, before: layer.input.mul_(-3))
    recovered = recover(model, thin, plan, images)
    assert not recovered.folded and not recovered.missed and len(str(recovered).splitlines()) == 1
    assert recovered.chosen == "none" and min(recovered.distance.values()) == recovered.distance["none"]
    for name, tensor in thin.state_dict().items():
        assert torch.equal(recovered.model.state_dict()[name], tensor), name


def test_what_divergence_does_not_see_counts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs that move away all together have the same softmax; they aren't closer for it."""
    model, images, _ = folded(padding=1)
    plan = slim.plan(model, images[:1], ratio=0.4)
    thin = plan.apply(model)
    side_by_side = recovery.side_by_side

    def shifted(model: nn.Module, thin: Any, *more: Any) -> None:
        side_by_side(model, thin, *more)
        with torch.no_grad():
            thin[-1].bias += 100

    monkeypatch.setattr(recovery, "side_by_side", shifted)
    recovered = recover(model, thin, plan, images)
    assert min(recovered.distance.values()) < recovered.distance["none"] and recovered.chosen == "none"


@pytest.mark.parametrize("outputs", [1, 2])
def test_a_single_output_is_no_class(outputs: int) -> None:
    model, images, other = folded(padding=1)
    model[-1] = nn.Linear(6, outputs).double()
    plan = slim.plan(model, images[:1], ratio=0.3)
    thin = plan.apply(model)
    recovered = recover(model, thin, plan, images)
    assert recovered.chosen == "regression" and recovered.distance["regression"] < 0.5 * recovered.distance["none"]
    with torch.no_grad():
        lost, found = ((network(other) - model(other)).square().sum() for network in (thin, recovered.model))
    assert found < 0.5 * lost


def test_a_constant_is_told_only_where_it_is_folded() -> None:
    """Not where the reader can't take one up; of a grouped reader, those that the groups left read."""
    model, images, _ = folded(padding=0)
    norm = model[4]
    model[3], model[4] = nn.Conv2d(C, 6, 3, bias=False).double(), nn.ReLU()
    plan = slim.plan(model, images[:1], ratio=4 / 8)
    assert {2, 6} < set(plan.removed["1"])
    recovered = recover(model, plan.apply(model), plan, images)
    assert recovered.chosen == "regression" and "3" in recovered.missed
    assert not recovered.folded and not recovered.at_borders
    model[3], model[4] = nn.Conv2d(C, 6, 3, groups=2, padding=1).double(), norm
    plan = slim.plan(model, images[:1], ratio=2 / 14)
    assert plan.removed == {"1": [2, 6]}  # the same place in both groups
    recovered = recover(model, plan.apply(model), plan, images)
    assert recovered.folded == {"3": 2} and recovered.at_borders == ["3"]


def test_a_layer_that_sees_one_batch_of_all_images() -> None:
    """Its input has no dimension of images: the halves that judge the ridge are rows of it."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, C, 3), nn.BatchNorm2d(C), nn.ReLU())
            self.fc = nn.Linear(C, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.stem(x).mean((2, 3))[None])[0]

    torch.manual_seed(0)
    model, images = lively(Net()), torch.randn(64, 3, 8, 8, dtype=torch.float64)
    plan = slim.plan(model, images[:1], ratio=0.4)
    recovered = recover(model, plan.apply(model), plan, images)
    assert recovered.chosen == "regression" and not recovered.left


def test_images_are_shuffled_and_no_more_than_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder lists its images by class: those that judge are drawn from all."""
    images = {"x": torch.arange(100.0)[:, None, None, None].expand(-1, 3, 4, 6), "y": torch.arange(100.0)}
    found, count = calibration.drawn(images, 8, "recovery")
    assert count == 100 and torch.equal(found["y"], found["x"][:, 0, 0, 0])
    assert sorted(found["y"].tolist()) == list(range(100)) and 20 < found["y"][75:].mean() < 80
    again, _ = calibration.drawn(images, 8, "recovery")
    assert torch.equal(found["y"], again["y"])
    monkeypatch.setattr(calibration, "PIXELS", 30 * 4 * 6)
    assert calibration.drawn(images, 8, "recovery")[1] == 30
    model, some, _ = folded(padding=0)
    plan = slim.plan(model, some[:1], ratio=0.2)
    monkeypatch.setattr(calibration, "PIXELS", 12 * 10 * 10)
    recovered = recover(model, plan.apply(model), plan, some)
    assert recovered.images == 12 and "on 12 images" in str(recovered)


@pytest.mark.parametrize("seed", range(6))
def test_random_networks(seed: int) -> None:
    """Closer to the original on images that recovery never saw; both networks as they were, shapes as they were."""
    torch.manual_seed(seed)
    model = RandomNet(seed)
    images, other = torch.randn(96, 3, 16, 16), torch.randn(64, 3, 16, 16)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight)
            nn.init.normal_(module.bias, std=0.3)
    with torch.no_grad():
        for _ in range(20):
            model(images)  # statistics that fit
    model.eval()
    model.fc.train()
    plan = slim.plan(model, images[:1], ratio=0.3)
    thin = plan.apply(model)
    state = copy.deepcopy([model.state_dict(), thin.state_dict()])
    recovered = recover(model, thin, plan, images)
    for before, network in zip(state, (model, thin)):
        assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    shapes = {name: (t.shape, t.dtype) for name, t in thin.state_dict().items()}
    assert {name: (t.shape, t.dtype) for name, t in recovered.model.state_dict().items()} == shapes
    assert [m.training for m in recovered.model.modules()] == [m.training for m in model.modules()]
    assert recovered.chosen != "none"
    with torch.no_grad():
        expected = model(other)
        lost, found = ((network(other) - expected).square().sum() for network in (thin, recovered.model))
    assert found < 0.6 * lost
    assert not recovered.left


def test_a_layer_used_twice_is_left_alone() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Sequential(nn.Conv2d(3, C, 3, padding=1), nn.BatchNorm2d(C), nn.ReLU())
            self.shared = nn.Conv2d(C, C, 3, padding=1)
            self.fc = nn.Linear(C, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.shared(self.shared(self.first(x)).relu()).mean((2, 3)))

    torch.manual_seed(0)
    model = lively(Twice()).float()
    images = torch.randn(32, 3, 8, 8)
    plan = slim.plan(model, images[:1], layer_ratios={"first.1": 0.0}, ratio=0.0)
    recovered = recover(model, plan.apply(model), plan, images)
    assert recovered.left == {"shared": "used more than once"}


def test_inputs_of_any_form() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, C, 3), nn.BatchNorm2d(C), nn.ReLU(), nn.Conv2d(C, 2, 1))

        def forward(self, x: Tensor, scale: Tensor) -> dict[str, Tensor]:
            return {"map": self.stem(x) * scale[:, None, None, None]}

    torch.manual_seed(0)
    model = lively(Two()).float()
    inputs = {"x": torch.randn(24, 3, 8, 8), "scale": torch.rand(24)}
    plan = slim.plan(model, {key: value[:1] for key, value in inputs.items()}, ratio=0.4)
    recovered = recover(model, plan.apply(model), plan, inputs)
    assert recovered.distance["regression"] < 0.5 * recovered.distance["none"]  # relative squared error of maps


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (torch.randn(3, 3, 10, 10), "at least 8"),
        (torch.randn(16, 4, 10, 10), "can't run on these images"),
        ([], "there are no images: expected at least one batch"),
        (torch.ones(16, 3, 10, 10).index_fill(0, torch.tensor(5), torch.inf), "image 5 has values that aren't finite"),
    ],
)
def test_mistakes_in_one_line(images: Any, said: str) -> None:
    model, good, _ = folded(padding=0)
    plan = slim.plan(model, good[:1], ratio=0.2)
    with pytest.raises(SlimError, match=said) as error, warnings.catch_warnings():
        recover(model, plan.apply(model), plan, images.double() if isinstance(images, Tensor) else images)
    assert "\n" not in str(error.value)


def test_networks_that_are_not_the_plans() -> None:
    model, good, _ = folded(padding=0)
    plan, more = (slim.plan(model, good[:1], ratio=ratio) for ratio in (0.2, 0.4))
    thin = plan.apply(model)
    with pytest.raises(SlimError, match=r"thin isn't what the plan makes of the model: 0\.weight is \[8, 3, 3, 3\]"):
        recover(model, model, plan, good)
    with pytest.raises(SlimError, match="the plan isn't of this model: 0"):
        recover(thin, thin, plan, good)
    with pytest.raises(SlimError, match="thin isn't what the plan makes"):
        recover(model, thin, more, good)
    with pytest.raises(SlimError, match="held_out 'a' is out of range"):
        recover(model, thin, plan, good, held_out="a")  # type: ignore[arg-type]
    with torch.no_grad():
        model[-1].bias[0] = torch.nan
    with pytest.raises(SlimError, match="the model's outputs on these images aren't finite"):
        recover(model, thin, plan, good)


def test_a_wide_system_is_solved_to_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Factored in float32 and refined; where that can't do it, factored in float64."""
    torch.manual_seed(0)
    rows = torch.randn(1, 64, 400, dtype=torch.float64)
    matrix, right = rows.mT @ rows / 64, torch.randn(1, 400, 3, dtype=torch.float64)
    monkeypatch.setattr(regression, "WIDE", 400)
    for ridge in (1.0, 1e-3, 1e-6, 1e-9):
        added = torch.tensor([ridge], dtype=torch.float64)
        found = regression._solved(matrix, added, right)
        truth = torch.linalg.solve(matrix + ridge * torch.eye(400, dtype=torch.float64), right)
        assert found is not None and (found - truth).norm() < 1e-4 * truth.norm(), ridge


@pytest.mark.parametrize("features", [8, 40])
def test_a_product_in_blocks(features: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regression, "BLOCK", 16)
    u = torch.randn(2, features, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    gram = regression._Gram()
    for rows in u.split(20, dim=2):
        gram.add(rows)
    torch.testing.assert_close(gram.total(), u @ u.mT)


@pytest.mark.parametrize("noise", [0.0, 0.03, 1.0])
def test_the_search_for_a_ridge_stops_where_nothing_better_follows(noise: float) -> None:
    g = torch.Generator().manual_seed(0)
    mixed, weight = torch.randn(60, 60, generator=g), torch.randn(4, 60, generator=g)
    halves = []
    for _ in range(2):
        u = mixed @ torch.randn(1, 60, 150, generator=g).double().float()
        t = weight @ u + noise * mixed.norm() * torch.randn(1, 4, 150, generator=g)
        halves.append(regression.Moments.of(iter([(u.double(), t.double())])))
    old = torch.zeros(1, 4, 60, dtype=torch.float64)
    found = regression._search(halves[0], halves[1], old)
    solved = {ridge: halves[0].solve(old, ridge) for ridge in regression.RIDGES}
    every = {ridge: halves[1].missed(change) for ridge, change in solved.items() if change is not None}
    assert min(found.values()) <= 1.001 * min(*every.values(), found[math.inf])
    assert len(found) < 9 or noise < 1


def test_it_says_how_many_images_would_be_enough() -> None:
    torch.manual_seed(0)
    model = lively(nn.Sequential(nn.Conv2d(3, C, 3), nn.BatchNorm2d(C), nn.Flatten(), nn.Linear(C * 64, 4)))
    images = (torch.randn(64, 6) @ torch.randn(6, 300)).double().reshape(64, 3, 10, 10)  # what is lost can be told
    plan = slim.plan(model, images, ratio=0.25)
    recovered = recover(model, plan.apply(model), plan, images)
    assert recovered.chosen == "regression"
    assert recovered.few == {"3": 1024}  # for 6 × 64 features, of which 48 images are too few by 16
    assert "more features than places in 3: about 1,024 images would be enough" in str(recovered)


class Keeps(nn.Module):
    """A layer under the old weight norm, whose weight lies in an attribute, and a state that forward replaces."""

    def __init__(self) -> None:
        super().__init__()
        first = torch.nn.utils.weight_norm(nn.Conv2d(3, 16, 3))
        self.body, self.head = nn.Sequential(first, nn.BatchNorm2d(16), nn.ReLU()), nn.Conv2d(16, 4, 1)
        self.seen: Any = None

    def forward(self, x: Tensor) -> Tensor:
        self.seen = self.body(x)
        if self.seen.shape[0] == 9:
            raise IndexError("nine of them")
        return self.head(self.seen).mean((2, 3))


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_what_a_forward_pass_leaves_in_modules_is_no_obstacle() -> None:
    torch.manual_seed(0)
    model = Keeps().eval()
    nn.init.uniform_(model.get_parameter("body.1.weight"), 0.1, 1)
    images = torch.randn(32, 3, 8, 8)
    model(images[:5]).sum().backward()
    plan = slim.plan(model, images[:2], ratio=0.4)
    thin = plan.apply(model)
    recovered = slim.recover(model, thin, plan, images)
    assert recovered.distance[recovered.chosen] <= recovered.distance["none"]
    assert len(model.seen) == 5  # as it was
    merged = slim.merge(model, thin, plan, images[:2])
    assert merged(images).shape == (32, 4)
    with pytest.raises(slim.SlimError, match="can't run on these images: nine of them"):
        slim.recover(model, thin, plan, images[:12])
