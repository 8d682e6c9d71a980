"""Networks without BatchNorm: a channel goes wherever what makes it can be set to zero.

The truth is the original with zeros in all that makes the pruned channels, run in float64.
"""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from networks import cbr, difference, masked, net, randomise
from torch import Tensor, nn

import slim
from slim.trace.attention import HeadwiseAttention

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def stack(*norms: Callable[[int], nn.Module], head: int = 24) -> nn.Module:
    """Two convolutions, each with what makes a norm of its width, and a head."""
    first, second = norms
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3), first(16), nn.ReLU(), nn.Conv2d(16, head, 3), second(head), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * head, 5)),
    )


def nothing(width: int) -> nn.Module:
    return nn.Identity()


class Tokens(nn.Module):
    """Patches as tokens, through attention and an MLP with shortcuts, to a head."""

    def __init__(self, attention: nn.Module, norm: bool = True, **kwargs: Any) -> None:
        super().__init__()
        self.embed, self.attention, self.kwargs = nn.Conv2d(3, 24, 4, 4), attention, kwargs
        self.norms = nn.ModuleList(nn.LayerNorm(24) if norm else nn.Identity() for _ in range(2))
        self.mlp = nn.Sequential(nn.Linear(24, 48), nn.GELU(), nn.Linear(48, 24))
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        y = self.norms[0](x)
        x = x + self.attention(y, y, y, **self.kwargs)[0]
        return self.head((x + self.mlp(self.norms[1](x))).mean(1))


class Fused(nn.Module):
    """Attention over one matrix for queries, keys and values, that stores the number of heads and the size of one."""

    def __init__(self, width: int, heads: int, fused: bool) -> None:
        super().__init__()
        self.heads, self.size, self.inner, self.fused = heads, width // heads, width, fused
        self.scale = self.size**-0.5
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, *others: Tensor) -> tuple[Tensor]:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, self.size).permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused:
            mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        else:
            mixed = (q * self.scale @ k.transpose(-2, -1)).softmax(-1) @ v
        return (self.proj(mixed.transpose(1, 2).reshape(b, n, self.inner)),)


class Heads(nn.Module):
    """Attention that stores the size of a head, of which half of the channels pass for half of the heads."""

    def __init__(self, width: int, heads: int, fused: bool) -> None:
        super().__init__()
        self.size, self.fused = width // heads, fused
        self.scale = self.size**-0.5
        self.q, self.k, self.v, self.proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, *others: Tensor) -> tuple[Tensor]:
        b, n, _ = x.shape
        q, k, v = (layer(x).view(b, n, -1, self.size).transpose(1, 2) for layer in (self.q, self.k, self.v))
        if self.fused:
            mixed = nn.functional.scaled_dot_product_attention(q, k, v, scale=self.scale)
        else:
            mixed = (q @ k.transpose(-2, -1) * self.scale).softmax(-1) @ v
        return (self.proj(mixed.transpose(1, 2).reshape(b, n, -1)),)


MHA: dict[str, Any] = {"embed_dim": 24, "num_heads": 4, "batch_first": True}


