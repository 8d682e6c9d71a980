"""The check must be able to see: every fault put into a rebuilt network is caught."""

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
import torchvision
from networks import randomise
from torch import Tensor, nn

import slim
from slim.prune import verify as verification
from slim.prune.proof import layers
from slim.prune.verify import Proof
from slim.workbench.models import build

Fault = Callable[[Tensor, int, torch.Generator], Tensor]
CASES: dict[str, Callable[[], nn.Module]] = {
    "resnet20": lambda: build("slim:resnet20", num_classes=10, gamma=None),
    "densenet40": lambda: build("slim:densenet40", num_classes=10, gamma=None),
    "mobilenet_v3_small": torchvision.models.mobilenet_v3_small,
    "shufflenet_v2_x0_5": torchvision.models.shufflenet_v2_x0_5,
}
X = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(3))
LARGER = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))  # where 32 pixels end as one


def swap(tensor: Tensor, dim: int, g: torch.Generator) -> Tensor:
    i, j = torch.randperm(tensor.shape[dim], generator=g)[:2].tolist()
    order = list(range(tensor.shape[dim]))
    order[i], order[j] = order[j], order[i]
    return tensor.index_select(dim, torch.tensor(order))


def drop(tensor: Tensor, dim: int, g: torch.Generator) -> Tensor:
    i = int(torch.randint(tensor.shape[dim], (1,), generator=g))
    return tensor.index_fill(dim, torch.tensor([i]), 0)


def shift(tensor: Tensor, dim: int, g: torch.Generator) -> Tensor:
    return tensor.roll(1, dim)


