"""How good a network is on a split."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from slim.errors import SlimError
from slim.workbench.data import Dataset, Split, batches
from slim.workbench.train.devices import placed, resolve_device
from slim.workbench.train.guard import is_out_of_memory
from slim.workbench.train.recipe import logits


def evaluate(
    model: nn.Module,
    split: Split,
    dataset: Dataset,
    *,
    batch_size: int = 256,
    device: str = "auto",
    channels_last: bool = True,
) -> dict[str, float]:
    """Accuracy (0 to 1) and mean cross entropy on all images of `split`, in the model's own precision.

    `dataset` gives normalisation and classes. The model is left as it was: its device, and which parts of it
    were training. Raises `SlimError` when the split is empty or the network can't run on these images.
    """
    target = resolve_device(device)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    with placed(model, target, layout):
        return score(model, split.to(target), dataset, batch_size, layout)


@torch.no_grad()
def score(
    model: nn.Module,
    split: Split,
    dataset: Dataset,
    batch_size: int,
    layout: torch.memory_format,
    shard: tuple[int, int] = (0, 1),
) -> dict[str, float]:
    """What `evaluate` returns, where model and split are in place already. With `shard` = (i, n) this is process i of
    n, each looks at its part, and all get the same result."""
    if not len(split):
        raise SlimError(f"no images to evaluate on: expected a split of {dataset.name} with at least one")
    device = split.labels.device
    training = [module for module in model.modules() if module.training]
    model.eval()
    loss, correct = torch.zeros((), device=device), torch.zeros((), device=device, dtype=torch.int64)
    try:
        for images, labels in batches(split, dataset, batch_size, device=device, shard=shard):
            scores = logits(model(images.contiguous(memory_format=layout)))
            if scores.shape != (len(labels), len(dataset.classes)):
                raise SlimError(
                    f"the network's output has shape {list(scores.shape)} for {len(labels)} images of "
                    f"{dataset.name}: expected one number for each of its {len(dataset.classes)} classes"
                )
            loss += F.cross_entropy(scores.float(), labels, reduction="sum")
            correct += (scores.argmax(1) == labels).sum()
    except (RuntimeError, ValueError, AssertionError) as error:  # what layers raise for inputs they can't take
        if is_out_of_memory(error):
            raise SlimError(
                f"out of memory on {batch_size} images at a time, without training: expected a smaller batch_size"
            ) from None
        raise SlimError(
            f"the network can't run on images of shape {list(split.images.shape[1:])} from {dataset.name}: "
            + str(error).strip().partition("\n")[0]
        ) from error
    finally:
        for module in training:
            module.training = True
    if shard[1] > 1:
        dist.all_reduce(loss)
        dist.all_reduce(correct)
    return {"accuracy": int(correct) / len(split), "loss": float(loss) / len(split)}