class Across(nn.Module):
    """Attention to another stream, whose width is its own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 24, 4, 4), nn.Conv2d(3, 16, 4, 4)
        self.attention = nn.MultiheadAttention(24, 4, kdim=16, vdim=16, batch_first=True)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        queries, keys = (conv(x).relu().flatten(2).transpose(1, 2) for conv in (self.a, self.b))
        return self.head(self.attention(queries, keys, keys)[0])


class Padded(nn.Module):
    """Sequences of different lengths through an encoder, which torch makes nested tensors of in inference."""

    def __init__(self) -> None:
        super().__init__()
        self.lines, self.head = nn.Linear(16, 24), nn.Linear(24, 5)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(24, 4, 32, batch_first=True), 2)

    def forward(self, x: Tensor) -> Tensor:
        padding = torch.arange(16) >= torch.arange(16 - len(x), 16)[:, None]
        return self.head(self.encoder(self.lines(x.mean(1)), src_key_padding_mask=padding))


class Placed(nn.Module):
    """A row of a table added to each pixel of a line."""

    def __init__(self) -> None:
        super().__init__()
        self.lines, self.places = nn.Linear(16, 24), nn.Embedding(16, 24)
        self.more, self.head = nn.Linear(24, 32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        placed = self.lines(x.mean(1)) + self.places(torch.arange(x.shape[2]))
        return self.head(self.more(placed.relu()).relu())


# name -> (network, kinds of layers that make the channels that count)
KINDS: dict[str, tuple[Callable[[], nn.Module], set[str]]] = {
    "plain": (lambda: stack(nothing, nothing), {"Conv"}),
    "GroupNorm": (lambda: stack(lambda n: nn.GroupNorm(8, n), lambda n: nn.GroupNorm(n // 2, n)), {"GroupNorm"}),
    "GroupNorm without γ": (
        lambda: stack(lambda n: nn.GroupNorm(8, n, affine=False), lambda n: nn.GroupNorm(8, n, affine=False)),
        {"Conv"},
    ),
    "InstanceNorm": (
        lambda: stack(*[lambda n: nn.InstanceNorm2d(n, affine=True)] * 2),
        {"InstanceNorm"},
    ),
    "InstanceNorm without γ": (lambda: stack(nn.InstanceNorm2d, nn.InstanceNorm2d), {"Conv"}),
    "depthwise": (
        lambda: nn.Sequential(
            *(nn.Conv2d(3, 16, 3), nn.ReLU6(), nn.Conv2d(16, 16, 3, groups=16), nn.ReLU6(), nn.Conv2d(16, 24, 1)),
            *(nn.Hardswish(), nn.Conv2d(24, 5, 1)),
        ),
        {"Conv"},
    ),
    "grouped": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 24, 3, groups=4), nn.ReLU(), nn.Conv2d(24, 5, 1)
        ),
        {"Conv"},
    ),
    "transposed": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 16, 3), nn.ReLU(), nn.ConvTranspose2d(16, 12, 2, 2), nn.ReLU(), nn.Conv2d(12, 5, 1)
        ),
        {"Conv"},
    ),
    "linear layers": (
        lambda: nn.Sequential(
            *(nn.Flatten(), nn.Linear(768, 32), nn.GELU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 5))
        ),
        {"Linear"},
    ),
    "a table of places": (Placed, {"Linear", "Embedding"}),
    "LayerNorm": (lambda: Tokens(Fused(24, 4, fused=True)), {"Linear"}),
    "attention with a stored scale": (lambda: Tokens(Fused(24, 4, fused=False)), {"Linear"}),
    "MultiheadAttention": (lambda: Tokens(nn.MultiheadAttention(**MHA), need_weights=False), {"Linear"}),
    "MultiheadAttention, weights unused": (lambda: Tokens(nn.MultiheadAttention(**MHA)), {"Linear"}),
    "MultiheadAttention without LayerNorm": (
        lambda: Tokens(nn.MultiheadAttention(**MHA), norm=False),
        {"Conv", "Linear"},
    ),
    "TransformerEncoderLayer": (
        lambda: nn.Sequential(
            nn.Flatten(2), nn.Linear(256, 24), nn.TransformerEncoderLayer(24, 4, 48, batch_first=True), nn.Linear(24, 5)
        ),
        {"Linear"},
    ),
    "TransformerEncoder, sequences padded": (Padded, {"Linear"}),
    "MultiheadAttention with learned keys": (
        lambda: Tokens(nn.MultiheadAttention(**MHA, add_bias_kv=True), need_weights=False),
        {"Linear"},
    ),
}


@pytest.mark.parametrize("name", KINDS)
def test_thin_is_masked(name: str) -> None:
    make, kinds = KINDS[name]
    torch.manual_seed(0)
    model = make().eval()
    plan = slim.plan(model, X, ratio=0.4)
    thin = plan.apply(model)
    assert set(plan.kinds) == kinds and plan.ratio_achieved > 0.3
    assert difference(model, thin, plan.removed, X) < 1e-12
    assert slim.verify(model, thin, plan, X) < 1e-10
    again = slim.PruningPlan.from_dict(plan.to_dict())
    assert again == plan and slim.verify(model, again.apply(model), again, X) < 1e-10
    thin.train()(X).sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in thin.parameters())


@pytest.mark.parametrize("fused", [False, True])
def test_half_of_the_channels_of_each_head_is_not_half_of_the_heads(fused: bool) -> None:
    model = randomise(Tokens(Heads(24, 4, fused))).eval()
    plan = slim.plan(model, X, ratio=0.5, scope="layer", round_to=1)
    thin = plan.apply(model)
    assert len(plan.removed["attention.v"]) == 12
    assert difference(model, thin, plan.removed, X) < 1e-12
    assert slim.verify(model, thin, plan, X) < 1e-10


class Looking(nn.Module):
    """A network whose forward looks at a value, so that it is traced on numbers, with the kernels that those run."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        assert float(x.abs().max()) > 0
        return self.inner(x)


