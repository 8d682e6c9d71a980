"""Test images on which the network before pruning and the one after it disagree about the right class."""

from typing import Any

import torch
from torch import Tensor, nn

from slim.errors import SlimError
from slim.workbench import data
from slim.workbench.data import Dataset, Split
from slim.workbench.run.evidence.networks import Networks
from slim.workbench.run.evidence.png import data_url
from slim.workbench.tasks import Classification

IMAGES = 5000  # at most, from the test split
SHOWN = 12  # in each direction
PIXELS = 160  # larger images are shown smaller


def examples(networks: Networks) -> dict[str, Any]:
    """Return `lost`, `won`: images that only the network before, or only the one after, gets right, with both answers;
    the surest come first. `both`, `neither`, `lost_count`, `won_count`: how many of `images` there are of each."""
    dataset = networks.dataset
    if not isinstance(dataset.task, Classification):
        raise SlimError(f"right and wrong are those of classes, and the task is {type(dataset.task).__name__}")
    split = drawn(dataset.test, IMAGES)
    shares = {
        side: _shares(model, split, dataset) for side, model in (("before", networks.before), ("after", networks.after))
    }
    truth = split.labels.cpu()
    before, after = (share.argmax(1) == truth for share in shares.values())
    record: dict[str, Any] = {
        "images": len(split),
        "both": int((before & after).sum()),
        "neither": int((~before & ~after).sum()),
    }
    for key, which, wrong in (("lost", before & ~after, "after"), ("won", after & ~before, "before")):
        places = torch.nonzero(which).flatten()
        surest = shares[wrong][places].max(1).values.argsort(descending=True, stable=True)[:SHOWN]
        record |= {f"{key}_count": len(places), key: [_sample(int(i), split, dataset, shares) for i in places[surest]]}
    return record


def drawn(split: Split, count: int) -> Split:
    """Return at most `count` images of a split, always the same ones."""
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))
    return split if len(split) <= count else split[order[:count]]


@torch.no_grad()
def _shares(model: nn.Module, split: Split, dataset: Dataset) -> Tensor:
    """Return the probability of each class for each image."""
    model.eval()
    batches = data.batches(split, dataset, 256)
    return torch.cat([dataset.task.predict(model(images)).float() for images, _ in batches])


def _sample(index: int, split: Split, dataset: Dataset, shares: dict[str, Tensor]) -> dict[str, Any]:
    [(images, labels)] = split.take([torch.tensor([index])], "cpu")
    pixels = images[0].permute(1, 2, 0).contiguous().numpy()
    sides = {
        side: {"says": dataset.classes[int(share[index].argmax())], "share": round(float(share[index].max()), 4)}
        for side, share in shares.items()
    }
    image = data_url(pixels if pixels.shape[2] == 3 else pixels[..., 0], PIXELS)
    return {"image": image, "truth": dataset.classes[int(labels[0])], **sides}
