"""How good a network is on data that it wasn't trained on."""

import math
import operator
from collections.abc import Iterable, Iterator, Sequence
from functools import reduce
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from slim.errors import SlimError
from slim.workbench.causes import is_out_of_memory, told
from slim.workbench.config import ComputeConfig
from slim.workbench.data import Dataset, Loaders, Split, ordered
from slim.workbench.data.loaders import Batches
from slim.workbench.nested import arranged, described, length, moved, shapes
from slim.workbench.nested import split as cut
from slim.workbench.tasks import Task
from slim.workbench.train.devices import layout_of, moved_to, resolve_device


def evaluate(
    model: nn.Module,
    split: Split | Batches,
    data: Dataset | Loaders,
    *,
    batch_size: int = 256,
    compute: ComputeConfig | None = None,
) -> dict[str, float]:
    """Return the metric of the data's task, by its name, and the mean `loss` on all of `split`, if there is one.

    split: a split of a data set, such as `data.test`, or any batches (inputs, targets)
    data: gives task and normalisation
    batch_size: images at a time, of a split
    compute: its device and memory layout are used; the precision is the model's own

    The model is left as it was: its device, and which parts of it were training. Raises `SlimError` when the split is
    empty or the network can't run on these images.
    """
    compute = compute or ComputeConfig()
    device = resolve_device(compute.device)
    with moved_to(model, device, layout_of(compute)):
        return evaluate_batches(
            model, ordered(data, split, batch_size, device), data.task, data.name, layout_of(compute)
        )


def tallies(
    model: nn.Module,
    split: Split | Batches,
    data: Dataset | Loaders,
    parts: int,
    *,
    compute: ComputeConfig | None = None,
) -> list[Any]:
    """Return what counts for the metric in each of about so many parts of `split`, in its order: `data.task.value` of
    their sum is the metric. There are fewer parts than that where there are fewer images, and more where batches that
    are handed over are. The rest is as of `evaluate`."""
    compute = compute or ComputeConfig()
    device, layout = resolve_device(compute.device), layout_of(compute)
    size = max(1, min(256, math.ceil(len(split) / parts))) if isinstance(split, Split) else 0
    pieces = 1 if size else math.ceil(parts / max(1, operator.length_hint(split, parts)))
    with moved_to(model, device, layout):
        batches = (
            piece for batch in ordered(data, split, size, device) for piece in cut(batch, min(pieces, length(batch)))
        )
        return [moved(sums, "cpu") for _, _, sums in _each_judged(model, batches, data.task, data.name, layout)]


def evaluate_batches(
    model: nn.Module,
    batches: Iterable[tuple[Any, Any]],
    task: Task,
    name: str,
    layout: torch.memory_format,
    processes: int = 1,
) -> dict[str, float]:
    """Return what `evaluate` returns, where model and batches are in place already. Of several processes each looks at
    its own batches, and all get the same result. `name` is that of the data."""
    found: list[tuple[Any, int, Any]] = []  # loss, if there is one, samples, what counts for the metric
    for loss, count, sums in _each_judged(model, batches, task, name, layout):
        if found:
            before = found.pop()
            loss = None if loss is None else before[0] + loss
            count, sums = before[1] + count, before[2] + sums
        found.append((loss, count, sums))
    found = [(None if loss is None else float(loss), count, moved(sums, "cpu")) for loss, count, sums in found]
    if processes > 1:
        everywhere: list[Any] = [None] * processes
        dist.all_gather_object(everywhere, found)  # a process may have seen nothing
        found = [each for part in everywhere for each in part]
    if not found:
        raise SlimError(f"no images to evaluate on: expected a split of {name} with at least one")
    losses, counts, tallies = zip(*found)
    value = {task.metric.name: _value(task, tallies)}
    return value if None in losses else value | {"loss": math.fsum(losses) / sum(counts)}


@torch.no_grad()
def _each_judged(
    model: nn.Module, batches: Iterable[tuple[Any, Any]], task: Task, name: str, layout: torch.memory_format
) -> Iterator[tuple[Tensor | None, int, Any]]:
    """Yield for each batch its loss, if there is one, its samples, and what counts for the metric."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        for inputs, targets in batches:
            loss, sums = _judged(model, arranged(inputs, layout), targets, task, name)
            yield loss, length(inputs), sums
    finally:
        for module in training:
            module.training = True


def _value(task: Task, tallies: Sequence[Any]) -> float:
    try:
        return task.value(reduce(operator.add, tallies))
    except Exception as error:  # of a task of the user's own
        raise SlimError(f"{type(task).__name__} can't count its {task.metric.title} ({told(error)})") from error


def _judged(model: nn.Module, inputs: Any, targets: Any, task: Task, name: str) -> tuple[Tensor | None, Any]:
    """Return the loss of a batch, if there is one, summed over its samples, and what it adds to the metric."""
    try:
        outputs = tree_map(_as_float, task.forward(model, inputs))
    except SlimError:
        raise
    except Exception as error:  # of layers that can't take the inputs
        raise _refused(error, inputs, name) from error
    try:
        task.check(outputs, targets)
        loss = task.loss(outputs, targets)
        return None if loss is None else loss * length(inputs), task.tally(outputs, targets)
    except SlimError:
        raise
    except Exception as error:  # of targets that are something else
        if is_out_of_memory(error):
            raise _refused(error, inputs, name) from error
        raise SlimError(
            f"{type(task).__name__} can't judge the network's outputs by the targets from {name}, {described(targets)} "
            f"({told(error)})"
        ) from error


def _as_float(output: Any) -> Any:
    return output.float() if isinstance(output, Tensor) and output.is_floating_point() else output


def _refused(error: Exception, inputs: Any, name: str) -> SlimError:
    if is_out_of_memory(error):
        return SlimError(
            f"out of memory on {length(inputs)} images at a time, without training: expected a smaller batch_size"
        )
    raw = isinstance(inputs, Tensor) and inputs.dtype == torch.uint8
    return SlimError(
        f"the network can't run on images of shape {shapes(inputs)} from {name} ({described(inputs)}): "
        + (_RAW if raw else str(error).strip().partition("\n")[0])
    )


_RAW = (
    "expected images [N, C, H, W], or floats as the network takes them, such as those that a transform of the data "
    "makes: {'train': …, 'test': …, 'transform': lambda images: images / 255}"
)
