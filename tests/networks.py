"""Small networks that pruners trip over, a generator of random ones, and the independent truth they are held to."""

import copy
import random
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from wild_coverage import tensors

NORMS = nn.modules.batchnorm._BatchNorm
Network = TypeVar("Network", bound=nn.Module)


def randomise(model: Network, seed: int = 0) -> Network:
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
    """The definition: the original with zeros in all that makes what goes (γ and β, rows and biases)."""
    model = copy.deepcopy(model)
    for name, channels in removed.items():
        holder, _, key = name.rpartition(".")
        if key == "scale":  # a parameter of the network's own
            model.get_parameter(name).data[channels] = 0
            continue
        whole = key != "in_proj_weight"  # of nn.MultiheadAttention, which has no weight of its own
        layer: Any = model.get_submodule(name if whole else holder)
        table = isinstance(layer, nn.Embedding)  # whose columns are channels
        weight = layer.weight if whole else layer.in_proj_weight
        bias = None if table else layer.bias if whole else layer.in_proj_bias
        rows = weight.data.transpose(0, 1) if table or getattr(layer, "transposed", False) else weight.data
        for c in channels:
            rows[c] = 0
            if bias is not None:
                bias.data[c] = 0
    return model


@torch.no_grad()
def difference(model: nn.Module, thin: nn.Module, removed: dict[str, list[int]], x: object) -> float:
    """Relative difference of all outputs of the masked original and the thin network, in float64."""
    inputs = tuple(t.double() for t in (x if isinstance(x, tuple) else (x,)))
    expected = tensors(masked(model, removed).double().eval()(*inputs))
    found = tensors(copy.deepcopy(thin).double().eval()(*inputs))
    assert [t.shape for t in expected] == [t.shape for t in found]
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(expected, found))


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


class StoredHalf(nn.Module):
    """A block that computes its width from half of it."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.part, self.a, self.b = c // 2, cbr(c, c), cbr(c, c)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.b(x.reshape(-1, 2 * self.part, *x.shape[2:]))


class Checked(nn.Module):
    """A block that checks a width that it gives to no operator."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.width, self.a = c, cbr(c, c)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        if x.shape[1] != self.width:
            raise ValueError(f"expected {self.width} channels")
        return x


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
    "constant slice": lambda: net(lambda s, x: s.a(x[:, 3:9]), a=cbr(6, 16)),  # what is behind it can go
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
    "added parameter": lambda: _with_parameter(lambda s, x: s.after(x + s.scale)),
    "kernel in a buffer": _with_buffer,
    "partial residual": lambda: net(_partial, small=cbr(16, 4), after=cbr(16, 16)),
    "stored half": lambda: net(lambda s, x: s.after(s.st(x)), st=StoredHalf(16), after=cbr(16, 16)),
    "checked width": lambda: net(lambda s, x: s.after(s.st(x)), st=Checked(16), after=cbr(16, 16)),
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
    "norm over channels": lambda: net(lambda s, x: s.a(F.normalize(x)), a=cbr(16, 16)),
    "group norm": lambda: net(lambda s, x: s.a(s.gn(x)), gn=nn.GroupNorm(4, 16), a=cbr(16, 16)),
    "added convolution": lambda: net(lambda s, x: s.a(x + s.bare(x)), bare=nn.Conv2d(16, 16, 1), a=cbr(16, 16)),
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
    "smallest magnitude of the channels": (
        lambda: net(lambda s, x: s.a(x * torch.linalg.vector_norm(x, -torch.inf, 1, keepdim=True)), a=cbr(16, 16)),
        ["stem.1"],
    ),
    "added exponential of a parameter": (lambda: _with_parameter(lambda s, x: s.after(x + s.scale.exp())), ["stem.1"]),
    "in place on a view": (lambda: net(lambda s, x: (x.view(-1).add_(1), s.a(x))[1], a=cbr(16, 16)), ["stem.1"]),
    "scaled by a constant table": (
        lambda: net(lambda s, x: s.a(x * torch.linspace(1, 2, 16).view(1, 16, 1, 1)), a=cbr(16, 16)),
        ["stem.1"],
    ),
    "scale that follows the width": (lambda: net(lambda s, x: s.a(x / x.shape[1] ** 0.5), a=cbr(16, 16)), ["stem.1"]),
    "one channel by number": (lambda: net(lambda s, x: s.a(x * x[:, 5:6]), a=cbr(16, 16)), ["stem.1"]),
    "path that follows the width": (
        lambda: net(lambda s, x: s.a(x) if x.shape[1] == 16 else s.a(x) * 2, a=cbr(16, 16)),
        ["stem.1"],
    ),
}


class Block(nn.Module):
    """Parts, and the function `body(self, x)` that uses them."""

    def __init__(self, body: Body, **parts: nn.Module) -> None:
        super().__init__()
        self.body = body
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)


def tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)  # [B, H·W, C]


