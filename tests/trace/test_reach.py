"""Layers and operators beside the plain ones: the channels around them go, exactly, as many as were asked for."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scaled import Scaled
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, rnn
from torch.nn.utils import weight_norm as old_weight_norm
from torchvision.ops import DeformConv2d

import slim

C, H = 16, 8
X = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
S = torch.randn(2, 3, 24, generator=torch.Generator().manual_seed(0))


def body(dims: int = 2, made: int = C) -> nn.Sequential:
    conv, norm = (nn.Conv1d, nn.BatchNorm1d) if dims == 1 else (nn.Conv2d, nn.BatchNorm2d)
    return nn.Sequential(conv(3, made, 3, padding=1), norm(made), nn.ReLU())


class Between(nn.Module):
    """body -> `between` (with modules of its own) -> head"""

    def __init__(self, between: Callable[..., Tensor], head: nn.Module, dims: int = 2, **parts: Any) -> None:
        super().__init__()
        self.body, self.head, self.between = body(dims), head, between
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.between(self, self.body(x)))


class Conformer(nn.Module):
    """The convolution module of a Conformer, as torchaudio, transformers and NeMo build it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.Sequential(nn.Conv1d(3, 2 * C, 1), nn.BatchNorm1d(2 * C))
        self.depthwise, self.after = nn.Conv1d(C, C, 3, padding=1, groups=C), nn.BatchNorm1d(C)
        self.out = nn.Conv1d(C, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.out(F.silu(self.after(self.depthwise(F.glu(self.norm(x), 1)))))


class AsMany(nn.Module):
    """Attention as fastvit has it: forward takes the number of the stream's channels for that of the heads'."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.qkv = body(), nn.Conv2d(C, 3 * C, 1)
        self.after, self.head = nn.BatchNorm2d(C), nn.Conv2d(C, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        b, c, h, w = x.shape
        q, k, v = self.qkv(x).reshape(b, 3, 4, -1, h * w).unbind(1)
        return self.head(self.after((q @ F.normalize(k.mT @ v)).reshape(b, c, h, w)))


def recurrent(kind: Callable[..., nn.RNNBase], **settings: Any) -> nn.Module:
    layer = kind(C, 5, **settings)
    width = 5 * (2 if layer.bidirectional else 1)

    def between(self: Any, x: Tensor) -> Tensor:
        tokens = x.transpose(1, 2) if layer.batch_first else x.permute(2, 0, 1)
        return self.layer(tokens)[0]

    return Between(between, nn.Linear(width, 3), 1, layer=layer)


def halved(self: Any, x: Tensor) -> Tensor:
    first, second = x.split(self.sizes, 1)
    return torch.cat([first.tanh(), second], 1)


def given_state(self: Any, x: Tensor) -> Tensor:
    """A state of zeros that is as wide as the input."""
    return self.layer(x.transpose(1, 2), (x.new_zeros(1, len(x), C), x.new_zeros(1, len(x), C)))[0]


class Blurred(nn.Module):
    """One filter, repeated for as many channels as there are."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("filter", torch.rand(1, 1, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.get_buffer("filter").repeat(x.shape[1], 1, 1, 1)
        return F.conv2d(x, kernel.to(x), padding=1, groups=x.shape[1])


class Spread(nn.Module):
    """One filter and one offset, spread over as many channels as there are."""

    def __init__(self, transposed: bool) -> None:
        super().__init__()
        self.register_buffer("filter", torch.rand(1, 1, 3, 3))
        self.offset, self.transposed = nn.Parameter(torch.rand(1)), transposed

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.get_buffer("filter").to(x).expand(x.shape[1], 1, 3, 3)
        filtered = (F.conv_transpose2d if self.transposed else F.conv2d)(x, kernel, stride=2, groups=x.shape[1])
        return filtered * self.offset.to(x).expand(x.shape[1], 1, 1)


def quantised(x: Tensor) -> Tensor:
    return torch.fake_quantize_per_tensor_affine(x.float(), 0.1, 0, -128, 127).to(x)


def cell_by_cell(self: Any, x: Tensor) -> Tensor:
    state = None
    for step in x.unbind(-1):
        state = self.cell(step, state)
    return state[0]  # type: ignore[index]


def step_by_step(self: Any, x: Tensor) -> Tensor:
    state, steps = None, x.new_zeros(len(x), x.shape[-1], self.cell.hidden_size)
    for t in range(x.shape[-1]):
        state = self.cell(x[..., t], state)
        steps[:, t] = state[0]
    return steps


def packed(kind: Callable[..., nn.RNNBase]) -> nn.Module:
    """Sequences of different lengths through a recurrent layer."""

    def between(self: Any, x: Tensor) -> Tensor:
        sequences = rnn.pack_sequence([x[0].T, x[1, :, :20].T])
        return rnn.pad_packed_sequence(self.layer(sequences)[0], batch_first=True)[0]

    return Between(between, nn.Linear(5, 3), 1, layer=kind(C, 5, batch_first=True))


class Reordered(nn.Module):
    """Channels in the order of an index, all of them or a half."""

    def __init__(self, *, buffer: bool = True, half: bool = False) -> None:
        super().__init__()
        order = torch.randperm(C, generator=torch.Generator().manual_seed(0))[: C // 2 if half else C]
        if buffer:
            self.register_buffer("order", order)
        else:
            self.order = order

    def forward(self, x: Tensor) -> Tensor:
        return x[:, self.order]


def in_a_bag(x: Tensor) -> Tensor:
    """Rows of a table, one for each channel, weighted by what the channels hold."""
    table, numbers = torch.arange(8.0)[:, None].to(x), torch.arange(x.shape[1], device=x.device).expand(len(x), -1)
    bag = F.embedding_bag(numbers, table, per_sample_weights=x.mean((2, 3)), mode="sum")
    return x * (1 + bag[..., None, None])


def by_index(self: Any, x: Tensor) -> Tensor:
    chosen = self.shuffle(x)
    return torch.cat([chosen, chosen], 1)


def reordered(*, buffer: bool, twice: bool = False) -> nn.Module:
    shuffle = Reordered(buffer=buffer)
    return nn.Sequential(
        *body(), shuffle, nn.Conv2d(C, C, 1), nn.BatchNorm2d(C), *[shuffle] * twice, nn.Conv2d(C, 2, 1)
    )


def unpooled(self: Any, x: Tensor) -> Tensor:
    values, places = F.max_pool2d(x, 2, return_indices=True)
    return F.max_unpool2d(values * 2, places, (2, 2))


def deformed(self: Any, x: Tensor) -> Tensor:
    return self.norm(self.deform(x, self.offset(x))).relu()


def pooled_transposed(self: Any, x: Tensor) -> Tensor:
    tokens = x.permute(0, 2, 1).contiguous()  # [N, T, C], the layout of speechbrain
    return self.pool(tokens.permute(0, 2, 1)).squeeze(-1)


def weight_normed(wrap: Callable[[nn.Module], nn.Module]) -> nn.Module:
    made = Between(lambda self, x: x, nn.Conv2d(C, 2, 1))
    made.body[0] = wrap(made.body[0])
    return made


class Shortened(nn.Module):
    """A parametrization that keeps the weights of each channel short."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight.renorm(p=2, dim=0, maxnorm=0.2)


def shortened(layer: nn.Module) -> nn.Module:
    parametrize.register_parametrization(layer, "weight", Shortened())
    return layer


def ghost(self: Any, x: Tensor) -> Tensor:
    first = self.first(x)
    return torch.cat([first, self.rest(first)], 1)[:, : self.width]


def normed(read: int = C, made: int = C, groups: int = 1) -> nn.Module:
    return nn.Sequential(nn.Conv2d(read, made, 1, groups=groups), nn.BatchNorm2d(made))


def read_by(layer: nn.Module) -> nn.Module:
    return nn.Sequential(body(), layer, nn.ReLU(), nn.Conv2d(C, *CONV))


def several_of_each(layer: nn.Module) -> nn.Module:
    return nn.Sequential(layer, nn.BatchNorm2d(3 * C), nn.ReLU(), nn.Conv2d(3 * C, *CONV))


def aggregated(self: Any, x: Tensor) -> Tensor:
    """NetVLAD: how far channels are from each centre, summed over the places that belong to it."""
    share = self.weigh(x).flatten(2).softmax(1)
    apart = x.flatten(2)[:, None] * self.centres.weight[None, :, :, None]
    return (apart * share[:, :, None]).sum(-1).flatten(1)


def bordered(self: Any, x: Tensor) -> Tensor:
    x = F.pad(x, (1, 1, 1, 1))
    x[:, :, :1, :] = self.bias.view(1, -1, 1, 1)
    x[..., -1] = self.bias.view(1, -1, 1)
    return x


class Bordered(nn.Module):
    """ECBSR: what a padded image would give, from a layer that pads with zeros after its bias."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, C, 1), nn.Conv2d(C, *CONV)

    def forward(self, x: Tensor) -> Tensor:
        bias: Any = self.first.bias
        y = F.pad(F.conv2d(x, self.first.weight, bias), (1, 1, 1, 1))
        y[:, :, 0:1, :] = bias.view(1, -1, 1, 1)
        return self.last(y)


CONV = (2, 1)
MODELS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "glu": (Conformer, S),
    "LSTM": (lambda: recurrent(nn.LSTM, batch_first=True), S),
    "LSTM, time first, two layers, both ways": (lambda: recurrent(nn.LSTM, num_layers=2, bidirectional=True), S),
    "GRU": (lambda: recurrent(nn.GRU, batch_first=True, bidirectional=True), S),
    "RNN": (lambda: recurrent(nn.RNN, nonlinearity="relu"), S),
    "as many of the one as of the other": (AsMany, X),
    "numpy's whole number": (
        lambda: Between(lambda s, x: x.view(-1, s.width, 144).mean(2), nn.Linear(C, 3), width=np.int64(C)),
        X,
    ),
    "whole numbers of numpy's": (lambda: Between(halved, nn.Conv2d(C, 3, 1), sizes=[*np.array([C // 2, C // 2])]), X),
    "a torch.Size": (lambda: Between(halved, nn.Conv2d(C, 3, 1), sizes=torch.Size([C // 2, C // 2])), X),
    "a GhostNet's module of odd width": (
        lambda: Between(ghost, nn.Conv2d(C - 1, 3, 1), first=normed(C, H), rest=normed(H, H, H), width=C - 1),
        X,
    ),
    "products of pairs": (
        lambda: Between(
            lambda s, x: s.pairs(x.mean((2, 3)), x.amax((2, 3))), nn.Linear(8, 3), pairs=nn.Bilinear(C, C, 8)
        ),
        X,
    ),
    "products of pairs without a bias": (
        lambda: Between(
            lambda s, x: s.norm(s.pairs(x.mean(2).mT, s.other(x).mean(2).mT).mT),
            nn.Conv1d(8, 3, 1),
            pairs=nn.Bilinear(C, 4, 8, bias=False),
            other=nn.Conv2d(C, 4, 1),
            norm=nn.BatchNorm1d(8),
        ),
        X,
    ),
    "LSTMCell": (lambda: Between(cell_by_cell, nn.Linear(5, 3), 1, cell=nn.LSTMCell(C, 5)), S),
    "a state as wide as the input": (
        lambda: Between(given_state, nn.Linear(C, 3), 1, layer=nn.LSTM(C, C, batch_first=True)),
        S,
    ),
    "a filter for each channel": (
        lambda: Between(lambda s, x: s.blur(x), nn.Conv2d(C, *CONV), blur=Blurred()),
        X,
    ),
    "a filter spread over the channels": (
        lambda: Between(lambda s, x: s.blur(x), nn.Conv2d(C, *CONV), blur=Spread(False)),
        X,
    ),
    "a filter spread over the channels, transposed": (
        lambda: Between(lambda s, x: s.blur(x), nn.Conv2d(C, *CONV), blur=Spread(True)),
        X,
    ),
    "mean and spread": (
        lambda: Between(lambda s, x: torch.cat([x.mean((2, 3)), x.std((2, 3))], 1), nn.Linear(2 * C, 3)),
        X,
    ),
    "random slopes": (lambda: Between(lambda s, x: F.rrelu(-x, training=s.training), nn.Conv2d(C, 2, 1)), X),
    "whole steps": (lambda: Between(lambda s, x: quantised(x), nn.Conv2d(C, *CONV)), X),
    "a layer's own bias over the border": (Bordered, X),
    "residuals to centres, end to end": (
        lambda: Between(aggregated, nn.Linear(4 * C, 2), weigh=nn.Conv2d(C, 4, 1), centres=nn.Embedding(4, C)),
        X,
    ),
    "two streams, one below the other": (
        lambda: Between(lambda s, x: torch.cat([x, s.other(x)], 2), nn.Conv2d(C, *CONV), other=normed()),
        X,
    ),
    "scores of classes beside channels": (
        lambda: Between(
            lambda s, x: (s.score(x).softmax(1)[:, :, None] * x[:, None]).sum((3, 4)).flatten(1),
            nn.Linear(3 * C, 2),
            score=nn.Conv2d(C, 3, 1),
        ),
        X,
    ),
    "max_unpool": (lambda: Between(unpooled, nn.Conv2d(C, *CONV)), X),
    "normalize": (lambda: Between(lambda self, x: F.normalize(x), nn.Conv2d(C, *CONV)), X),
    "a norm over channels": (
        lambda: Between(lambda s, x: x / (1 + x.norm(dim=1, keepdim=True)), nn.Conv2d(C, 2, 1)),
        X,
    ),
    "less the sum, spread": (
        lambda: Between(lambda s, x: x * x.sum(1, keepdim=True).expand_as(x), nn.Conv2d(C, *CONV)),
        X,
    ),
    "circular padding": (
        lambda: nn.Sequential(*body(), nn.Conv2d(C, 2, 3, padding=1, padding_mode="circular")),
        X,
    ),
    "deformable convolution, places for each half": (
        lambda: Between(
            deformed,
            nn.Conv2d(C, *CONV),
            deform=DeformConv2d(C, C, 3, padding=1),
            offset=nn.Conv2d(C, 36, 3, padding=1),
            norm=nn.BatchNorm2d(C),
        ),
        X,
    ),
    "deformable convolution": (
        lambda: Between(
            deformed,
            nn.Conv2d(C, *CONV),
            deform=DeformConv2d(C, C, 3, padding=1),
            offset=nn.Conv2d(C, 18, 3, padding=1),
            norm=nn.BatchNorm2d(C),
        ),
        X,
    ),
    "strides set in place": (lambda: Between(pooled_transposed, nn.Linear(C, 3), 1, pool=nn.AdaptiveAvgPool1d(1)), S),
    "rows by number": (lambda: Between(lambda self, x: x[:, :, [3, 1, 2]], nn.Conv2d(C, *CONV)), X),
    "places by number": (
        lambda: Between(lambda s, x: x[..., torch.tensor([0, 1]), torch.tensor([2, 3])], nn.Conv1d(C, *CONV)),
        X,
    ),
    "turned round": (lambda: Between(lambda s, x: x.flip(1), nn.Conv2d(C, *CONV)), X),
    "every other channel": (lambda: Between(lambda s, x: torch.cat([x[:, ::2], x[:, 1::2]], 1), nn.Conv2d(C, 2, 1)), X),
    "pooled with channels last": (
        lambda: Between(
            lambda s, x: s.tokens(
                F.avg_pool2d(x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
            ),
            nn.Linear(C, 3),
            tokens=nn.Linear(C, C),
        ),
        X,
    ),
    "an index in a buffer": (lambda: reordered(buffer=True), X),
    "an index in an attribute": (lambda: reordered(buffer=False), X),
    "one index for two streams": (lambda: reordered(buffer=True, twice=True), X),
    "half of them, by an index": (lambda: Between(by_index, nn.Conv2d(C, 2, 1), shuffle=Reordered(half=True)), X),
    "packed sequences": (lambda: packed(nn.LSTM), S),
    "packed sequences, GRU": (lambda: packed(nn.GRU), S),
    "steps written one by one": (lambda: Between(step_by_step, nn.Linear(5, 3), 1, cell=nn.LSTMCell(C, 5)), S),
    "windows": (lambda: Between(lambda s, x: x.unfold(2, 3, 2).mean(-1), nn.Conv2d(C, *CONV)), X),
    "unfold and fold": (
        lambda: Between(lambda s, x: F.fold(F.unfold(x, 3, padding=1), (12, 12), 3, padding=1), nn.Conv2d(C, *CONV)),
        X,
    ),
    "Fourier transform": (
        lambda: Between(lambda s, x: torch.fft.irfft2(torch.fft.rfft2(x) * 2, s=(12, 12)), nn.Conv2d(C, *CONV)),
        X,
    ),
    "complex numbers as pairs": (
        lambda: Between(lambda s, x: torch.view_as_real(torch.fft.rfft(x)).sum(-1), nn.Conv2d(C, *CONV)),
        X,
    ),
    "sorted, summed, the largest": (
        lambda: Between(lambda s, x: x.sort(2)[0].cumsum(3).topk(4, 2)[0], nn.Conv2d(C, *CONV)),
        X,
    ),
    "gathered": (lambda: Between(lambda s, x: x.gather(2, x.argsort(2)), nn.Conv2d(C, *CONV)), X),
    "scattered": (
        lambda: Between(lambda s, x: torch.zeros_like(x).scatter_add_(2, (x > 0).long(), x), nn.Conv2d(C, *CONV)),
        X,
    ),
    "rows added": (
        lambda: Between(lambda s, x: torch.zeros_like(x).index_add_(2, torch.arange(12) % 3, x), nn.Conv2d(C, *CONV)),
        X,
    ),
    "two views, by nn.Unflatten": (
        lambda: Between(
            lambda s, x: s.parts(s.wide(x)).mean(1),
            nn.Conv2d(C, *CONV),
            wide=normed(C, 2 * C),
            parts=nn.Unflatten(1, (2, C)),
        ),
        X,
    ),
    "a map of a vector, by nn.Unflatten": (
        lambda: nn.Sequential(
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4 * C), nn.Unflatten(1, (C, 2, 2))),
            *(nn.BatchNorm2d(C), nn.ReLU(), nn.Conv2d(C, *CONV)),
        ),
        X,
    ),
    "several of each channel of the input": (lambda: several_of_each(nn.Conv2d(3, 3 * C, 3, groups=3)), X),
    "several of each, transposed": (lambda: several_of_each(nn.ConvTranspose2d(3, 3 * C, 3, groups=3)), X),
    "several of each, shortened weights": (
        lambda: several_of_each(shortened(nn.Conv2d(3, 3 * C, 3, groups=3))),
        X,
    ),
    "weight norm": (lambda: weight_normed(parametrizations.weight_norm), X),
    "weight norm where it is read": (lambda: read_by(parametrizations.weight_norm(nn.Conv2d(C, C, 3))), X),
    "weight norm, transposed": (lambda: read_by(parametrizations.weight_norm(nn.ConvTranspose2d(C, C, 3))), X),
    "shortened weights": (lambda: read_by(shortened(nn.Conv2d(C, C, 3))), X),
    "shortened weights, depthwise": (lambda: read_by(shortened(nn.Conv2d(C, C, 3, groups=C, bias=False))), X),
    "weight norm of old": (lambda: weight_normed(old_weight_norm), X),
    "weight norm of old where it is read": (lambda: read_by(old_weight_norm(nn.Conv2d(C, C, 3))), X),
    "weight norm of old, transposed": (lambda: read_by(old_weight_norm(nn.ConvTranspose2d(C, C, 3))), X),
}


def randomised(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    model = make()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.weight, 0.1, 1)
            nn.init.normal_(module.bias, 0, 0.1)
    return model.eval()


@torch.no_grad()
def difference(model: nn.Module, thin: nn.Module, removed: dict[str, list[int]], x: Tensor) -> float:
    """From the original, masked in place."""
    for name, gone in removed.items():
        norm = model.get_submodule(name)
        norm.weight[gone], norm.bias[gone] = 0, 0  # type: ignore[operator]
    expected, found = model.double()(x.double()), thin.double().eval()(x.double())
    return float((expected - found).abs().max() / expected.abs().max())


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("case", MODELS)
def test_the_ratio_is_reached_exactly(case: str) -> None:
    make, x = MODELS[case]
    model = randomised(make)
    plan = slim.plan(model, x, ratio=0.5)
    assert plan.ratio_achieved == pytest.approx(0.5, abs=0.02), plan.frozen
    thin = plan.apply(model)
    assert slim.verify(model, thin, plan, x) < 1e-10
    plan.apply(model).train()(x).sum().backward()
    assert difference(model, plan.apply(model.double()), plan.removed, x) < 1e-10


ALL: Any = None  # dimensions share a length
ONE_LENGTH: dict[str, Callable[[], nn.Module]] = {
    "weight norm": lambda: read_by(parametrizations.weight_norm(nn.Conv2d(C, C, 3), dim=ALL)),
    "weight norm of a linear layer": lambda: nn.Sequential(
        *(body(), nn.Flatten(2), nn.AdaptiveAvgPool1d(1), nn.Flatten()),
        *(parametrizations.weight_norm(nn.Linear(C, 2 * C), dim=ALL), nn.ReLU(), nn.Linear(2 * C, 3)),
    ),
    "weight norm of old": lambda: read_by(old_weight_norm(nn.Conv2d(C, C, 3), dim=ALL)),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("score", [slim.Gamma(), slim.Magnitude()])
@pytest.mark.parametrize("case", ONE_LENGTH)
def test_a_weight_of_one_length_is_what_the_masked_one_is(case: str, score: Any) -> None:
    model = randomised(ONE_LENGTH[case]).double()
    plan = slim.plan(model, X.double(), ratio=0.5, score=score)
    thin = plan.apply(model)
    assert plan.ratio_achieved == pytest.approx(0.5, abs=0.02)
    assert slim.verify(model, thin, plan, X.double()) < 1e-10
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        for name, dims in plan.masks.items():
            for dim, gone in dims.items():
                tensors[name].index_fill_(dim, torch.tensor(gone), 0)
    torch.testing.assert_close(thin(X.double()), model(X.double()), rtol=1e-10, atol=1e-12)


class ShortenedInForward(nn.Module):
    """The same by the network's own forward code, where nothing says what a thin weight would be made of."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.weight = body(), nn.Parameter(torch.randn(4, C, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(self.body(x), self.weight.renorm(p=2, dim=0, maxnorm=0.2))


def test_lengths_that_forward_computes_keep_the_channels_that_they_run_over() -> None:
    with pytest.raises(slim.SlimError, match="renorm after weight runs over it"):
        slim.plan(randomised(ShortenedInForward), X, ratio=0.5)


HELD: dict[str, Callable[[Tensor], Tensor]] = {
    "the smallest absolute value": lambda x: x * torch.linalg.vector_norm(x + 1, -torch.inf, 1, keepdim=True),
    "the norm of what isn't zero": lambda x: x / (x + 1).norm(dim=1, keepdim=True),
    "rows of a table, weighted by channels": in_a_bag,
    "channels by number": lambda x: x[:, [1, 0, 2, 3, 4, 5, 6, 7]],
    "channels one further": lambda x: x.roll(1, 1),
    "all values one further": lambda x: x.roll(1),
    "the mean of neighbouring channels": lambda x: F.avg_pool2d(x.transpose(1, 2), 3, 1, 1).transpose(1, 2),
}


@pytest.mark.parametrize("case", HELD)
def test_what_needs_its_channels_keeps_them(case: str) -> None:
    model = randomised(lambda: Scaled(HELD[case]))
    plan = slim.plan(model, X, ratio=0.25)
    assert set(plan.removed) == {"first.1"} and plan.frozen
    assert difference(model, plan.apply(model), plan.removed, X) < 1e-10


class AsksBefore(nn.Module):
    """Asks how long a table is before anything reads it, and before any layer: as timm's rotary positions do."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.second, self.head = body(), body(made=2 * C), nn.Conv2d(3 * C, 3, 1)
        self.table = nn.Buffer(torch.rand(C, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        assert self.table.numel() == 2 * H
        return self.head(torch.cat([self.body(x) * self.table, self.second(x)], 1))


def test_what_forward_asks_of_a_table_before_anything_reads_it_keeps_that_alone() -> None:
    model = randomised(AsksBefore)
    plan = slim.plan(model, X, ratio=0.3, round_to=1)
    assert {*plan.removed} == {"second.1"} and plan.ratio_achieved == pytest.approx(0.3, abs=0.02)
    assert slim.verify(model, plan.apply(model), plan, X) < 1e-10


class AroundMedians(nn.Module):
    """compressai's entropy bottleneck: no less than a bound, around medians in inference, with noise in training."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.second, self.head = body(), nn.Conv2d(C, C, 1), nn.Conv2d(C, *CONV)
        self.quantiles = nn.Parameter(torch.randn(C, 1, 3))
        self.bound = nn.Buffer(torch.tensor([0.1]))

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.body(x).mean((2, 3), keepdim=True)).transpose(0, 1)
        values = x.reshape(len(x), 1, -1)
        around = values + torch.rand_like(values) if self.training else values - self.quantiles[:, :, 1:2]
        return self.head(torch.maximum(around, self.bound).reshape(x.shape).transpose(0, 1))


def test_what_one_mode_alone_reads_may_be_of_one_place() -> None:
    model = randomised(AroundMedians)
    plan = slim.plan(model, X[:1], ratio=0.5)
    assert set(plan.removed) == {"body.1"}
    assert slim.verify(model, plan.apply(model), plan, X[:1]) < 1e-10
    assert difference(model, plan.apply(model), plan.removed, X[:1]) < 1e-10


SHUFFLES = {"one channel a group": (2, 8), "two": (4, 16), "three groups": (3, 9)}


@pytest.mark.parametrize("case", SHUFFLES)
def test_a_shuffle_whose_groups_shrink_to_one_channel(case: str) -> None:
    groups, width = SHUFFLES[case]

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.n, self.b = nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.Conv2d(width, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.n(self.a(x)).relu()
            b, c, h, w = y.shape
            y = y.view(b, groups, c // groups, h, w).transpose(1, 2).contiguous().view(b, c, h, w)
            return self.b(y)

    model = randomised(Net)
    plan = slim.plan(model, X, ratio=1 - groups / width, floor=0.01)
    thin: Any = plan.apply(model)
    assert thin.n.num_features == groups
    assert slim.verify(model, thin, plan, X) < 1e-10
    assert difference(model, thin, plan.removed, X) < 1e-10


def test_what_is_written_may_be_a_parameter_of_its_own() -> None:
    made: Any = {"bias": nn.Parameter(torch.ones(C))}
    model: Any = randomised(lambda: Between(bordered, nn.Conv2d(C, *CONV), **made))
    plan = slim.plan(model, X, ratio=0.5, round_to=1)
    assert plan.ratio_achieved > 0.45 and plan.masks["bias"] == {0: plan.removed["bias"]}
    thin = plan.apply(model).double().eval()
    zeroed = copy.deepcopy(model).double().eval()
    with torch.no_grad():
        for name, tensor in zeroed.named_parameters():
            for dim, indices in plan.masks.get(name, {}).items():
                tensor.index_fill_(dim, torch.tensor(indices), 0)
        torch.testing.assert_close(thin(X.double()), zeroed(X.double()), rtol=1e-12, atol=1e-12)


def masked_conv(self: Any, x: Tensor) -> Tensor:
    """A PixelCNN's: some of the weights count for nothing."""
    return F.conv2d(x, self.layer.weight * self.mask, self.layer.bias, padding=1)


def two_in_one(self: Any, x: Tensor) -> Tensor:
    weight = self.wide.weight + F.pad(self.narrow.weight, [1, 1, 1, 1])
    return F.conv2d(x, weight, self.wide.bias + self.narrow.bias, padding=1).relu()


def scaled_weights(self: Any, x: Tensor) -> Tensor:
    """StyleGAN's linear layer."""
    return F.linear(x.mean((2, 3)), self.layer.weight * 0.1, self.layer.bias).relu()


def by_angle(self: Any, x: Tensor) -> Tensor:
    return F.linear(F.normalize(x.mean((2, 3))), F.normalize(self.layer.weight))


def of_a_spectrum(self: Any, x: Tensor) -> Tensor:
    """A fast Fourier convolution: real and imaginary parts are channels."""
    f = torch.fft.rfft2(x)
    parts = self.layer(torch.stack((f.real, f.imag), 2).flatten(1, 2)).unflatten(1, (-1, 2))
    return torch.fft.irfft2(torch.complex(parts[:, :, 0], parts[:, :, 1]), s=x.shape[2:])


def blocks_of_a_spectrum(self: Any, x: Tensor) -> Tensor:
    """AFNO: a matrix of complex numbers for each block of channels, as a slice of one parameter for each part."""
    f = torch.fft.rfft2(x).permute(0, 2, 3, 1).unflatten(-1, (2, -1))
    real, imag = (torch.einsum("...bi,bio->...bo", f.real, w) for w in self.weights)
    mixed = torch.view_as_complex(torch.stack([real, imag], -1)).flatten(-2)
    return torch.fft.irfft2(mixed.permute(0, 3, 1, 2), s=x.shape[2:])


def chosen_by_a_mask(self: Any, x: Tensor) -> Tensor:
    x = x.flatten(2).mT.clone()
    x[:, self.chosen] = self.layer(x[:, self.chosen])
    return x.mT.unflatten(2, (12, 12))


COMPUTED: dict[str, Callable[[], nn.Module]] = {
    "some weights count for nothing": lambda: Between(
        masked_conv, nn.Conv2d(8, *CONV), layer=nn.Conv2d(C, 8, 3), mask=nn.Buffer(torch.ones(8, C, 3, 3).tril())
    ),
    "two kernels in one": lambda: Between(
        two_in_one, nn.Conv2d(8, *CONV), wide=nn.Conv2d(C, 8, 3), narrow=nn.Conv2d(C, 8, 1)
    ),
    "weights by a factor": lambda: Between(scaled_weights, nn.Linear(8, 3), layer=nn.Linear(C, 8)),
    "angles to what stands for classes": lambda: Between(by_angle, nn.Linear(4, 3), layer=nn.Linear(C, 4)),
    "distances from some places": lambda: Between(
        lambda s, x: torch.cdist(x.mean((2, 3)), s.places), nn.Linear(7, 3), places=nn.Parameter(torch.randn(7, C))
    ),
    "distances from many places": lambda: Between(
        lambda s, x: torch.cdist(x.mean((2, 3)), s.places), nn.Linear(30, 3), places=nn.Parameter(torch.randn(30, C))
    ),
    "distances from each other": lambda: Between(
        lambda s, x: torch.cdist(x.flatten(2).mT, x.flatten(2).mT).mean(2), nn.Linear(144, 3)
    ),
    "real and imaginary parts": lambda: Between(of_a_spectrum, nn.Conv2d(C, *CONV), layer=normed(2 * C, 2 * C)),
    "lengths and angles": lambda: Between(
        lambda s, x: torch.fft.irfft2(torch.polar(torch.fft.rfft2(x).abs(), torch.fft.rfft2(x).angle()), s=(12, 12)),
        nn.Conv2d(C, *CONV),
    ),
    "blocks of a spectrum": lambda: Between(
        blocks_of_a_spectrum, nn.Conv2d(C, *CONV), weights=nn.Parameter(torch.randn(2, 2, H, H))
    ),
    "what a mask chooses": lambda: Between(
        chosen_by_a_mask, nn.Conv2d(C, *CONV), layer=nn.Linear(C, C), chosen=nn.Buffer(torch.arange(144) % 3 == 0)
    ),
    "the first few": lambda: Between(
        lambda s, x: torch.cat([s.layer(x[:, :6]), x[:, 6:]], 1), nn.Conv2d(C, *CONV), layer=normed(6, 6)
    ),
}


@pytest.mark.parametrize("case", COMPUTED)
@torch.no_grad()
def test_what_makes_channels_together_goes_together(case: str) -> None:
    """Held to the network whose parameters are zero where the plan says."""
    model = randomised(COMPUTED[case])
    plan = slim.plan(model, X, ratio=0.5, round_to=1, score=slim.Random(2))
    assert plan.ratio_achieved > 0.45, plan.frozen
    thin, zeroed = plan.apply(model).double().eval(), copy.deepcopy(model).double().eval()
    for name, tensor in zeroed.named_parameters():
        for dim, indices in plan.masks.get(name, {}).items():
            tensor.index_fill_(dim, torch.tensor(indices), 0)
    torch.testing.assert_close(thin(X.double()), zeroed(X.double()), rtol=1e-10, atol=1e-10)
    assert slim.verify(model, plan.apply(model), plan, X) < 1e-10


class Routed(nn.Module):
    """A gate sends a batch to one of two layers; the channels that it goes by are those that are least important."""

    def __init__(self, low: float) -> None:
        super().__init__()
        self.body, self.gate = body(), nn.Linear(C, 2, bias=False)
        self.layers, self.head = nn.ModuleList([normed(), normed()]), nn.Conv2d(C, *CONV)
        with torch.no_grad():
            self.body[1].weight.copy_(torch.arange(C) + 1.0)  # type: ignore[operator]
            self.gate.weight[0], self.gate.weight[1] = low * (torch.arange(C) < H), 0.01

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        return self.head(self.layers[int(self.gate(x.mean((2, 3))).sum(0).argmax())](x))


@pytest.mark.parametrize("low", [9.0, -9.0])
def test_values_may_lead_the_masked_network_to_other_layers(low: float) -> None:
    """Those are thin as well; layers that neither comes to are named."""
    torch.manual_seed(0)
    model: Any = Routed(low).eval()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        plan = slim.plan(model, X, ratio=0.5, round_to=1, layer_ratios={"body.1": 0.5})
    assert set(plan.removed["body.1"]) == set(range(H))
    assert [
        str(each.message) for each in said if "lead past layers.0.0, layers.0.1, as forward" in str(each.message)
    ] or low > 0
    thin = plan.apply(model)
    assert slim.verify(model, thin, plan, X) < 1e-10
    zeroed = copy.deepcopy(model).double()
    with torch.no_grad():
        for name, tensor in zeroed.named_parameters():
            for dim, indices in plan.masks.get(name, {}).items():
                tensor.index_fill_(dim, torch.tensor(indices), 0)
        torch.testing.assert_close(thin.double()(X.double()), zeroed(X.double()), rtol=1e-10, atol=1e-10)


class Looking(nn.Module):
    """A recurrent layer before forward code that looks at values, so that the network is traced with its data."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.before, self.layer = nn.Sequential(nn.Conv1d(3, C, 3), nn.BatchNorm1d(C)), nn.LSTM(C, 6, **settings)
        self.after = nn.ModuleList([nn.Linear(6, 16), nn.Linear(16, 2)])

    def forward(self, x: Tensor) -> Tensor:
        out, (state, _) = self.layer(self.before(x).permute(2, 0, 1))
        y = self.after[0](out).relu()
        return self.after[1](y * (3 if bool((out[-1] == state[-1]).all()) else 0))


@pytest.mark.parametrize("settings", [{}, {"num_layers": 2}])
def test_a_recurrence_with_data_is_traced_in_its_first_step_and_gives_what_all_steps_do(settings: Any) -> None:
    from slim.trace.traced import trace

    model: Any = randomised(lambda: Looking(**settings))
    short, long = (trace(model, torch.randn(2, 3, steps)) for steps in (4, 200))
    assert not long.inputs_are_meta and len(long.runs[0].executed) == len(short.runs[0].executed)
    x = torch.randn(2, 3, 40)
    plan = slim.plan(model, x, ratio=0.5, round_to=1)
    assert plan.ratio_achieved > 0.45 and difference(model, plan.apply(model), plan.removed, x) < 1e-10


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_a_long_recurrence_is_planned_as_fast_as_a_short_one(kind: type[nn.RNNBase]) -> None:
    """By the number of operators that are traced; its FLOPs still count all steps."""
    from torch.utils.flop_counter import FlopCounterMode

    from slim.trace.traced import trace

    model = randomised(lambda: recurrent(kind, batch_first=True))
    short, long = (trace(model, torch.randn(1, 3, steps)) for steps in (2, 400))
    assert len(long.runs[0].executed) == len(short.runs[0].executed)
    plan = slim.plan(model, torch.randn(1, 3, 40), ratio=0.5)
    with FlopCounterMode(display=False) as counter:
        model.to("meta")(torch.randn(1, 3, 40, device="meta"))  # step by step
    assert plan.totals["flops"][0] == counter.get_total_flops()


class Recurrent(nn.Module):
    """A recurrent layer between linear ones, over several steps."""

    def __init__(self, kind: Callable[..., nn.RNNBase], both_ways: bool) -> None:
        super().__init__()
        self.before, self.layer = nn.Linear(8, 12), kind(12, 16, bidirectional=both_ways)
        self.after = nn.Linear(16 * (1 + both_ways), 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.layer(self.before(x))[0])


@pytest.mark.parametrize("both_ways", [False, True])
@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_a_recurrence_keeps_its_state(kind: Callable[..., nn.RNNBase], both_ways: bool) -> None:
    model: Any = randomised(lambda: Recurrent(kind, both_ways))
    x = torch.randn(5, 2, 8)
    plan = slim.plan(model, x, ratio=0.4, round_to=1)
    thin: Any = plan.apply(model)
    assert thin.before.out_features < 12 and thin.layer.weight_hh_l0.shape == model.layer.weight_hh_l0.shape
    assert difference(model, thin, plan.removed, x) < 1e-10


class Attention(nn.Module):
    """Heads whose parts are as large as what forward computes from one stored size."""

    def __init__(self, width: int, sizes: Callable[[int], list[int]]) -> None:
        super().__init__()
        self.heads, self.key, self.sizes = 2, 8, sizes
        inner = 2 * sum(sizes(8))
        self.qkv, self.norm = nn.Linear(width, inner), nn.BatchNorm1d(inner)
        self.out, self.after = nn.Linear(2 * sizes(8)[2], width), nn.BatchNorm1d(width)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        tokens = self.norm(self.qkv(x).flatten(0, 1)).view(b, t, self.heads, -1)
        q, k, v = tokens.split(self.sizes(self.key), 3)
        mixed = (q.transpose(1, 2) @ k.permute(0, 2, 3, 1)).softmax(-1) @ v.transpose(1, 2)
        out = self.out(mixed.transpose(1, 2).reshape(b, t, -1).flatten(0, 1))
        return x + self.after(out).view(b, t, -1)


SIZES: dict[str, Callable[[int], list[int]]] = {
    "as large": lambda key: [key, key, key],
    "twice": lambda key: [key, key, 2 * key],
    "four times": lambda key: [key, key, 4 * key],
}


@pytest.mark.parametrize("case", SIZES)
def test_sizes_computed_from_a_stored_one_follow(case: str) -> None:
    model = randomised(lambda: nn.Sequential(nn.Linear(8, 16), *(Attention(16, SIZES[case]) for _ in range(2))))
    x = torch.randn(2, 12, 8)
    plan = slim.plan(model, x, ratio=0.4)
    assert plan.ratio_achieved > 0.3, plan.shortfall  # a group of the widest holds six channels of each head
    thin: Any = plan.apply(model)
    assert thin[1].key < 8 and thin[2].key < 8
    assert slim.verify(model, thin, plan, x) < 1e-10
    assert difference(model, thin, plan.removed, x) < 1e-10


class Fused(nn.Module):
    """Fused attention of heads whose values are as wide as their queries, and needn't be. On numbers a kernel of its
    own runs."""

    def __init__(self, heads: int, looks: bool) -> None:
        super().__init__()
        self.heads, self.looks = heads, looks
        self.q, self.k, self.v, self.out = (nn.Linear(16, 16) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        assert not self.looks or float(x.abs().max()) > 0
        q, k, v = (layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return self.out(F.scaled_dot_product_attention(q, k, v, scale=0.3).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("looks", [False, True])
@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("thinner", [{"v"}, {"q", "k"}])
def test_values_of_attention_are_thinner_without_its_queries(thinner: set[str], heads: int, looks: bool) -> None:
    model: Any = randomised(lambda: Fused(heads, looks))
    x = torch.randn(2, 12, 16)
    plan = slim.plan(model, x, ratio=0.2, layer_ratios={name: 0.5 * (name in thinner) for name in "qkv"}, round_to=1)
    assert plan.removed.keys() == thinner and {len(gone) for gone in plan.removed.values()} == {8}
    assert difference(model, plan.apply(model), plan.removed, x) < 1e-10