@pytest.mark.parametrize("fault", [swap, drop, shift])
@pytest.mark.parametrize("case", CASES)
def test_every_fault_is_caught(case: str, fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also by the activations alone, which know nothing of the weights."""
    model = randomise(CASES[case]()).eval()
    x = X if case in ("resnet20", "densenet40") else LARGER
    plan = slim.plan(model, x, ratio=0.4)
    thin = plan.apply(model)
    assert slim.verify(model, thin, plan, x) < 1e-10
    g = torch.Generator().manual_seed(0)
    places = [
        (n, d)
        for n, p in thin.named_parameters()
        for d in range(min(p.dim(), 2))
        if p.shape[d] > 1 and p.unique().numel() > 1
    ]
    for i in torch.randperm(len(places), generator=g)[:6].tolist():
        name, dim = places[i]
        broken = copy.deepcopy(thin)
        tensor = broken.get_parameter(name)
        tensor.data = fault(tensor.data, dim, g)
        if torch.equal(tensor, thin.get_parameter(name)):
            continue
        with pytest.raises(slim.SlimError, match="differs"):
            slim.verify(model, broken, plan, x)
        with monkeypatch.context() as blind:
            blind.setattr(verification, "_same_weights", lambda *_: None)
            with pytest.raises(slim.SlimError, match="differs from the masked original"):
                slim.verify(model, broken, plan, x)


def test_a_wrong_plan_is_caught() -> None:
    """Weights cut as the plan says, but the plan cuts a reader in another place than the layer that it reads."""
    model = randomise(CASES["resnet20"]()).eval()
    plan = slim.plan(model, X, ratio=0.4)
    name = next(n for n, cut in plan.cuts.items() if n.endswith("conv2.weight") and 1 in cut)
    gone = plan.cuts[name][1]
    width = plan.shapes[name][1]
    plan.cuts[name][1] = sorted((i + 1) % width for i in gone)
    with pytest.raises(slim.SlimError, match="differs from the masked original first in"):
        slim.verify(model, plan.apply(model), plan, X)


class Insists(nn.Module):
    """Forward code that takes no float64, which it says, or that fails on it for another reason."""

    full_precision: ClassVar[set[bool]] = set()  # whether a GPU would have multiplied numbers as they are, in all runs

    def __init__(self, says: str) -> None:
        super().__init__()
        self.says = says
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.float64:
            raise RuntimeError(self.says)
        self.full_precision.add(
            not torch.backends.cudnn.allow_tf32 and torch.get_float32_matmul_precision() == "highest"
        )
        out: Tensor = self.body(x)
        return out


def test_forward_code_that_takes_no_float64_is_checked_in_its_own_precision() -> None:
    model = randomise(Insists("expected m1 and m2 to have the same dtype, but got: double != float")).eval()
    plan = slim.plan(model, X, ratio=0.5)
    model.full_precision.clear()
    torch.set_float32_matmul_precision("high")
    try:
        assert slim.verify(model, plan.apply(model), plan, X) < 1e-4
        assert Insists.full_precision == {True}
        assert torch.backends.cudnn.allow_tf32 and torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
    thin = plan.apply(model)
    thin.get_parameter("body.0.weight").data[0, 0] += 1e-2
    with pytest.raises(slim.SlimError, match="holds other values"):
        slim.verify(model, thin, plan, X)
    model.says = "out of luck"
    with pytest.raises(slim.SlimError, match="out of luck"):
        slim.verify(model, plan.apply(model), plan, X)


def test_an_unpruned_or_trained_network_is_refused() -> None:
    model = randomise(CASES["resnet20"]()).eval()
    plan = slim.plan(model, X, ratio=0.4)
    with pytest.raises(slim.SlimError, match="has shape"):
        slim.verify(model, copy.deepcopy(model), plan, X)
    thin = plan.apply(model)
    next(p for p in thin.parameters() if p.dim() == 4).data += 1e-3
    with pytest.raises(slim.SlimError, match="holds other values"):
        slim.verify(model, thin, plan, X)


def test_masking_what_the_plan_does_not_remove_is_a_difference() -> None:
    model = randomise(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1))).eval()
    plan = slim.plan(model, X, ratio=0.5)
    thin = plan.apply(model)
    plan.removed["1"] = plan.removed["1"][:-1]
    with pytest.raises(slim.SlimError, match="contradicts itself: the channels that it removes of 1"):
        slim.verify(model, thin, plan, X)
    plan.masks = {name: {0: plan.removed["1"]} for name in ("1.weight", "1.bias")}
    with pytest.raises(slim.SlimError, match="differs from the masked original"):
        slim.verify(model, thin, plan, X)


class Rounded(nn.Module):
    """Its second output is nothing but rounding: the sign of what two ways to the same sum differ by."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 200, 3), nn.BatchNorm2d(200), nn.ReLU(), nn.Conv2d(200, 64, 3))

    def forward(self, x: Tensor) -> Any:
        y = self.body(x)
        return y, (y.sum(2).sum(2) - y.sum((2, 3))).sign()


def test_what_follows_from_rounding_is_left_out_and_nothing_else() -> None:
    model = randomise(Rounded()).eval()
    plan = slim.plan(model, X, ratio=0.5)
    thin = plan.apply(model)
    assert (model(X)[1] != 0).any(), "this output was to show rounding"
    assert slim.verify(model, thin, plan, X) < 1e-10
    for name in ("body.0.weight", "body.3.weight", "body.3.bias"):
        broken = copy.deepcopy(thin)
        broken.get_parameter(name).data = swap(broken.get_parameter(name).data, 0, torch.Generator().manual_seed(0))
        with pytest.raises(slim.SlimError, match="holds other values"):
            slim.verify(model, broken, plan, X)
        with pytest.MonkeyPatch.context() as blind:
            blind.setattr(verification, "_same_weights", lambda *_: None)
            with pytest.raises(slim.SlimError, match="differs from the masked original first in body"):
                slim.verify(model, broken, plan, X)


def test_neither_network_is_changed() -> None:
    model = randomise(CASES["mobilenet_v3_small"]()).train()
    plan = slim.plan(model, X, ratio=0.4)
    thin = plan.apply(model)
    before = [copy.deepcopy(m.state_dict()) for m in (model, thin)]
    slim.verify(model, thin, plan, X)
    for m, was in zip((model, thin), before):
        assert m.training and all(torch.equal(v, was[k]) for k, v in m.state_dict().items())


def small(*more: nn.Module) -> nn.Module:
    return randomise(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1), *more)).eval()


def poisoned(name: str, value: float) -> tuple[nn.Module, torch.Tensor]:
    """A network and its input, with one value somewhere that isn't a number."""
    model, x = small(), X.clone()
    with torch.no_grad():
        (x if name == "example_inputs" else model.state_dict()[name]).reshape(-1)[0] = value
    return model, x


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["0.weight", "3.bias", "example_inputs"])
def test_what_is_not_finite_proves_nothing(name: str, value: float) -> None:
    """Not even that equal networks are equal: comparisons with NaN would all be left out."""
    sound = small()
    plan = slim.plan(sound, X, ratio=0.5)
    model, x = poisoned(name, value)
    with pytest.raises(slim.SlimError, match=f"{name} has values that aren't finite"):
        slim.verify(model, plan.apply(model), plan, x)