@pytest.mark.parametrize("stated", [False, True], ids=["by the width", "stated"])
def test_fused_attention_on_numbers_loses_what_it_loses_without(stated: bool) -> None:
    """Whole heads; the channels of one stay where its scale follows from their number."""
    inner = randomise(Tokens(Heads(24, 4, True) if stated else Fused(24, 4, True))).eval()
    without = slim.plan(inner, X, ratio=0.5, keep=["mlp.0"], round_to=1)
    model = Looking(inner)
    plan = slim.plan(model, X, ratio=0.5, keep=["inner.mlp.0"], round_to=1)
    thin: Any = plan.apply(model)
    assert plan.removed == {f"inner.{name}": gone for name, gone in without.removed.items()}
    assert thin.inner.attention.size == 6 and plan.removed["inner.attention.q" if stated else "inner.attention.qkv"]
    assert difference(model, thin, plan.removed, X) < 1e-12


class Parts(nn.Module):
    """The largest of parts of a stored size, however many there are."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 32, 1), nn.BatchNorm2d(32), nn.Conv2d(8, 5, 1)
        self.size = 8

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.stack(self.norm(self.conv(x)).relu().split(self.size, 1)).amax(0))


def test_half_of_each_part_is_not_half_of_the_parts() -> None:
    model = randomise(Parts()).eval()
    plan = slim.plan(model, X, ratio=0.5, round_to=1)
    thin = plan.apply(model)
    assert thin.get_parameter("norm.weight").numel() == 16
    assert difference(model, thin, plan.removed, X) < 1e-12


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("score", [slim.Magnitude(), slim.Taylor(torch.randn(4, 3, 16, 16).double())])
def test_a_transposed_convolution_in_groups_is_masked_in_all_of_them(bias: bool, score: slim.Score) -> None:
    """Its weight holds the places of one group, its bias and what it makes those of all."""
    torch.manual_seed(0)
    head = nn.Sequential(nn.ReLU(), nn.Conv2d(12, 5, 1))
    middle = nn.ConvTranspose2d(18, 12, 2, 2, groups=3, bias=bias)
    model = nn.Sequential(nn.Conv2d(3, 18, 3), nn.ReLU(), middle, *head).double()
    if bias:
        nn.init.ones_(model.get_parameter("2.bias"))
    plan = slim.plan(model, X.double(), ratio=0.4, score=score, layer_ratios={"2": 0.5})
    gone = plan.removed["2"]
    thinner: Any = plan.apply(model).get_submodule("2")
    assert len(gone) == 12 - thinner.out_channels and slim.verify(model, plan.apply(model), plan, X.double()) < 1e-10
    assert slim.PruningPlan.from_dict(plan.to_dict()) == plan
    original = copy.deepcopy(model)
    for name, parameter in model.named_parameters():
        if name.startswith("0"):
            parameter.data[plan.removed.get("0", [])] = 0
    model.get_submodule("2").register_forward_hook(lambda _, __, out: out.index_fill(1, torch.tensor(gone), 0))
    with torch.no_grad():
        assert (model(X.double()) - plan.apply(original)(X.double())).abs().max() < 1e-12


class Spectral(nn.Module):
    """Complex weights for the low frequencies, as neural operators have them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 16, 1), nn.Conv2d(12, 5, 1)
        self.scale = nn.Parameter(0.1 * torch.randn(16, 12, 4, 4, dtype=torch.cfloat))

    def forward(self, x: Tensor) -> Tensor:
        waves = torch.fft.rfft2(self.first(x).relu())
        low = torch.zeros(len(x), self.scale.shape[1], *waves.shape[2:], dtype=waves.dtype, device=x.device)
        low[..., :4, :4] = torch.einsum("bixy,ioxy->boxy", waves[..., :4, :4], self.scale)
        return self.head(torch.fft.irfft2(low, s=x.shape[-2:]).relu())


