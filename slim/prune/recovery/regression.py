"""Least squares for one layer: the weights with which it comes closest to given outputs, from second moments alone.

A layer is linear in the patches that it reads, so the best weights W for targets t on patches u follow from the second
moments E[u uᵀ] and E[t uᵀ] (He et al., Channel Pruning for Accelerating Very Deep Neural Networks, ICCV 2017, eq. 3,
without their selection). A patch holds the kept channels of all the pixels that the kernel covers, zeros of the padding
included: what a removed channel carried is predicted from the kept ones of a pixel and of its neighbours.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from slim.prune.reading import in_float64
from slim.trace.intercept import CONVOLUTIONS, TRANSPOSED, LayerCall

RIDGES = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-8, 1e-12)  # relative to the mean variance of what a layer reads
WORSE = 1.01  # of the least that was missed: weaker ridges fit noise
FLAT = 1e-4  # of it: weaker ridges change nothing
WIDE = 1024  # features from which systems are factored in float32, which halves the time, and refined in float64
BLOCK = 1024  # features: products that are symmetric are computed in blocks, half of which the others mirror
PATCHES_PER_WEIGHT = 40  # rows of a regression per unknown of it: more change nothing
LEAST_PATCHES = 20_000
STEPS, PRECISE = 6, 1e-7  # of a refinement, and the share that may be missing after it
CHUNK = 1 << 24  # values of patches at a time


def fits(layer: LayerCall) -> bool:
    """Say whether `targets_for` knows the layer's form."""
    x, weight = layer.input, layer.arguments["weight"]
    if layer.func is F.linear:
        return x.dim() >= 2
    return x.dim() == weight.dim() and (layer.func in CONVOLUTIONS or layer.arguments.get("groups", 1) == 1)


@dataclass
class Moments:
    """Means of patches u (F features) and targets t (O outputs) and their second moments about the means, for each of g
    groups, float64, on the layer's device."""

    count: int
    u: Tensor  # [g, F]
    t: Tensor  # [g, O]
    uu: Tensor  # [g, F, F]
    tu: Tensor  # [g, O, F]
    tt: Tensor  # [g, O]

    @classmethod
    def of(cls, chunks: "Chunks") -> "Moments":
        sums: dict[str, Tensor] = {}
        gram = _Gram()
        count = 0
        near: tuple[Tensor, Tensor] | None = None  # close to the means, so that sums of squares lose no digits
        for u, t in chunks:
            near = near or (u.mean(2, keepdim=True), t.mean(2, keepdim=True))
            u, t = u - near[0], t - near[1]
            gram.add(u)
            products = {"u": u.sum(2), "t": t.sum(2), "tu": t @ u.mT, "tt": (t * t).sum(2)}
            for key, value in products.items():
                sums[key] = in_float64(value) if key not in sums else sums[key].add_(value.to(sums[key].device))
            count += u.shape[2]
        assert near is not None
        u, t, tu, tt = (sums[key].div_(count) for key in ("u", "t", "tu", "tt"))
        uu = gram.total().div_(count)
        mean_u, mean_t = (value + in_float64(shift[:, :, 0]) for value, shift in zip((u, t), near))
        return cls(count, mean_u, mean_t, _add_outer(uu, u, u, -1), _add_outer(tu, t, u, -1), tt - t**2)

    def __add__(self, other: "Moments") -> "Moments":
        n = self.count + other.count
        mine, theirs = self.count / n, other.count / n
        u, t = other.u - self.u, other.t - self.t
        both = mine * theirs
        return Moments(
            n,
            mine * self.u + theirs * other.u,
            mine * self.t + theirs * other.t,
            _add_outer(torch.lerp(self.uu, other.uu, theirs), u, u, both),
            _add_outer(torch.lerp(self.tu, other.tu, theirs), t, u, both),
            mine * self.tt + theirs * other.tt + both * t**2,
        )

    def about_zero(self) -> "Moments":
        """Return the same with second moments about zero: for a regression without an intercept."""
        uu, tu = _add_outer(self.uu.clone(), self.u, self.u), _add_outer(self.tu.clone(), self.t, self.u)
        return Moments(self.count, self.u, self.t, uu, tu, self.tt + self.t**2)

    def variance(self) -> float:
        """E|t|², summed over outputs."""
        return float(self.tt.sum())

    def missed(self, weight: Tensor) -> float:
        """E|t − weight u|², summed over outputs."""
        return float((self.tt + ((weight @ self.uu - 2 * self.tu) * weight).sum(2)).sum())

    def solve(self, old: Tensor, ridge: float) -> Tensor | None:
        """argmin over D of E|t − (old + D) u|² + ridge · s · |D|², s being the mean variance of u. [g, O, F]"""
        scale = self.uu.diagonal(dim1=1, dim2=2).mean(1)
        solution = _solved(self.uu, ridge * scale, (self.tu - old @ self.uu).mT)
        return None if solution is None else solution.mT


