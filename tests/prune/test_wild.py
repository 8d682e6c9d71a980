"""A dozen networks as people bring them: small ones of timm and torchvision, and twins in miniature of odd ones.

The truth is the original with zeros in all that makes the pruned channels, in float64. `scripts/wild_coverage.py` does
this for hundreds, of packages that aren't installed here.
"""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from networks import cbr, difference, randomise
from torch import Tensor, nn

import slim


class CachedHalves(nn.Module):
    """Ultralytics: a block of halves, one of which goes on, and a head that keeps its grid for each shape of input."""

    def __init__(self) -> None:
        super().__init__()
        self.c = 16
        self.shape: Any = None
        self.grid = torch.empty(0)
        self.first, self.blocks = cbr(3, 32), nn.ModuleList(cbr(16, 16) for _ in range(2))
        self.last, self.head = cbr(64, 32), nn.Conv2d(32, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.first(x).chunk(2, 1))
        parts.extend(block(parts[-1]) for block in self.blocks)
        out = self.head(self.last(torch.cat(parts, 1)))
        if self.shape != x.shape:
            self.shape = x.shape
            self.grid = torch.arange(out[0, 0].numel(), dtype=out.dtype).view(out.shape[2:])
        return out.sigmoid() + self.grid


class Conformer(nn.Module):
    """torchaudio, speechbrain: half an MLP, attention, a gated depthwise convolution, half an MLP."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.read, self.out = nn.Linear(8, width), nn.Linear(width, 5)
        self.halves = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 48), nn.SiLU(), nn.Linear(48, width)) for _ in range(2)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.convolution = nn.Sequential(
            *(nn.Conv1d(width, 2 * width, 1), nn.GLU(1), nn.Conv1d(width, width, 5, padding=2, groups=width)),
            *(nn.BatchNorm1d(width), nn.SiLU(), nn.Conv1d(width, width, 1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.read(x)
        x = x + 0.5 * self.halves[0](x)
        y = self.norms[0](x)
        x = x + self.attention(y, y, y)[0]
        x = x + self.convolution(self.norms[1](x).transpose(1, 2)).transpose(1, 2)
        return self.out(x + 0.5 * self.halves[1](x))


class Separate(nn.Module):
    """transformers: queries, keys and values by themselves, seen as heads of a stored size."""

    def __init__(self, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.patches, self.out = nn.Conv2d(3, width, 4, 4), nn.Linear(width, 5)
        self.size, self.scale = width // heads, (width // heads) ** -0.5
        self.norm, self.mlp = nn.LayerNorm(width), nn.Sequential(nn.Linear(width, 64), nn.GELU(), nn.Linear(64, width))
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        y = self.norm(x)
        shape = (*y.shape[:-1], -1, self.size)
        q, k, v = (layer(y).view(shape).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, scale=self.scale).transpose(1, 2)
        x = x + self.o(mixed.reshape(*y.shape[:-1], -1))
        return self.out((x + self.mlp(x)).mean(1))


class Spiking(nn.Module):
    """spikingjelly: membranes that leak, keep their potential in the module, and fire over four steps."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.out = cbr(3, 16, act=nn.Identity), cbr(16, 16, act=nn.Identity), nn.Linear(16, 5)
        self.potential: Any = [0.0, 0.0]

    def fire(self, number: int, x: Tensor) -> Tensor:
        potential = self.potential[number] * 0.5 + x
        spikes = (potential > 0.5).to(x)
        self.potential[number] = potential * (1 - spikes)
        return spikes

    def forward(self, x: Tensor) -> Tensor:
        self.potential = [0.0, 0.0]
        steps = [self.fire(1, self.second(self.fire(0, self.first(x)))) for _ in range(4)]
        return self.out(torch.stack(steps).mean((0, 3, 4)))


class Speech(nn.Module):
    """DeepSpeech: linear layers over each frame, a recurrent layer both ways whose directions are added."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.width = width
        self.frames = nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, width), nn.ReLU())
        self.both, self.out = nn.RNN(width, width, bidirectional=True), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.both(self.frames(x).transpose(0, 1))[0]
        return self.out(x[:, :, : self.width] + x[:, :, self.width :])


def seen(name: str) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, num_classes=5)


def image(side: int = 32) -> Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))


FRAMES = torch.randn(2, 12, 8, generator=torch.Generator().manual_seed(1))
# name -> (network, inputs, the ratio that it reaches when 0.5 is asked for)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Tensor, float]] = {
    "halves and a cached grid": (CachedHalves, image(), 0.49),
    "Conformer": (Conformer, FRAMES, 0.45),
    "separate heads": (Separate, image(), 0.49),
    "spiking": (Spiking, image(), 0.45),
    "speech": (Speech, FRAMES, 0.45),
    "timm residual": (seen("test_resnet"), image(), 0.49),
    "timm inverted residual": (seen("test_efficientnet"), image(), 0.49),
    "timm GroupNorm": (seen("test_efficientnet_gn"), image(), 0.4),
    "timm ConvNeXt": (seen("test_convnext"), image(), 0.49),
    "timm NFNet": (seen("test_nfnet"), image(), 0.4),
    "timm transformer": (seen("test_vit"), image(160), 0.49),
    "timm blocks with attention": (seen("test_byobnet"), image(), 0.49),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_what_people_bring(name: str) -> None:
    make, x, reached = NETWORKS[name]
    torch.manual_seed(0)
    model = randomise(make()).eval()
    plan = slim.plan(model, x, ratio=0.5, round_to=1)
    assert reached <= plan.ratio_achieved <= 0.5, plan.shortfall
    thin = plan.apply(model)
    assert difference(model, thin, plan.removed, x) < 1e-10
    assert slim.verify(model, thin, plan, x) < 1e-10
