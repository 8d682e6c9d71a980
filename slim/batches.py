"""What a network is to look at, by one convention wherever slim takes images: a batch, or anything that gives batches.

A batch is a tensor or an array, or a tuple or dict of them where the network takes several. Whatever else can be gone
through, such as a DataLoader or a list, gives batches. Of a batch from there that is a tuple or a list, the first part
is what the network takes: the others are targets, as data sets have them.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from slim.errors import SlimError


def in_batches(images: Any) -> Iterator[Any]:
    """Yield what the network takes, batch after batch: numpy's arrays as tensors, and its float64 as float32.

    >>> labelled = [(torch.zeros(4, 3, 8, 8), torch.zeros(4)), (torch.ones(2, 3, 8, 8), torch.zeros(2))]
    >>> [len(batch) for batch in in_batches(labelled)]
    [4, 2]
    """
    if isinstance(images, Tensor | np.ndarray | tuple | Mapping):
        yield as_tensors(images)
        return
    if not isinstance(images, Iterable):
        raise SlimError(
            f"images are of type {type(images).__name__}: expected a tensor, or batches such as a DataLoader"
        )
    for batch in images:
        if isinstance(batch, tuple | list) and not batch:
            raise SlimError("a batch of images is empty: expected what the network takes, and its targets after it")
        yield inputs_of(batch)


def inputs_of(batch: Any) -> Any:
    """Return what the network takes of one of several batches. Several inputs come as a list from a DataLoader."""
    first = batch[0] if isinstance(batch, tuple | list) else batch
    return as_tensors(tuple(first) if type(first) is list else first)  # Samples is another list


def as_tensors(batch: Any) -> Any:
    """Return a batch with numpy's arrays as tensors."""

    def of(leaf: Any) -> Any:
        if not isinstance(leaf, np.ndarray):
            return leaf
        return torch.as_tensor(leaf.astype(np.float32) if leaf.dtype == np.float64 else leaf)

    return tree_map(of, batch)


def as_one(images: Any, most: int) -> Any:
    """Return images as one batch: as it is, or the first batches joined, until they are `most` images or more. Raises
    SlimError where there are none, or they don't join."""
    found, count = [], 0
    for batch in in_batches(images):
        found.append(batch)
        count += next((len(leaf) for leaf in tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.dim()), 0)
        if count >= most:
            break
    if not found:
        raise SlimError("there are no images: expected at least one batch")
    if len(found) == 1:
        return found[0]
    leaves, structures = zip(*map(tree_flatten, found))
    try:
        joined = [torch.cat(each) if isinstance(each[0], Tensor) else each[0] for each in zip(*leaves, strict=True)]
    except (ValueError, RuntimeError, TypeError) as error:
        raise SlimError(f"batches of images don't join ({' '.join(str(error).split())}): expected one size") from None
    return tree_unflatten(joined, structures[0])


def first_batch(images: Any) -> Any:
    """Return the first batch, or the only one."""
    return as_one(images, 0)