@dataclass
class Rows:
    """Patches and targets themselves, in place of moments where they are fewer than features: with rows for features,
    the matrices of the same solutions are small. Float64."""

    patches: Tensor  # [g, rows, F]
    targets: Tensor  # [g, rows, O]
    about_mean: bool = True

    @property
    def count(self) -> int:
        return self.patches.shape[1]

    @classmethod
    def of(cls, chunks: "Chunks") -> "Rows":
        patches, targets = zip(*((in_float64(u.mT), in_float64(t.mT)) for u, t in chunks))
        return cls(torch.cat(patches, 1), torch.cat(targets, 1))

    def __add__(self, other: "Rows") -> "Rows":
        return Rows(torch.cat([self.patches, other.patches], 1), torch.cat([self.targets, other.targets], 1))

    def about_zero(self) -> "Rows":
        return Rows(self.patches, self.targets, about_mean=False)

    @property
    def u(self) -> Tensor:
        return self.patches.mean(1)

    @property
    def t(self) -> Tensor:
        return self.targets.mean(1)

    def _about(self) -> tuple[Tensor, Tensor]:
        """Patches and targets from where their second moments are taken."""
        if not self.about_mean:
            return self.patches, self.targets
        return self.patches - self.u[:, None], self.targets - self.t[:, None]

    def variance(self) -> float:
        return float(self._about()[1].square().mean(1).sum())

    def missed(self, weight: Tensor) -> float:
        u, t = self._about()
        return float((t - u @ weight.mT).square().mean(1).sum())

    def solve(self, old: Tensor, ridge: float) -> Tensor | None:
        u, t = self._about()
        kernel = u @ u.mT / u.shape[1]
        scale = kernel.diagonal(dim1=1, dim2=2).sum(1) / u.shape[2]
        solution = _solved(kernel, ridge * scale, (t - u @ old.mT) / u.shape[1])
        return None if solution is None else solution.mT @ u


def _add_outer(matrices: Tensor, a: Tensor, b: Tensor, share: float = 1.0) -> Tensor:
    """Add `share` times the products a bᵀ to matrices [g, A, B], in place."""
    return matrices.baddbmm_(a[:, :, None], b[:, None, :], alpha=share)


class _Gram:
    """Sum of the products u uᵀ of patches [g, F, rows], shape [g, F, F]: of symmetric blocks one is computed, which the
    other mirrors at the end."""

    sums: Tensor | None = None

    def add(self, u: Tensor) -> None:
        features = u.shape[1]
        if self.sums is None:
            self.sums = in_float64(u.new_zeros(())).new_zeros(len(u), features, features)
        for start in range(0, features, BLOCK):
            block = slice(start, start + BLOCK)
            products = u[:, block] @ u[:, : start + BLOCK].mT
            self.sums[:, block, : start + BLOCK].add_(products.to(self.sums.device))

    def total(self) -> Tensor:
        assert self.sums is not None
        for start in range(BLOCK, self.sums.shape[1], BLOCK):
            block = slice(start, start + BLOCK)
            self.sums[:, :start, block] = self.sums[:, block, :start].mT
        return self.sums


Chunks = Iterator[tuple[Tensor, Tensor]]  # some patches [g, F, rows] and their targets [g, O, rows]