def test_complex_weights_lose_what_they_read() -> None:
    torch.manual_seed(0)
    model = Spectral().eval()
    plan = slim.plan(model, X, ratio=0.4, round_to=1)
    assert plan.removed["first"] and slim.verify(model, plan.apply(model), plan, X) < 1e-6
    thin = plan.apply(model)
    assert thin.get_parameter("scale").is_complex()
    for name, gone in plan.removed.items():
        if name == "first":
            model.get_parameter("first.weight").data[gone] = 0
            model.get_parameter("first.bias").data[gone] = 0
        else:
            model.scale.data[:, gone] = 0
    with torch.no_grad():
        torch.testing.assert_close(thin(X), model(X), rtol=1e-4, atol=1e-6)


def test_attention_to_another_stream_loses_heads_and_channels() -> None:
    """Each part of the one bias is masked with the weight that it belongs to."""
    torch.manual_seed(0)
    model = Across().eval()
    plan = slim.plan(model, X, ratio=0.5)
    thin = plan.apply(model)
    assert plan.ratio_achieved > 0.45 and slim.verify(model, thin, plan, X) < 1e-10
    masked = copy.deepcopy(model)
    heads = np.flatnonzero(np.bincount(np.array(plan.removed["attention.v_proj_weight"]) // 6, minlength=4) == 6)
    rows = (6 * heads[:, None] + np.arange(6)).ravel()
    with torch.no_grad():
        for name in ("q_proj_weight", "k_proj_weight", "v_proj_weight"):
            assert plan.removed[f"attention.{name}"] == rows.tolist()
            getattr(masked.attention, name)[rows] = 0
        masked.attention.in_proj_bias.view(3, 24)[:, rows] = 0
        for name in plan.removed.keys() & {"a", "b", "attention.out_proj"}:
            layer = masked.get_submodule(name)
            layer.weight[plan.removed[name]], layer.bias[plan.removed[name]] = 0, 0  # type: ignore[operator]
        expected, found = masked.double()(X.double()), thin.double()(X.double())
    assert (expected - found).abs().max() < 1e-12 * expected.abs().max()


@pytest.mark.parametrize("attention", [lambda: nn.MultiheadAttention(**MHA), lambda: Fused(24, 4, fused=True)])
def test_whole_heads_go(attention: Callable[[], nn.Module]) -> None:
    """A head keeps its width, and the scale that follows from it."""
    torch.manual_seed(0)
    model = (
        Tokens(attention(), need_weights=False)
        if isinstance(attention(), nn.MultiheadAttention)
        else Tokens(attention())
    )
    model.eval()
    plan = slim.plan(model, X, ratio=0.5, keep=["mlp.0"])
    thin: Any = plan.apply(model)
    old: Any = model.attention
    heads = "num_heads" if isinstance(old, nn.MultiheadAttention) else "heads"
    kept = getattr(thin.attention, heads)
    assert 0 < kept < getattr(old, heads)
    rows = thin.attention.in_proj_weight if isinstance(old, nn.MultiheadAttention) else thin.attention.qkv.weight
    assert len(rows) == 3 * kept * 6
    assert difference(model, thin, plan.removed, X) < 1e-12


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("cross", [True, False])
@pytest.mark.parametrize("masks", ["none", "boolean", "numbers"])
@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("appended", [{}, {"add_bias_kv": True}, {"add_zero_attn": True}])
def test_headwise_attention_is_torchs(
    batch_first: bool, cross: bool, masks: str, weights: bool, appended: dict[str, bool]
) -> None:
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(12, 3, batch_first=batch_first, **appended).double().eval()
    nn.init.normal_(theirs.in_proj_bias)
    ours = HeadwiseAttention(12, 3, batch_first=batch_first, **appended).double().eval()
    ours.load_state_dict(theirs.state_dict())
    query = torch.randn(2, 5, 12, dtype=torch.float64)
    key = torch.randn(2, 7, 12, dtype=torch.float64) if cross else query
    settings: dict[str, Any] = {"need_weights": weights}
    if masks != "none":
        mask = torch.rand(5, key.shape[1]) < 0.3
        mask[:, 0] = False
        padding = torch.zeros(2, key.shape[1], dtype=torch.bool)
        padding[0, -2:] = True
        settings |= {"attn_mask": mask, "key_padding_mask": padding}
    if masks == "numbers":
        settings = settings | {"attn_mask": torch.randn(5, key.shape[1], dtype=torch.float64), "key_padding_mask": None}
    if not batch_first:
        query, key = query.transpose(0, 1), key.transpose(0, 1)
    key = key if cross else query
    for a, b in zip(theirs(query, key, key, **settings), ours(query, key, key, **settings)):
        assert (a is None and b is None) or torch.allclose(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("weights", [True, False])
def test_headwise_attention_of_one_sequence(weights: bool) -> None:
    """Without a batch, of one token as well."""
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(12, 3).double().eval()
    ours = HeadwiseAttention(12, 3).double().eval()
    ours.load_state_dict(theirs.state_dict())
    for tokens in (5, 1):
        query = torch.randn(tokens, 12, dtype=torch.float64)
        for a, b in zip(
            theirs(query, query, query, need_weights=weights), ours(query, query, query, need_weights=weights)
        ):
            assert (a is None and b is None) or (a.shape == b.shape and torch.allclose(a, b, rtol=1e-10, atol=1e-12))


@pytest.mark.parametrize("name", ["vit", "convnext_tiny", "swin_t"])
def test_torchvision_without_batchnorm(name: str) -> None:
    torch.manual_seed(0)
    vit = {"image_size": 64, "patch_size": 16, "num_layers": 2, "num_heads": 4, "hidden_dim": 64, "mlp_dim": 128}
    model = torchvision.models.VisionTransformer(**vit) if name == "vit" else torchvision.models.get_model(name)
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    x = torch.randn(1, 3, 64, 64)
    plan = slim.plan(model.eval(), x, ratio=0.5)
    thin = plan.apply(model)
    assert plan.ratio_achieved > 0.4
    stays = {
        n: count
        for reason, counts in plan.frozen.items()
        if "native_layer_norm" in reason
        for n, count in counts.items()
    }
    assert stays  # a stream that LayerNorm reads stays, by name
    assert stays == {name: len(model.get_parameter(f"{name}.weight")) for name in stays}
    assert difference(model, thin, plan.removed, x) < 1e-12
    assert slim.verify(model, thin, plan, x) < 1e-10


def test_batchnorm_networks_count_and_remove_batchnorms_alone() -> None:
    model = randomise(torchvision.models.efficientnet_b0()).eval()
    x = torch.randn(1, 3, 64, 64)
    plan = slim.plan(model, x, ratio=0.3)
    norms = {name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert plan.removed.keys() <= norms and plan.kinds.keys() == {"BatchNorm"}
    rest = slim.plan(model, x, ratio=0.3, score=slim.Gamma(rest=True))
    assert rest.kinds["BatchNorm"] == plan.kinds["BatchNorm"] and rest.kinds["Conv"] > 0
    assert "BatchNorm" in str(rest) and "Conv" in str(rest)
    assert difference(model, rest.apply(model), rest.removed, x) < 1e-12


class GivesItsFirstFeatures(nn.Module):
    """All channels of its one BatchNorm are part of the output, so that others are ranked in its place."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second, self.head = (
            *(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Conv2d(16, 24, 3)),
            nn.Linear(24, 5),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.norm(self.first(x)).relu()
        return self.head(self.second(features).relu().mean((2, 3))), features


def test_what_is_not_ranked_as_none_of_its_channels_can_go_is_named() -> None:
    plan = slim.plan(GivesItsFirstFeatures().eval(), X, ratio=0.5, score=slim.Magnitude())
    assert [layer.name for layer in plan.layers] == ["second"]
    assert plan.frozen == {"the model's output": {"norm": 16}}
    frozen = r"layer_ratios 'norm': norm isn't ranked by itself, as its channels are frozen \(the model's output\)"
    with pytest.raises(slim.SlimError, match=frozen):
        slim.plan(GivesItsFirstFeatures().eval(), X, ratio=0.0, layer_ratios={"norm": 0.5}, score=slim.Magnitude())


def test_a_class_with_a_norm_and_a_bare_convolution_is_masked_at_both() -> None:
    torch.manual_seed(0)
    model = randomise(net(lambda s, x: s.a(x + s.bare(x)), bare=nn.Conv2d(16, 16, 1), a=cbr(16, 16))).eval()
    plan = slim.plan(model, X, ratio=0.3)
    assert plan.removed["stem.1"] == plan.removed["bare"] and plan.kinds == {"BatchNorm": 32}
    norms_alone = {name: gone for name, gone in plan.removed.items() if name != "bare"}
    thin = plan.apply(model)
    assert difference(model, thin, plan.removed, X) < 1e-12 < difference(model, thin, norms_alone, X)


def test_optimizer_export_and_recovery_go_on(tmp_path: Any) -> None:
    torch.manual_seed(0)
    model = Tokens(nn.MultiheadAttention(**MHA), need_weights=False)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    model(X).square().sum().backward()
    optimizer.step()
    plan = slim.plan(model.eval(), X, ratio=0.4)
    thin = plan.apply(model)
    images = torch.randn(16, 3, 16, 16)
    recovered = slim.recover(model, thin, plan, images).model
    assert recovered(X).shape == model(X).shape
    plan.prune_optimizer(optimizer, model, thin)
    thin.train()(X).square().sum().backward()
    optimizer.step()
    slim.export_onnx(thin.eval(), X, tmp_path / "thin.onnx")
    assert torch.allclose(masked(model, plan.removed)(X), plan.apply(model)(X), atol=1e-5)


class Turned(nn.Module):
    """A decoder that is the encoder, turned round."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Conv2d(16, 24, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.norm(self.first(x)).relu()).relu()
        return F.conv_transpose2d(F.conv_transpose2d(y, self.second.weight).relu(), self.first.weight)


def test_a_weight_that_is_turned_round_goes_through_files(tmp_path: Any) -> None:
    torch.manual_seed(0)
    model = randomise(Turned()).eval()
    plan = slim.plan(model, X, ratio=0.5, score=slim.Magnitude(), round_to=1)
    assert "second[1]" in plan.removed  # the same weight makes the channels of the decoder
    thin = plan.apply(model)
    zeroed: Any = masked(model, {name: gone for name, gone in plan.removed.items() if name != "second[1]"})
    zeroed.second.weight.data[:, plan.removed["second[1]"]] = 0
    assert torch.allclose(zeroed.double()(X.double()), plan.apply(model.double())(X.double()), rtol=1e-10, atol=1e-12)
    loaded = slim.load(slim.save(tmp_path / "thin.safetensors", thin, plan), model.float())
    assert torch.equal(loaded(X), thin(X))


class WithoutItsBias(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, None, padding=1)


class OfTheBatch(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, None, None, self.weight, self.bias, True)


def test_a_bias_that_is_computed_is_planned_by_what_it_is_made_of() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(16, 16, 3)
    nn.utils.parametrize.register_parametrization(conv, "bias", nn.Tanh())
    model = randomise(nn.Sequential(cbr(3, 16), conv, nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 5, 1))).eval()
    plan = slim.plan(model, X, ratio=0.5, round_to=1)
    assert difference(model, plan.apply(model), plan.removed, X) < 1e-12


@pytest.mark.parametrize("kind", [WithoutItsBias, OfTheBatch])
def test_what_forward_does_not_read_of_a_layer_follows_the_rest(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    conv = (WithoutItsBias if kind is WithoutItsBias else nn.Conv2d)(16, 16, 3)
    norm = (OfTheBatch if kind is OfTheBatch else nn.BatchNorm2d)(16)
    model = randomise(nn.Sequential(cbr(3, 16), conv, norm, nn.ReLU(), nn.Conv2d(16, 5, 1))).eval()
    plan = slim.plan(model, X, ratio=0.5, round_to=1)
    thin: Any = plan.apply(model)
    assert plan.ratio_achieved == 0.5 and len(thin[2].running_mean) == len(thin[1].bias) == thin[1].out_channels < 16
    assert difference(model, thin, plan.removed, X) < 1e-12
    assert slim.verify(model, thin, plan, X) < 1e-10
