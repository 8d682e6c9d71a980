"""Calibration images as an ONNX file takes them."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slim.deploy.target import Executable, FileInput
from slim.errors import SlimError
from slim.prune.recovery.recover import LEAST_IMAGES

HELD_OUT = 0.2  # of the images: those on which files are compared
FEWEST = LEAST_IMAGES + 4
Inputs = tuple[Tensor, ...]  # one for each input of the file, images first


def parted_images(original: Executable, batches: Iterable[Any] | None) -> tuple[Inputs | None, Inputs]:
    """Return the images to calibrate on, and those held out; None and random inputs where there are none.

    Raises SlimError where they are too few or don't fit the file, and where nothing tells the sizes of its inputs.
    """
    if batches is None:
        return None, _random_inputs(original)
    rows = [_row(original, batch) for batch in batches]
    if not rows:
        raise SlimError("no calibration images: expected at least one batch, or None to prune without")
    tensors = tuple(torch.cat(column) for column in zip(*rows))
    count = len(tensors[0])
    if count < FEWEST:
        raise SlimError(f"{count} calibration images: expected at least {FEWEST}, a few hundred better")
    kept_back = max(original.batch.example, round(HELD_OUT * count))
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    chosen = tuple(tensor[order] for tensor in tensors)
    return tuple(tensor[kept_back:] for tensor in chosen), tuple(tensor[:kept_back] for tensor in chosen)


def _row(original: Executable, batch: Any) -> list[Tensor]:
    """One batch as tensors in the order of the file's inputs, checked."""
    names = [entry.name for entry in original.inputs]
    if isinstance(batch, dict):
        batch = [batch[name] for name in names if name in batch]
    batch = batch if isinstance(batch, (tuple, list)) else [batch]
    if len(batch) != len(names):
        raise SlimError(f"{len(batch)} arrays in a batch: the file takes {len(names)}, {', '.join(names)}")
    row = []
    for entry, given in zip(original.inputs, batch):
        tensor = torch.as_tensor(given).detach().cpu().to(_type_of(entry))
        wanted = [None, *(size if isinstance(size, int) else None for size in entry.shape[1:])]
        if tensor.dim() != len(wanted) or any(w not in (None, size) for w, size in zip(wanted, tensor.shape)):
            shown = ", ".join("N" if i == 0 else "any" if size is None else str(size) for i, size in enumerate(wanted))
            raise SlimError(f"images of shape {list(tensor.shape)} for {entry.name!r}: expected [{shown}]")
        row.append(tensor)
    return row


def _random_inputs(original: Executable) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    found = []
    for entry in original.inputs:
        sizes = [size for size in entry.shape[1:] if isinstance(size, int)]
        if len(sizes) < len(entry.shape) - 1 or not entry.shape:
            raise SlimError(
                f"input {entry.name!r} has shape {list(entry.shape)}: expected images, which tell its sizes"
            )
        made = torch.randn(original.batch.example, *sizes, generator=generator)
        kind = _type_of(entry)
        found.append(made.to(kind) if kind.is_floating_point else made.abs().to(kind))  # places in a table, perhaps
    return tuple(found)


def _type_of(entry: FileInput) -> torch.dtype:
    """Return the type of numbers that an input holds. SlimError where it holds none that torch knows."""
    try:
        return torch.from_numpy(np.empty(0, entry.dtype)).dtype
    except TypeError as error:
        raise SlimError(
            f"input {entry.name!r} takes {entry.dtype}: expected numbers of a type that torch has"
        ) from error