def _solved(matrix: Tensor, added: Tensor, right: Tensor) -> Tensor | None:
    """Solve (matrix + added · 1) x = right for symmetric matrices [g, n, n], added [g], right [g, n, m], in float64;
    None where one isn't definite."""
    added = torch.where(added > 0, added, torch.finfo(added.dtype).tiny)[:, None, None]
    for dtype in (torch.float32, torch.float64) if matrix.shape[1] >= WIDE else (torch.float64,):
        ridged = matrix.to(dtype, copy=True)
        ridged.diagonal(dim1=1, dim2=2).add_(added[:, :, 0].to(dtype))
        factor, failed = torch.linalg.cholesky_ex(ridged)
        del ridged
        if failed.any():
            continue
        x = torch.cholesky_solve(right.to(dtype), factor).double()
        if dtype == torch.float64 or _refined(x, matrix, added, right, factor):
            return x
    return None


def _refined(x: Tensor, matrix: Tensor, added: Tensor, right: Tensor, factor: Tensor) -> bool:
    """Correct a solution by what it misses, in place, until that is nothing; whether it comes to that."""
    size = right.norm()
    for _ in range(STEPS):
        missing = torch.baddbmm(right - added * x, matrix, x, alpha=-1)
        if missing.norm() <= PRECISE * size:
            return True
        x += torch.cholesky_solve(missing.float(), factor)
    return False


@dataclass
class Fit:
    """What a regression gives: the layer's weight and, with an intercept, bias; the share of the targets' variance that
    is missed with the weights as they were and with the new ones; the features of a group, and the places of all images
    that they were seen at."""

    weight: Tensor
    bias: Tensor | None
    missed_before: float
    missed: float
    features: int = 0
    places: int = 0


def fit_layer(layer: LayerCall, target: Tensor, intercept: bool) -> Fit | None:
    """Return the weights with which `layer` comes closest to `target`, shape of its output, on the input that it has.

    Ridge regression of what is missing, so that the weights stay as they are where the data say nothing else. How
    strong the ridge is, the second half of the images decides for weights fitted to the first half; then all of them
    are used. None where activations aren't finite.
    """
    halves = [_seen(layer, target, half) for half in (0, 1)]
    first, second = halves if intercept else (half.about_zero() for half in halves)
    weight = layer.arguments["weight"]
    old = _as_matrix(layer, weight)
    total = second.variance()
    misses = _search(first, second, old)
    if not misses or not math.isfinite(total):
        return None
    # among ridges that do as well as the best, the strongest
    least = min(misses.values())
    enough = least + max(0.001 * least, 4 * torch.finfo(_working_dtype(target)).eps * total)
    ridge = max(ridge for ridge, miss in misses.items() if miss <= enough)
    whole = halves[0] + halves[1]
    whole = whole if intercept else whole.about_zero()
    change = whole.solve(old, ridge) if ridge < math.inf else None
    new = old if change is None else old + change
    bias = (whole.t - (new @ whole.u[:, :, None])[:, :, 0]).reshape(-1) if intercept else None
    if not new.isfinite().all() or (bias is not None and not bias.isfinite().all()):
        return None
    before, after = (misses[r] / max(total, 1e-300) for r in (math.inf, ridge))
    return Fit(_as_weight(layer, new, weight), bias, before, after, features=old.shape[2], places=whole.count)


def _search(first: Any, second: Any, old: Tensor) -> dict[float, float]:
    """Return what weights miss of one half when they are fitted to the other, by the strength of the ridge, infinite
    for the old weights. From strong to weak, as far as that may help: what is missed falls, then rises."""
    misses: dict[float, float] = {}
    for ridge in (math.inf, *RIDGES):
        change = first.solve(old, ridge) if ridge < math.inf else 0.0
        missed = math.nan if change is None else second.missed(old + change)
        if not math.isfinite(missed):
            break
        misses[ridge] = missed
        least = min(misses.values())
        *_, last = [math.inf, *list(misses.values())[:-1]]
        flat = least < misses[math.inf] / WORSE and last - missed < FLAT * least
        if missed > WORSE * least or flat:
            break
    return misses


