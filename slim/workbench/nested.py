"""Batches with any nesting: a tensor, or tuples, lists and dicts of them, each with the samples along its first axis.

A list of samples of their own sizes, as detection takes them, is a `Samples`.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

NAMED = 3  # tensors in an error


class Samples(list[Any]):
    """One entry for each sample of a batch, not a nesting: images of several sizes, or their boxes."""


def length(batch: Any) -> int:
    """Return the number of samples of a batch. Raises TypeError where it holds none."""
    for leaf in tree_leaves(batch):
        if isinstance(leaf, Samples) or (isinstance(leaf, Tensor) and leaf.ndim):
            return len(leaf)
    raise TypeError("it holds no tensor with samples along its first axis")


def part(batch: Any, index: slice) -> Any:
    """Return some samples of a batch."""
    return tree_map(lambda leaf: _indexed(leaf, index), batch)


def _indexed(leaf: Any, index: slice) -> Any:
    if isinstance(leaf, Samples):
        return Samples(leaf[index])
    return leaf[index] if isinstance(leaf, Tensor) and leaf.ndim else leaf


def split(batch: Any, parts: int) -> list[Any]:
    """Cut a batch into so many parts, as equal as can be, the larger ones first."""
    if parts == 1:
        return [batch]
    each, more = divmod(length(batch), parts)
    ends = [number * each + min(number, more) for number in range(parts + 1)]
    return [part(batch, slice(start, end)) for start, end in itertools.pairwise(ends) if end > start]


def joined(batches: Sequence[Any]) -> Any:
    """Return several batches as one."""
    leaves, structures = zip(*map(tree_flatten, batches))
    return tree_unflatten([_chained(each) for each in zip(*leaves, strict=True)], structures[0])


def _chained(leaves: Sequence[Any]) -> Any:
    if isinstance(leaves[0], Samples):
        return Samples(itertools.chain(*leaves))
    return torch.cat(list(leaves)) if isinstance(leaves[0], Tensor) and leaves[0].ndim else leaves[0]


def moved(batch: Any, device: torch.device | str) -> Any:
    """Return the batch on a device."""

    def of(leaf: Any) -> Any:
        if isinstance(leaf, Samples):
            return Samples(moved(sample, device) for sample in leaf)
        return leaf.to(device, non_blocking=True) if isinstance(leaf, Tensor) else leaf

    return tree_map(of, batch)


def arranged(batch: Any, layout: torch.memory_format) -> Any:
    """Return the batch with its images [N, C, H, W] in a memory layout."""
    if isinstance(batch, Tensor):
        return _arranged(batch, layout) if batch.ndim == 4 else batch
    leaves, structure = tree_flatten(batch)
    leaves = [arranged(leaf, layout) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    return tree_unflatten(leaves, structure)


def _arranged(images: Tensor, layout: torch.memory_format) -> Tensor:
    images = images.contiguous(memory_format=layout)
    if layout is torch.contiguous_format:  # with one channel its stride means nothing, but convolutions go by it
        return images.view(-1).view(images.shape)
    return images


def call(model: Any, inputs: Any) -> Any:
    """Run a network: a tensor is its one argument, a tuple or list are positional ones, a dict named ones."""
    if isinstance(inputs, dict):
        return model(**inputs)
    if isinstance(inputs, tuple | list) and not isinstance(inputs, Samples):
        return model(*inputs)
    return model(inputs)


def shapes(inputs: Any) -> str:
    """Describe a batch in an error: the shape of one sample."""
    found = [list(leaf.shape[1:]) for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor) and leaf.ndim]
    return " and ".join(map(str, found)) or type(inputs).__name__


def described(batch: Any) -> str:
    """Describe a batch in an error: the types and shapes of its tensors."""
    found = [f"{leaf.dtype} {list(leaf.shape)}" for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)]
    what = " and ".join(found[:NAMED]).replace("torch.", "") or "no tensors"
    return what if isinstance(batch, Tensor) else f"a {type(batch).__name__} of {what}"
