"""Test images on which the network before pruning and the one after it disagree about the right class."""

import base64
import io
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from slim.workbench import data
from slim.workbench.data import Dataset, Split
from slim.workbench.run.evidence.networks import Networks

IMAGES = 5000  # at most, from the test split
SHOWN = 12  # in each direction
PIXELS = 160  # larger images are shown smaller


def examples(networks: Networks) -> dict[str, Any]:
    """`lost`, `won`: images that only the network before, or only the one after, gets right, with both answers;
    the surest come first. `both`, `neither`, `lost_count`, `won_count`: how many of `images` there are of each."""
    dataset = networks.dataset
    split = dataset.test
    if len(split) > IMAGES:
        split = split[torch.randperm(len(split), generator=torch.Generator().manual_seed(0))[:IMAGES]]
    shares = {name: _shares(model, split, dataset) for name, model in _pair(networks).items()}
    truth = _labels(split)
    right = {name: share.argmax(1) == truth for name, share in shares.items()}
    surest = {name: share.max(1).values for name, share in shares.items()}
    record: dict[str, Any] = {
        "images": len(split),
        "both": int((right["before"] & right["after"]).sum()),
        "neither": int((~right["before"] & ~right["after"]).sum()),
    }
    for key, yes, no in (("lost", "before", "after"), ("won", "after", "before")):
        which = torch.nonzero(right[yes] & ~right[no]).flatten()
        record[f"{key}_count"] = len(which)
        which = which[surest[no][which].argsort(descending=True, stable=True)][:SHOWN]
        record[key] = [
            {
                "image": picture(pixels),
                "truth": dataset.classes[int(truth[i])],
                **{
                    name: {"says": dataset.classes[int(share[i].argmax())], "share": round(float(share[i].max()), 4)}
                    for name, share in shares.items()
                },
            }
            for i, pixels in zip(which.tolist(), _pixels(split, which))
        ]
    return record


def _pair(networks: Networks) -> dict[str, nn.Module]:
    return {"before": networks.before, "after": networks.after}


@torch.no_grad()
def _shares(model: nn.Module, split: Split, dataset: Dataset) -> Tensor:
    model.eval()
    return torch.cat([_logits(model(images)).float().softmax(1) for images, _ in data.batches(split, dataset, 256)])


def _logits(output: Any) -> Tensor:
    logits: Tensor = getattr(output, "logits", output)
    return logits


def _labels(split: Split) -> Tensor:
    return split.labels.cpu()


def _pixels(split: Split, which: Tensor) -> list[Tensor]:
    return [image for images, _ in split.take([which], "cpu") for image in images] if len(which) else []


def picture(pixels: Tensor) -> str:
    """A uint8 image [C, H, W] as a PNG in a data URL, no larger than PIXELS."""
    grey = pixels.shape[0] != 3
    image = Image.fromarray(pixels[0].numpy() if grey else pixels.permute(1, 2, 0).contiguous().numpy())
    image.thumbnail((PIXELS, PIXELS))
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