def _as_matrix(layer: LayerCall, weight: Tensor) -> Tensor:
    """[g, O, F] in float64, where O and F are outputs and features of one group."""
    if layer.func in TRANSPOSED:
        weight = weight.transpose(0, 1)
    groups = layer.arguments.get("groups", 1)
    return in_float64(weight.detach()).reshape(groups, weight.shape[0] // groups, -1)


def _as_weight(layer: LayerCall, matrix: Tensor, like: Tensor) -> Tensor:
    if layer.func in TRANSPOSED:
        return matrix.reshape(like.transpose(0, 1).shape).transpose(0, 1).to(like)
    return matrix.reshape(like.shape).to(like)


def _working_dtype(tensor: Tensor) -> torch.dtype:
    return tensor.dtype if tensor.dtype == torch.float64 else torch.float32


def _seen(layer: LayerCall, target: Tensor, half: int) -> Any:
    """Return what one half of the images says, as Moments or as Rows, whichever is smaller."""
    windows = _windows(layer)
    places = target.movedim(1, -1) if layer.func is not F.linear else target
    shape = places.shape[:-1]  # images × places in them
    every = math.prod(shape)
    middle = shape[0] // 2 * math.prod(shape[1:]) or every // 2  # of a single image, its places
    start, stop = (0, middle) if half == 0 else (middle, every)
    weight = layer.arguments["weight"]
    features = weight[:, 0].numel() if layer.func in TRANSPOSED else weight[0].numel()
    wanted = min(stop - start, max(LEAST_PATCHES, PATCHES_PER_WEIGHT * features) // 2)
    drawn = torch.arange(start, stop)
    if wanted < len(drawn):
        generator = torch.Generator().manual_seed(half)
        drawn = start + torch.randperm(len(drawn), generator=generator)[:wanted].sort().values
    chunks = _chunks(layer, windows, places, drawn.to(target.device), features)
    return (Rows if every < features else Moments).of(chunks)


def _chunks(layer: LayerCall, windows: Tensor, places: Tensor, drawn: Tensor, features: int) -> Chunks:
    """Return the patches and targets of the places drawn, some at a time."""
    groups = layer.arguments.get("groups", 1)
    shape, outputs = places.shape[:-1], places.shape[-1]
    dtype = _working_dtype(places)
    for chosen in drawn.split(max(1, CHUNK // (features * groups))):
        at = torch.unravel_index(chosen, shape)
        patches: Any = at if layer.func is F.linear else (at[0], slice(None), *at[1:])
        u = windows[patches].reshape(len(chosen), groups, features).permute(1, 2, 0)
        t = places[at].reshape(len(chosen), groups, outputs // groups).permute(1, 2, 0)
        yield u.to(dtype), t.to(dtype)


def _windows(layer: LayerCall) -> Tensor:
    """Return what the layer reads for each place of its output, as a view: [N, channels, places…, kernel…]; of a linear
    layer its input."""
    x, weight = layer.input, layer.arguments["weight"]
    if layer.func is F.linear:
        return x
    n = weight.dim() - 2
    kernel = weight.shape[2:]
    given = layer.arguments
    stride, dilation = (_each(given.get(key, 1), n) for key in ("stride", "dilation"))
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel)]
    padding = given.get("padding", 0)
    if layer.func in TRANSPOSED:  # the same as a convolution with stride 1 over an input with zeros in between
        extra = _each(given.get("output_padding", 0), n)
        sparse = x.new_zeros([*x.shape[:2], *((size - 1) * s + 1 for size, s in zip(x.shape[2:], stride))])
        steps: Any = (..., *(slice(None, None, s) for s in stride))
        sparse[steps] = x
        around = [r - 1 - p for r, p in zip(reach, _each(padding, n))]
        x, widths = sparse, [(a, a + e) for a, e in zip(around, extra)]
        stride = [1] * n
    elif padding == "same":
        widths = [((r - 1) // 2, r - 1 - (r - 1) // 2) for r in reach]
    else:
        widths = [(p, p) for p in _each(0 if padding == "valid" else padding, n)]
    x = F.pad(x, [w for pair in reversed(widths) for w in pair])
    for dim in range(n):
        x = x.unfold(2 + dim, reach[dim], stride[dim])
    apart: Any = (..., *(slice(None, None, d) for d in dilation))
    x = x[apart]
    return x.flip(list(range(2 + n, 2 + 2 * n))) if layer.func in TRANSPOSED else x


def _each(value: Any, n: int) -> list[int]:
    """Return a size for each of n dimensions, as torch.nn.functional takes them."""
    values = [value] if isinstance(value, int) else list(value)
    return values * n if len(values) == 1 else values
