"""Kernels of a few layers before and after pruning, as small images."""

import base64
import io
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from slim.errors import SlimError
from slim.prune.plan import PruningPlan
from slim.workbench.run.evidence.networks import Networks

TILES = 64  # filters of the first layer shown, at most
GONE = (128, 128, 128, 70)  # what was removed: a tint of the page, light or dark
# |weight| from none to the largest: perceptually even, for dark and light pages (six stops of viridis)
SCALE = np.array([(68, 1, 84), (65, 68, 135), (42, 120, 142), (34, 168, 132), (122, 209, 81), (253, 231, 37)], float)
# negative, zero, positive: blue, white, orange, told apart by colour-blind readers
SIGNED = np.array([(5, 90, 160), (247, 247, 247), (200, 80, 0)], float)


def weights(networks: Networks) -> list[dict[str, Any]]:
    """The first convolution filter by filter, and three more as maps of kernel sizes: `before` with what was removed
    in grey, `after`, both as PNG in data URLs with their sizes in channels."""
    before, after = networks.before, networks.after
    found = [
        name
        for name, module in before.named_modules()
        if isinstance(module, _ConvNd) and module.groups == 1 and module.weight.dim() == 4
    ]
    if not found:
        raise SlimError("the network has no ordinary two-dimensional convolution")
    if not networks.plans:
        raise SlimError("the run has no plan yet")
    first, *others = found
    chosen = [others[round(i * (len(others) - 1) / 2)] for i in range(3)] if len(others) > 2 else others
    modules = {"before": dict(before.named_modules()), "after": dict(after.named_modules())}
    rows = []
    for name in [first, *dict.fromkeys(chosen)]:
        pair = {key: _weight(named[name]) for key, named in modules.items()}
        kept = [_kept(networks.plans, f"{name}.weight", dim, pair["before"].shape[dim]) for dim in (0, 1)]
        if [len(k) for k in kept] != list(pair["after"].shape[:2]):
            continue  # removed channels that no plan explains
        draw = _filters if name == first and pair["before"].shape[2] > 1 else _map
        rows.append(
            {
                "layer": name,
                "filters": draw is _filters,
                "shape_before": list(pair["before"].shape),
                "shape_after": list(pair["after"].shape),
                "before": draw(pair["before"], kept),
                "after": draw(pair["after"], [np.arange(n) for n in pair["after"].shape[:2]]),
            }
        )
    return rows


def _weight(module: nn.Module) -> Tensor:
    weight = module.get_parameter("weight").detach().float().cpu()
    return weight.transpose(0, 1) if getattr(module, "transposed", False) else weight


def _kept(plans: list[PruningPlan], tensor: str, dim: int, width: int) -> np.ndarray:
    """Which of the original channels along a dimension the plans leave, in order."""
    left = np.arange(width)
    for plan in plans:
        left = np.delete(left, plan.cuts.get(tensor, {}).get(dim, []))
    return left


def _filters(weight: Tensor, kept: list[np.ndarray]) -> str:
    """Each filter as a tile, eight in a row; those over three channels in colour, others by their mean."""
    out, inputs, height, width = weight.shape
    shown = min(out, TILES)
    columns = min(8, shown)
    picture = np.full((-(-shown // columns) * (height + 1) + 1, columns * (width + 1) + 1, 4), 0, np.uint8)
    top = float(weight.abs().max()) or 1.0
    for i in range(shown):
        y, x = divmod(i, columns)
        place = picture[y * (height + 1) + 1 :, x * (width + 1) + 1 :][:height, :width]
        if i not in kept[0]:
            place[:] = GONE
            continue
        if inputs == 3:
            tile = (weight[i].permute(1, 2, 0).numpy() / top + 1) / 2 * 255
        else:
            tile = _coloured(weight[i].mean(0).numpy() / top, SIGNED, -1.0)
        place[..., :3], place[..., 3] = tile.round(), 255
    return _png(picture)


def _map(weight: Tensor, kept: list[np.ndarray]) -> str:
    """A pixel for each kernel: rows are output channels, columns input channels, brightness the kernel's norm."""
    norms = weight.flatten(2).norm(dim=2).numpy()
    picture = np.empty((*norms.shape, 4), np.uint8)
    picture[:] = GONE
    inside = np.ix_(*kept)
    top = float(norms[inside].max()) or 1.0
    colours = _coloured(norms[inside] / top, SCALE, 0.0).round()
    picture[inside] = np.concatenate([colours, np.full((*colours.shape[:2], 1), 255)], axis=-1)
    return _png(picture)


def _coloured(values: np.ndarray, stops: np.ndarray, low: float) -> np.ndarray:
    """Values from `low` to 1 as colours between the stops."""
    place = (values.clip(low, 1) - low) / (1 - low) * (len(stops) - 1)
    return np.stack([np.interp(place, np.arange(len(stops)), stops[:, c]) for c in range(3)], axis=-1)


def _png(picture: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(picture, "RGBA").save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