class Log(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.log()


def test_outputs_that_are_not_finite_prove_nothing() -> None:
    model = small(Log())
    plan = slim.plan(model, X, ratio=0.5)
    with pytest.raises(slim.SlimError, match="the masked original isn't finite in output"):
        slim.verify(model, plan.apply(model), plan, X)


def test_infinities_in_a_mask_are_fine() -> None:
    """Attention's: a buffer of -inf above the diagonal."""

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = small()
            self.register_buffer("mask", torch.full((30, 30), -math.inf).triu(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (self.body(x) + self.mask).softmax(-1)

    model = Masked().eval()
    plan = slim.plan(model, X, ratio=0.5)
    assert slim.verify(model, plan.apply(model), plan, X) < 1e-10


def test_it_says_how_much_it_compared() -> None:
    model = small()
    plan = slim.plan(model, X, ratio=0.5)
    proof = slim.verify(model, plan.apply(model), plan, X)
    assert (proof.layers, proof.places, proof.compared) == (3, 4, 4)
    assert "3 layers, 4 of 4 places" in str(proof)


def test_too_little_to_compare_is_no_proof() -> None:
    """Most of what this network gives is rounding."""

    class Mostly(Rounded):
        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            y = self.body(x)
            return [y, *((y * n * 1e20).sin() for n in range(1, 9))]

    model = randomise(Mostly()).eval()
    plan = slim.plan(model, X, ratio=0.5)
    thin: Any = plan.apply(model)
    thin.body.register_forward_hook(lambda module, args, out: out * (1 + 3e-16))  # another machine's rounding
    with pytest.raises(slim.SlimError, match=r"can't be proved equal: 8 of 12 layers and outputs"):
        slim.verify(model, thin, plan, X)


class Table(nn.Module):
    """Floats that are numbers of rows: noise, or a statistic of them, would lead out of the table."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.first = nn.Embedding(10, 4), nn.Linear(5, 32)
        self.norm, self.last = nn.BatchNorm1d(32), nn.Linear(32, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = self.rows(x[:, 0].long())
        return self.last(self.norm(self.first(torch.cat([rows, x[:, 1:]], 1))).relu())


class Positive(nn.Module):
    """Takes the logarithm of its input, as networks for sound do."""

    def __init__(self) -> None:
        super().__init__()
        self.body = small()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not bool((x > 0).all()):
            raise KeyError("x")
        return self.body(x.log())


@pytest.mark.parametrize(
    "model, x",
    [(Table(), torch.cat([torch.full((8, 1), 9.0), torch.randn(8, 1)], 1)), (Positive(), X.abs() + 0.1)],
    ids=["indices among floats", "positive numbers only"],
)
def test_inputs_that_take_no_noise_are_taken_as_they_are(model: nn.Module, x: torch.Tensor) -> None:
    model = randomise(model).eval()
    plan = slim.plan(model, x, ratio=0.5)
    assert slim.verify(model, plan.apply(model), plan, x) < 1e-10


def test_inputs_that_the_network_can_not_take_are_one_line() -> None:
    model = small()
    plan = slim.plan(model, X, ratio=0.5)
    with pytest.raises(
        slim.SlimError, match=r"the model can't be run on example_inputs: RuntimeError: .*3 channels"
    ) as caught:
        slim.verify(model, plan.apply(model), plan, torch.randn(2, 5, 8, 8))
    assert "\n" not in str(caught.value)


def test_a_proof_travels_between_processes() -> None:
    proof = Proof(1e-15, layers=3, places=5, compared=4)
    again = pickle.loads(pickle.dumps(proof))
    assert (again, again.layers, again.places, again.compared) == (1e-15, 3, 5, 4)


class BySize(nn.Module):
    """A network that takes other steps on large images."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU())
        self.finer, self.head = nn.Conv2d(8, 8, 3, stride=2), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return self.head(self.finer(y) if x.shape[-1] > 100 else y).mean((2, 3))


LARGE = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("fault", [swap, drop, shift])
def test_a_part_of_a_large_image_is_enough(fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    """As strict, and nothing is computed for all of it, or twice."""
    model = randomise(torchvision.models.mobilenet_v3_small()).eval()
    plan = slim.plan(model, LARGE, ratio=0.4)
    thin = plan.apply(model)
    sizes: list[tuple[int, ...]] = []

    def noting(model: nn.Module, x: Tensor) -> Any:
        sizes.append(tuple(x.shape))
        return model(x)

    with monkeypatch.context() as watched:
        watched.setattr(layers, "call", noting)
        assert slim.verify(model, thin, plan, LARGE) < 1e-10
    assert sizes == [(3, 3, 64, 64)] * 2
    g = torch.Generator().manual_seed(1)
    broken = copy.deepcopy(thin)
    convolution = next(m for n, m in broken.named_modules() if n == "features.8.block.3.0")
    assert isinstance(convolution, nn.Conv2d)
    convolution.weight.data = fault(convolution.weight.data, 1, g)
    monkeypatch.setattr(verification, "_same_weights", lambda *_: None)
    with pytest.raises(slim.SlimError, match=r"differs from the masked original first in features\.8\.block\.3\.0"):
        slim.verify(model, broken, plan, LARGE)


def test_all_of_an_image_is_looked_at_where_a_part_takes_other_steps() -> None:
    torch.manual_seed(0)
    model = randomise(BySize()).eval()
    plan = slim.plan(model, LARGE, ratio=0.5)
    assert slim.verify(model, plan.apply(model), plan, LARGE).layers == 4  # `finer` among them


def test_a_norm_that_serves_two_layers_has_the_statistics_of_the_first() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 4, 1)
            self.norm = nn.BatchNorm2d(8)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.norm(self.b(self.norm(self.a(x)).relu())).relu())

    torch.manual_seed(0)
    model = randomise(Shared()).eval()
    plan = slim.plan(model, X, ratio=0.5)
    proof = slim.verify(model, plan.apply(model), plan, X)
    assert proof < 1e-10 and proof.compared == proof.places == 6


def test_one_sample_without_a_batch() -> None:
    """Whose channels come first."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), torch.nn.ReLU(), torch.nn.Conv2d(16, 2, 3))
    image = torch.randn(3, 12, 12)
    plan = slim.plan(model, image, ratio=0.5)
    assert slim.verify(model, plan.apply(model), plan, image) < 1e-10


def test_a_sparse_buffer_is_compared() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)).eval()
    model.register_buffer("places", torch.eye(3).to_sparse())
    x = torch.randn(2, 3, 8, 8)
    plan = slim.plan(model, x, ratio=0.5, score=slim.Random(seed=0))
    thin = plan.apply(model)
    assert slim.verify(model, thin, plan, x) < 1e-10
    thin.places = 2 * thin.get_buffer("places")
    with pytest.raises(slim.SlimError, match="places holds other values"):
        slim.verify(model, thin, plan, x)


class FoldedHeads(nn.Module):
    """Heads as samples: a layer weighs the places of each. A constant keeps the channels of a head, so heads go."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.width = 4, 4
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU())
        self.weigh, self.out = nn.Conv2d(4, 1, 1), nn.Conv2d(16, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        parts = x.view(len(x) * self.heads, self.width, *x.shape[2:])
        parts = parts * (self.weigh(parts) / math.sqrt(self.width)).sigmoid()
        return self.out(x + parts.view(len(x), self.heads * self.width, *x.shape[2:]))


def test_layers_to_which_heads_are_samples_are_left_out() -> None:
    model = randomise(FoldedHeads()).eval()
    plan = slim.plan(model, X, ratio=0.5, round_to=1)
    thin: Any = plan.apply(model)
    assert thin.heads == 2 and thin.width == 4
    proof = slim.verify(model, thin, plan, X)
    assert proof < 1e-10 and proof.compared == proof.places - 1


class OneOfOne(nn.Module):
    """Takes one image, of which a norm sees one place: statistics can't be fitted to what has no spread."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.out = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 1:
            raise ValueError("one image at a time")
        return self.out(self.norm(self.conv(x).mean((2, 3), keepdim=True)))


def test_statistics_that_can_not_be_fitted_stay_as_they_are() -> None:
    model = randomise(OneOfOne()).eval()
    plan = slim.plan(model, X[:1], ratio=0.5)
    proof = slim.verify(model, plan.apply(model), plan, X[:1])
    assert proof < 1e-10 and (proof.layers, proof.compared) == (3, 4)
