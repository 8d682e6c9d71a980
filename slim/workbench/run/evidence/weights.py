"""Kernels of a few layers before and after pruning, as small images."""

from typing import Any

import numpy as np
from torch import nn
from torch.nn.modules.conv import _ConvNd

from slim.errors import SlimError
from slim.prune.plan import PruningPlan
from slim.workbench.run.evidence.networks import Networks
from slim.workbench.run.evidence.png import data_url

TILES = 64  # filters of the first layer shown, at most
GONE = (128, 128, 128, 70)  # what was removed: a tint of the page, light or dark
# |weight| from none to the largest: perceptually even, for dark and light pages (six stops of viridis)
SCALE = np.array([(68, 1, 84), (65, 68, 135), (42, 120, 142), (34, 168, 132), (122, 209, 81), (253, 231, 37)], float)
# negative, zero, positive: blue, white, orange, told apart by colour-blind readers
SIGNED = np.array([(5, 90, 160), (247, 247, 247), (200, 80, 0)], float)


def weights(networks: Networks) -> list[dict[str, Any]]:
    """Return the first convolution filter by filter, and three more as maps of kernel sizes: `before` with what was
    removed in grey, `after`, both as data URLs with their sizes in channels."""
    before, after = dict(networks.before.named_modules()), dict(networks.after.named_modules())
    convs = [(name, module) for name, module in before.items() if isinstance(module, _ConvNd) and module.groups == 1]
    found = [name for name, module in convs if module.weight.dim() == 4]
    if not found:
        raise SlimError("the network has no ordinary two-dimensional convolution")
    if not networks.plans:
        raise SlimError("the run has no plan yet")
    first, *others = found
    chosen = [others[round(i * (len(others) - 1) / 2)] for i in range(3)] if len(others) > 2 else others
    rows = []
    for name in [first, *dict.fromkeys(chosen)]:
        whole, thin = _weight(before[name]), _weight(after[name])
        kept = [_kept(networks.plans, f"{name}.weight", dim, whole.shape[dim]) for dim in (0, 1)]
        if [len(k) for k in kept] != list(thin.shape[:2]):
            continue  # removed channels that no plan explains
        filters = name == first and whole.shape[2] > 1
        draw = _filters if filters else _map
        row = {"layer": name, "filters": filters, "shape_before": list(whole.shape), "shape_after": list(thin.shape)}
        rows.append(row | {"before": draw(whole, kept), "after": draw(thin, [np.arange(n) for n in thin.shape[:2]])})
    return rows


def _weight(module: nn.Module) -> np.ndarray:
    weight = module.get_parameter("weight").detach().float().cpu()
    turned: np.ndarray = (weight.transpose(0, 1) if getattr(module, "transposed", False) else weight).numpy()
    return turned


def _kept(plans: list[PruningPlan], tensor: str, dim: int, width: int) -> np.ndarray:
    """Return which of the original channels along a dimension the plans leave, in order."""
    left = np.arange(width)
    for plan in plans:
        left = np.delete(left, plan.cuts.get(tensor, {}).get(dim, []))
    return left


def _filters(weight: np.ndarray, kept: list[np.ndarray]) -> str:
    """Return each filter as a tile, eight in a row; those over three channels in colour, others by their mean."""
    out, inputs, height, width = weight.shape
    shown, columns = min(out, TILES), min(8, out)
    image = np.zeros((-(-shown // columns) * (height + 1) + 1, columns * (width + 1) + 1, 4), np.uint8)
    scaled = weight / (float(np.abs(weight).max()) or 1.0)
    for i in range(shown):
        y, x = divmod(i, columns)
        place = image[y * (height + 1) + 1 :, x * (width + 1) + 1 :][:height, :width]
        place[:] = GONE
        if i in kept[0]:
            rgb = (scaled[i].transpose(1, 2, 0) + 1) / 2 * 255
            place[..., :3] = (rgb if inputs == 3 else _coloured(scaled[i].mean(0), SIGNED, -1.0)).round()
            place[..., 3] = 255
    return data_url(image)


def _map(weight: np.ndarray, kept: list[np.ndarray]) -> str:
    """Return a pixel for each kernel: rows are output channels, columns input channels, brightness the kernel's
    norm."""
    norms = np.linalg.norm(weight.reshape(*weight.shape[:2], -1), axis=2)
    inside = norms[np.ix_(*kept)]
    image = np.full((*norms.shape, 4), GONE, np.uint8)
    colours = _coloured(inside / (float(inside.max()) or 1.0), SCALE, 0.0).round()
    image[np.ix_(*kept)] = np.concatenate([colours, np.full((*inside.shape, 1), 255)], axis=-1)
    return data_url(image)


def _coloured(values: np.ndarray, stops: np.ndarray, low: float) -> np.ndarray:
    """Return values from `low` to 1 as colours between the stops."""
    place = (values.clip(low, 1) - low) / (1 - low) * (len(stops) - 1)
    return np.stack([np.interp(place, np.arange(len(stops)), stops[:, c]) for c in range(3)], axis=-1)