def pixels(x: Tensor, like: Tensor) -> Tensor:
    return x.transpose(1, 2).reshape(len(x), -1, *like.shape[2:])


class FusedAttention(nn.Module):
    """Self-attention of 2 heads on one projection of queries, keys and values."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.proj = 2, nn.Linear(c, 3 * c), nn.Linear(c, c)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = (q @ k.transpose(2, 3) * q.shape[-1] ** -0.5).softmax(3) @ v
        return self.proj(mixed.transpose(1, 2).reshape(b, n, -1))


class CachedGrid(nn.Module):
    """A weight for each pixel, kept as long as images have the same size."""

    def __init__(self) -> None:
        super().__init__()
        self.shape: tuple[int, ...] = ()
        self.grid = torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        if self.shape != tuple(x.shape):
            self.shape = tuple(x.shape)
            self.grid = torch.linspace(0.5, 1.5, x.shape[-1], dtype=x.dtype, device=x.device)
        return x * self.grid


Act = type[nn.Module]
Made = tuple[nn.Module, int]  # a block, and the channels that it gives


def _plain(c: int, act: Act, r: random.Random) -> Made:
    out = r.choice([8, 12, 20])
    return cbr(c, out, act=act), out


def _residual(c: int, act: Act, r: random.Random) -> Made:
    inner = nn.Sequential(cbr(c, c, act=act), cbr(c, c, act=nn.Identity))
    return Block(lambda s, x: F.relu(x + s.a(x)), a=inner), c


def _bottleneck(c: int, act: Act, r: random.Random) -> Made:
    inner = nn.Sequential(cbr(c, 6, 1, act=act), cbr(6, c, act=nn.Identity))
    return Block(lambda s, x: F.relu(x + s.a(x)), a=inner), c


def _dense(c: int, act: Act, r: random.Random) -> Made:
    return Block(lambda s, x: torch.cat([x, s.a(x)], 1), a=cbr(c, 6, act=act)), c + 6


def _depthwise(c: int, act: Act, r: random.Random) -> Made:
    return nn.Sequential(cbr(c, c * 2, 1, act=act), cbr(c * 2, c * 2, g=c * 2, act=act), cbr(c * 2, c, 1)), c


def _grouped(c: int, act: Act, r: random.Random) -> Made:
    return nn.Sequential(cbr(c, 12, 1, act=act), cbr(12, 12, g=3, act=act), cbr(12, c, 1)), c


def _se(c: int, act: Act, r: random.Random) -> Made:
    return nn.Sequential(cbr(c, c, act=act), SE(c)), c


def _shuffle(c: int, act: Act, r: random.Random) -> Made:
    return nn.Sequential(cbr(c, 12, act=act), Shuffle()), 12


def _split(c: int, act: Act, r: random.Random) -> Made:
    def body(s: Any, x: Tensor) -> Tensor:
        a, b = s.a(x).chunk(2, 1)
        return torch.cat([a, s.b(b)], 1)

    return Block(body, a=cbr(c, 16, act=act), b=cbr(8, 8)), 16


def _preact(c: int, act: Act, r: random.Random) -> Made:
    conv = nn.Conv2d(c, c, 3, padding=1, bias=False)
    return Block(lambda s, x: x + s.conv(F.relu(s.norm(x))), norm=nn.BatchNorm2d(c), conv=conv), c


def _two(c: int, act: Act, r: random.Random) -> Made:
    return Block(lambda s, x: s.a(x) * 0.5 + s.b(x), a=cbr(c, 8, 1, act=act), b=cbr(c, 8, 3)), 8


def _bare(c: int, act: Act, r: random.Random) -> Made:
    out = r.choice([8, 12])
    return nn.Sequential(nn.Conv2d(c, out, 3, padding=1), act()), out


def _group_norm(c: int, act: Act, r: random.Random) -> Made:
    return nn.Sequential(nn.Conv2d(c, 16, 3, padding=1), nn.GroupNorm(4, 16), act()), 16


def _instance_norm(c: int, act: Act, r: random.Random) -> Made:
    return nn.Sequential(nn.Conv2d(c, 12, 3, padding=1), nn.InstanceNorm2d(12, affine=True), act()), 12


def _convnext(c: int, act: Act, r: random.Random) -> Made:
    def body(s: Any, x: Tensor) -> Tensor:
        return x + s.mlp(s.norm(s.mix(x).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)

    mlp = nn.Sequential(nn.Linear(c, 4 * c), nn.GELU(), nn.Linear(4 * c, c))
    return Block(body, mix=nn.Conv2d(c, c, 3, padding=1, groups=c), norm=nn.LayerNorm(c), mlp=mlp), c


def _attention(c: int, act: Act, r: random.Random) -> Made:
    def body(s: Any, x: Tensor) -> Tensor:
        return x + pixels(s.attention(s.norm(tokens(x))), x)

    return Block(body, norm=nn.LayerNorm(c), attention=FusedAttention(c)), c


def _multihead(c: int, act: Act, r: random.Random) -> Made:
    def body(s: Any, x: Tensor) -> Tensor:
        t = tokens(s.a(x))
        return x + pixels(s.attention(t, t, t, need_weights=False)[0], x)

    return Block(body, a=cbr(c, c, 1, act=act), attention=nn.MultiheadAttention(c, 2, batch_first=True)), c


def _recurrent(c: int, act: Act, r: random.Random) -> Made:
    kind = r.choice([nn.LSTM, nn.GRU])

    def body(s: Any, x: Tensor) -> Tensor:
        return s.b(pixels(s.rnn(tokens(s.a(x)))[0], x))

    return Block(body, a=cbr(c, c, 1, act=act), rnn=kind(c, 10, batch_first=True), b=cbr(10, c, 1)), c


def _cache(c: int, act: Act, r: random.Random) -> Made:
    return nn.Sequential(cbr(c, c, act=act), CachedGrid()), c


def _scalar(c: int, act: Act, r: random.Random) -> Made:
    ways: list[Callable[[Tensor], Tensor]] = [
        lambda x: x / x.shape[1],
        lambda x: x * x.shape[1] ** -0.5,
        lambda x: x / torch.sqrt(torch.tensor(float(x.shape[1]))),
        lambda x: torch.add(x, x, alpha=x.shape[1]),
        lambda x: x / x[0].numel(),
        lambda x: x - x.sum(1, keepdim=True) / x.shape[1],
    ]
    way = r.choice(ways)
    return Block(lambda s, x: s.b(way(s.a(x))), a=cbr(c, 12, act=act), b=cbr(12, c)), c


def _glu(c: int, act: Act, r: random.Random) -> Made:
    return Block(lambda s, x: s.b(F.glu(s.a(x), 1)), a=cbr(c, 16, act=act), b=cbr(8, c)), c


def _normalised(c: int, act: Act, r: random.Random) -> Made:
    return Block(lambda s, x: s.b(F.normalize(s.a(x), dim=1)), a=cbr(c, 12, act=act), b=cbr(12, c)), c


@dataclass
class Result:
    """An output that torch's pytree doesn't know."""

    scores: Tensor
    more: Any = None


OUTPUTS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "tensor": lambda scores, maps: scores,
    "tuple": lambda scores, maps: (scores, maps),
    "dict": lambda scores, maps: {"scores": scores, "maps": [maps]},
    "dataclass": lambda scores, maps: Result(scores, {"maps": maps}),
    "namespace": lambda scores, maps: SimpleNamespace(scores=scores, maps=Result(maps)),
}


class RandomNet(nn.Module):
    """A random network: a stream of blocks, each of a random kind, that share, split, join and mix channels.

    `KINDS` are blocks with BatchNorm, which give up any of their channels; `MORE` ones that don't, or not as easily.
    """

    KINDS: ClassVar[dict[str, Callable[[int, Act, random.Random], Made]]] = {
        "plain": _plain,
        "residual": _residual,
        "bottleneck": _bottleneck,
        "dense": _dense,
        "depthwise": _depthwise,
        "grouped": _grouped,
        "se": _se,
        "shuffle": _shuffle,
        "split": _split,
        "preact": _preact,
        "two": _two,
    }
    MORE: ClassVar[dict[str, Callable[[int, Act, random.Random], Made]]] = {
        "bare": _bare,
        "group norm": _group_norm,
        "instance norm": _instance_norm,
        "convnext": _convnext,
        "attention": _attention,
        "multihead": _multihead,
        "recurrent": _recurrent,
        "cache": _cache,
        "scalar": _scalar,
        "glu": _glu,
        "normalised": _normalised,
    }

    def __init__(self, seed: int, *, more: bool = False) -> None:
        super().__init__()
        r = random.Random(seed)
        torch.manual_seed(seed)
        makers = {**self.KINDS, **(self.MORE if more else {})}
        c = r.choice([8, 12, 16])
        normless = more and r.random() < 0.3  # nothing with BatchNorm, but what a block brings
        self.stem: nn.Module = nn.Sequential(nn.Conv2d(3, c, 3, padding=1), nn.ReLU()) if normless else cbr(3, c)
        self.kinds: list[str] = []
        self.blocks = nn.Sequential()
        for _ in range(r.randint(2, 5)):
            kind = r.choice([*makers] if not normless else [*self.MORE])
            block, c = makers[kind](c, r.choice([nn.ReLU, nn.SiLU, nn.Hardswish, nn.LeakyReLU]), r)
            self.kinds.append(kind)
            self.blocks.append(block)
        self.tail = cbr(c, 10)
        self.fc = nn.Linear(10, 4)
        self.output = r.choice([*OUTPUTS]) if more else "tensor"

    def forward(self, x: Tensor) -> Any:
        maps = self.tail(self.blocks(self.stem(x)))
        return OUTPUTS[self.output](self.fc(maps.mean((2, 3))), maps)


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
