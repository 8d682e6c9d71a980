"""Small networks that pruners trip over, a generator of random ones, and the independent truth they are held to."""

import copy
import random
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORMS = nn.modules.batchnorm._BatchNorm


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random γ, β and statistics, so that no channel is like another."""
    g = torch.Generator().manual_seed(seed)
    for m in model.modules():
        if isinstance(m, NORMS) and m.affine:
            m.weight.data.uniform_(0.01, 1, generator=g)
            m.bias.data.normal_(0, 0.1, generator=g)
            m.get_buffer("running_mean").normal_(0, 0.3, generator=g)
            m.get_buffer("running_var").uniform_(0.5, 2, generator=g)
    return model


def masked(model: nn.Module, removed: dict[str, list[int]]) -> nn.Module:
    """The definition: the original with γ = β = 0 on what goes."""
    model = copy.deepcopy(model)
    for name, channels in removed.items():
        for parameter in model.get_submodule(name).parameters():
            parameter.data[channels] = 0
    return model


@torch.no_grad()
def difference(model: nn.Module, thin: nn.Module, removed: dict[str, list[int]], x: object) -> float:
    """Relative difference of the outputs of the masked original and the thin network, in float64."""
    inputs = tuple(t.double() for t in (x if isinstance(x, tuple) else (x,)))
    a = masked(model, removed).double().eval()(*inputs)
    b = copy.deepcopy(thin).double().eval()(*inputs)
    assert a.shape == b.shape
    return float((a - b).abs().max() / a.abs().max())


def cbr(i: int, o: int, k: int = 3, s: int = 1, g: int = 1, act: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(i, o, k, s, k // 2, groups=g, bias=False), nn.BatchNorm2d(o), act())


class Head(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.fc = nn.Linear(c, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.mean((2, 3)))


Body = Callable[[Any, Tensor], Tensor]


class Net(nn.Module):
    """stem -> body (as a subclass says) -> head"""

    body: Callable[[Tensor], Tensor]

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        self.stem = cbr(3, 16)
        for name, part in parts.items():
            setattr(self, name, part)
        self.head = Head(16)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)))


def net(body: Body, **parts: nn.Module) -> Any:
    """A network whose body is the function `body(self, x)`."""
    return type("Made", (Net,), {"body": body})(**parts)


class Stored(nn.Module):
    """A block whose forward holds a size of its own."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.width = c // 2
        self.a, self.b = cbr(c // 2, c // 2), cbr(c // 2, c // 2)

    def forward(self, x: Tensor) -> Tensor:
        x, y = torch.split(x, self.width, 1)
        return torch.cat([self.a(x), self.b(y)], 1)


class StoredUnequal(nn.Module):
    """Sizes in two attributes that only work when both follow, and one more in a list."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.first, self.rest = c // 4, c - c // 4
        self.again = [c // 2, c // 4, c - c // 2 - c // 4]
        self.a, self.b = cbr(self.first, self.first), cbr(c // 2, c // 2)

    def forward(self, x: Tensor) -> Tensor:
        x, y = torch.split(x, [self.first, self.rest], 1)
        x, y, z = torch.split(torch.cat([self.a(x), y], 1), self.again, 1)
        return torch.cat([self.b(x), y, z], 1)


class StoredAlike(nn.Module):
    """Attention whose heads' sizes are stored, and so is their sum, which is as large as the stream by chance."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.heads, self.key, self.value, self.values = 4, c // 8, c // 4, c
        self.qkv = nn.Sequential(nn.Conv2d(c, 2 * c, 1, bias=False), nn.BatchNorm2d(2 * c))
        self.proj, self.norm = nn.Linear(c, c, bias=False), nn.BatchNorm2d(c)

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        tokens = self.qkv(x).flatten(2).transpose(1, 2)  # [B, HW, heads · (2 key + value)]
        split = tokens.view(b, h * w, self.heads, -1).split([self.key, self.key, self.value], dim=3)
        q, k, v = (part.transpose(1, 2) for part in split)
        mixed = (q @ k.transpose(2, 3)).softmax(3) @ v
        out = self.proj(mixed.transpose(1, 2).reshape(b, h * w, self.values))
        return x + self.norm(out.transpose(1, 2).reshape(b, -1, h, w)).relu()


class StoredShared(nn.Module):
    """Several layers whose outputs are split at sizes that all of them share."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.first, self.rest = c // 4, c - c // 4
        self.heads = nn.ModuleList(cbr(c, c) for _ in range(3))
        self.proj = cbr(3 * c, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = [head(x).split([self.first, self.rest], 1) for head in self.heads]
        return x + self.proj(torch.cat([part for pair in parts for part in pair], 1))


class Aux(nn.Module):
    """A head that only the training forward uses."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head, self.aux = cbr(3, 16), cbr(16, 16), Head(16), Head(16)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.stem(x)
        out = self.head(self.body(x))
        return (out, self.aux(x)) if self.training else out


class SE(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(c, 4, 1), nn.Conv2d(4, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))


class Shuffle(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        return x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)


def shift_buffer(n: Any, x: Tensor) -> Tensor:
    return F.conv2d(x, n.kernel, padding=1, groups=x.shape[1])


def _with_buffer() -> nn.Module:
    n = net(lambda s, x: s.after(shift_buffer(s, x)), after=cbr(16, 16))
    n.register_buffer("kernel", torch.rand(16, 1, 3, 3))
    return n


def _with_parameter(op: Body) -> nn.Module:
    n = net(op, after=cbr(16, 16))
    n.scale = nn.Parameter(torch.rand(16, 1, 1) + 0.5)
    return n


def _twice(s: Any, x: Tensor) -> Tensor:
    return s.again(s.again(x))


def _partial(s: Any, x: Tensor) -> Tensor:
    y = s.small(x)
    x = x.clone()
    x[:, :4] += y
    return s.after(x)


# name -> (network, BatchNorms that can't be touched; None: any part may be frozen, "all" of it may not)
ZOO = {
    "plain": lambda: net(lambda s, x: s.a(x), a=cbr(16, 16)),
    "residual": lambda: net(lambda s, x: x + s.a(x), a=nn.Sequential(cbr(16, 16), cbr(16, 16, act=nn.Identity))),
    "residual in place": lambda: net(lambda s, x: s.a(x).add_(x), a=cbr(16, 16)),
    "concat": lambda: net(lambda s, x: s.c(torch.cat([x, s.a(x)], 1)), a=cbr(16, 8), c=cbr(24, 16)),
    "depthwise": lambda: net(lambda s, x: s.b(s.a(x)), a=cbr(16, 16, g=16), b=cbr(16, 16)),
    "depthwise with multiplier": lambda: net(lambda s, x: s.b(s.a(x)), a=cbr(16, 32, g=16), b=cbr(32, 16)),
    "grouped": lambda: net(lambda s, x: s.b(s.a(x)), a=cbr(16, 32, g=4), b=cbr(32, 16)),
    "squeeze-excite": lambda: net(lambda s, x: s.b(s.se(s.a(x))), a=cbr(16, 16), se=SE(16), b=cbr(16, 16)),
    "shuffle": lambda: net(lambda s, x: s.b(s.sh(s.a(x))), a=cbr(16, 16), sh=Shuffle(), b=cbr(16, 16)),
    "chunk": lambda: net(lambda s, x: s.b(torch.mul(*x.chunk(2, 1))), b=cbr(8, 16)),
    "pixel shuffle": lambda: net(lambda s, x: s.b(F.pixel_shuffle(x, 2)), b=cbr(4, 16)),
    "transposed": lambda: net(
        lambda s, x: s.b(F.relu(s.n(s.t(x)))),
        t=nn.ConvTranspose2d(16, 12, 2, 2, bias=False),
        n=nn.BatchNorm2d(12),
        b=cbr(12, 16),
    ),
    "prelu": lambda: net(
        lambda s, x: s.b(s.p(s.n(s.a(x)))), a=nn.Conv2d(16, 16, 3), n=nn.BatchNorm2d(16), p=nn.PReLU(16), b=cbr(16, 16)
    ),
    "hardswish, silu, gelu": lambda: net(
        lambda s, x: s.c(s.b(s.a(x))),
        a=cbr(16, 16, act=nn.Hardswish),
        b=cbr(16, 16, act=nn.SiLU),
        c=cbr(16, 16, act=nn.GELU),
    ),
    "called twice": lambda: net(_twice, again=cbr(16, 16)),
    "layer scale": lambda: _with_parameter(lambda s, x: s.after(x * s.scale)),
    "kernel in a buffer": _with_buffer,
    "partial residual": lambda: net(_partial, small=cbr(16, 4), after=cbr(16, 16)),
    "stored split size": lambda: net(lambda s, x: s.st(x), st=Stored(16)),
    "stored sizes alike": lambda: net(lambda s, x: s.st(x), st=StoredAlike(16)),
    "stored sizes shared": lambda: net(lambda s, x: s.st(x), st=StoredShared(16)),
    "stored unequal sizes": lambda: net(lambda s, x: s.st(x), st=StoredUnequal(16)),
    "pre-activation": lambda: net(
        lambda s, x: F.relu(s.m(x + s.c(F.relu(s.n(x))))),
        n=nn.BatchNorm2d(16),
        c=nn.Conv2d(16, 16, 3, padding=1),
        m=nn.BatchNorm2d(16),
    ),
    "flatten": lambda: nn.Sequential(
        cbr(3, 8, s=2), nn.Flatten(), nn.Linear(8 * 64, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 5)
    ),
}

# what must not be removed, although a γ seems to allow it: name -> (network, BatchNorms that have to stay whole)
TRAPS = {
    "1 - x": (lambda: net(lambda s, x: s.a(1 - x), a=cbr(16, 16)), ["stem.1"]),
    "cos": (lambda: net(lambda s, x: s.a(x.cos()), a=cbr(16, 16)), ["stem.1"]),
    "sigmoid": (lambda: net(lambda s, x: s.a(x.sigmoid()), a=cbr(16, 16)), ["stem.1"]),
    "mean over channels": (lambda: net(lambda s, x: s.a(x + x.mean(1, keepdim=True)), a=cbr(16, 16)), ["stem.1"]),
    "maximum over channels": (lambda: net(lambda s, x: s.a(x - x.amax(1, keepdim=True)), a=cbr(16, 16)), ["stem.1"]),
    "softmax over channels": (lambda: net(lambda s, x: s.a(x.softmax(1)), a=cbr(16, 16)), ["stem.1"]),
    "norm over channels": (lambda: net(lambda s, x: s.a(F.normalize(x)), a=cbr(16, 16)), ["stem.1"]),
    "group norm": (lambda: net(lambda s, x: s.a(s.gn(x)), gn=nn.GroupNorm(4, 16), a=cbr(16, 16)), ["stem.1"]),
    "added parameter": (lambda: _with_parameter(lambda s, x: s.after(x + s.scale)), ["stem.1"]),
    "added convolution": (
        lambda: net(lambda s, x: s.a(x + s.bare(x)), bare=nn.Conv2d(16, 16, 1), a=cbr(16, 16)),
        ["stem.1"],
    ),
    "in place on a view": (lambda: net(lambda s, x: (x.view(-1).add_(1), s.a(x))[1], a=cbr(16, 16)), ["stem.1"]),
    "scaled by a constant table": (
        lambda: net(lambda s, x: s.a(x * torch.linspace(1, 2, 16).view(1, 16, 1, 1)), a=cbr(16, 16)),
        ["stem.1"],
    ),
    "scale that follows the width": (lambda: net(lambda s, x: s.a(x / x.shape[1] ** 0.5), a=cbr(16, 16)), ["stem.1"]),
    "constant slice": (lambda: net(lambda s, x: s.a(x[:, 3:9]), a=cbr(6, 16)), ["stem.1"]),
    "one channel by number": (lambda: net(lambda s, x: s.a(x * x[:, 5:6]), a=cbr(16, 16)), ["stem.1"]),
    "path that follows the width": (
        lambda: net(lambda s, x: s.a(x) if x.shape[1] == 16 else s.a(x) * 2, a=cbr(16, 16)),
        ["stem.1"],
    ),
}


class RandomNet(nn.Module):
    """A random network: a stream of blocks, each of a random kind, that share, split, join and mix channels."""

    KINDS = (
        "plain",
        "residual",
        "bottleneck",
        "dense",
        "depthwise",
        "grouped",
        "se",
        "shuffle",
        "split",
        "preact",
        "two",
    )

    def __init__(self, seed: int) -> None:
        super().__init__()
        r = random.Random(seed)
        c = r.choice([8, 12, 16])
        self.stem = cbr(3, c)
        self.kinds: list[str] = []
        self.blocks = nn.ModuleList()
        for _ in range(r.randint(2, 5)):
            kind = r.choice(self.KINDS)
            c = self._add(kind, c, r)
        self.tail = cbr(c, 10)
        self.fc = nn.Linear(10, 4)

    def _add(self, kind: str, c: int, r: random.Random) -> int:
        act = r.choice([nn.ReLU, nn.SiLU, nn.Hardswish, nn.LeakyReLU])
        parts = nn.ModuleList()
        out = c
        if kind == "plain":
            out = r.choice([8, 12, 20])
            parts.append(cbr(c, out, act=act))
        elif kind == "residual":
            parts.append(nn.Sequential(cbr(c, c, act=act), cbr(c, c, act=nn.Identity)))
        elif kind == "bottleneck":
            parts.append(nn.Sequential(cbr(c, 6, 1, act=act), cbr(6, c, act=nn.Identity)))
        elif kind == "dense":
            parts.append(cbr(c, 6, act=act))
            out = c + 6
        elif kind == "depthwise":
            parts.append(
                nn.Sequential(cbr(c, c * 2, 1, act=act), cbr(c * 2, c * 2, g=c * 2, act=act), cbr(c * 2, c, 1))
            )
        elif kind == "grouped":
            parts.append(nn.Sequential(cbr(c, 12, 1, act=act), cbr(12, 12, g=3, act=act), cbr(12, c, 1)))
        elif kind == "se":
            parts.extend([cbr(c, c, act=act), SE(c)])
        elif kind == "shuffle":
            out = 12
            parts.extend([cbr(c, 12, act=act), Shuffle()])
        elif kind == "split":
            out = 16
            parts.extend([cbr(c, 16, act=act), cbr(8, 8)])
        elif kind == "preact":
            parts.extend([nn.BatchNorm2d(c), nn.Conv2d(c, c, 3, padding=1, bias=False)])
        elif kind == "two":
            parts.extend([cbr(c, 8, 1, act=act), cbr(c, 8, 3)])
            out = 8
        self.kinds.append(kind)
        self.blocks.append(parts)
        return out

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        p: Any
        for kind, p in zip(self.kinds, self.blocks):
            if kind in ("plain", "grouped", "depthwise"):
                x = p[0](x)
            elif kind in ("residual", "bottleneck"):
                x = F.relu(x + p[0](x))
            elif kind == "dense":
                x = torch.cat([x, p[0](x)], 1)
            elif kind in ("se", "shuffle"):
                x = p[1](p[0](x))
            elif kind == "split":
                a, b = p[0](x).chunk(2, 1)
                x = torch.cat([a, p[1](b)], 1)
            elif kind == "preact":
                x = x + p[1](F.relu(p[0](x)))
            elif kind == "two":
                x = p[0](x) * 0.5 + p[1](x)
        return self.fc(self.tail(x).mean((2, 3)))


def digits_network() -> tuple[nn.Module, float, float]:
    """Right on more than 9 of 10 digits after the first 1,500, without training: a random body, and a head fitted by
    least squares to what that sees. With mean and std of the images."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    grey = torch.tensor(digits.images / 16, dtype=torch.float32)[:, None]
    labels = torch.tensor(digits.target)
    mean, std = grey[:1500].mean().item(), grey[:1500].std().item()
    images = (grey - mean) / std
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(16, momentum=None)
    body = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), norm, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
    head = nn.Linear(256, 10)
    net = nn.Sequential(body, head)
    with torch.no_grad():
        body(images[:1500])
        features = torch.cat([body.eval()(images), torch.ones(len(images), 1)], 1)
        targets = nn.functional.one_hot(labels[:1500]).float()
        solution = torch.linalg.lstsq(features[:1500], targets, driver="gelsd").solution
        head.weight.copy_(solution[:-1].T)
        head.bias.copy_(solution[-1])
    assert (net.eval()(images[1500:]).argmax(1) == labels[1500:]).float().mean() > 0.9
    return net, mean, std
