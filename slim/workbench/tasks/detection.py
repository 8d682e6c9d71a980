"""Boxes around things, by torchvision's conventions."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from slim.errors import SlimError, SlimWarning
from slim.extras import install
from slim.workbench.nested import Samples, described
from slim.workbench.tasks.metric import Metric
from slim.workbench.tasks.task import Task

BOX = 5  # numbers of a box in a tensor of targets: x1, y1, x2, y2 and its class


@dataclass(frozen=True)
class Detection(Task):
    """Find boxes, with networks that have torchvision's interface: images and targets in, a dict of losses out in
    training; images in, for each a dict of `boxes` [K, 4], `labels` [K] and `scores` [K] out after it.

    Targets are dicts of `boxes` (x1, y1, x2, y2 in pixels) and `labels` (from 1; 0 is the background), a list of one
    for each image; or all in one tensor [N, M, 5], boxes with their class behind them, filled up with zeros. Boxes
    without height or width, as some data sets have them, are left out. The loss
    is the sum of the network's own losses; there is none after training, as torchvision's networks give none. The
    metric is COCO's mean average precision, `mAP`, 0 to 1: over classes, and over intersections over union from 0.5 to
    0.95. It is counted by torchmetrics and pycocotools (the extra `detection`).
    """

    classes: int | None = None

    metric = Metric("mAP", "max")
    in_bfloat16 = False  # torchvision's want boxes in float32

    def __post_init__(self) -> None:
        missing = [name for name in ("torchmetrics", "pycocotools") if find_spec(name) is None]
        if missing:  # said before any training
            raise SlimError(f"task detection counts with {' and '.join(missing)}: expected {install('detection')}")

    def forward(self, model: Any, inputs: Any, targets: Any = None) -> Any:
        """Run the network on a list of images, in training with their targets."""
        images = list(inputs)
        return model(images) if targets is None else model(images, _dicts(targets))

    def loss(self, outputs: Any, targets: Any) -> Tensor | None:
        """Return the sum of the losses that the network gives in training; None for its boxes."""
        return torch.stack(list(outputs.values())).sum() if isinstance(outputs, Mapping) else None

    def tally(self, outputs: Any, targets: Any) -> list[tuple[Any, Any]] | None:
        """Return what was found and what is there, image by image; None for losses."""
        return None if isinstance(outputs, Mapping) else list(zip(outputs, _dicts(targets)))

    def value(self, sums: list[tuple[Any, Any]]) -> float:
        """Return the mean average precision; 0 where nothing is there to be found."""
        from torchmetrics.detection import MeanAveragePrecision  # imports pycocotools

        counted = MeanAveragePrecision(sync_on_compute=False)  # of one process alone, or of them all already
        counted.warn_on_many_detections = False
        found, there = zip(*sums)
        counted.update(list(found), list(there))
        return max(0.0, float(counted.compute()["map"]))

    def collate(self, samples: Sequence[Any]) -> Any:
        """Keep images and targets of their own sizes in lists; stack images of one size."""
        images, targets = zip(*samples)
        same = len({image.shape for image in images}) == 1
        return default_collate(list(images)) if same else Samples(images), Samples(targets)

    def check(self, outputs: Any, targets: Any) -> None:
        """Raise SlimError where the network doesn't give boxes."""
        if not isinstance(outputs, list) or not all(isinstance(each, Mapping) and "boxes" in each for each in outputs):
            raise SlimError(
                f"the network's output is of type {type(outputs).__name__}: expected a list of dicts of boxes, labels "
                "and scores, as torchvision's detection networks give them"
            )
        if any((each["labels"] < 1).any() for each in _dicts(targets)):
            text = "boxes have labels below 1: expected classes from 1, as 0 is torchvision's background"
            warnings.warn(text, SlimWarning, stacklevel=2)

    @contextmanager
    def dense(self, model: Any) -> Iterator[None]:
        """Let torchvision's networks, all those of the same kind, return what their heads say of every place: which
        boxes are left of that differs from network to network."""
        kind: Any = type(model)
        owner = next(base for base in kind.__mro__ if "forward" in vars(base))
        if not owner.__module__.startswith("torchvision.models.detection"):
            yield
            return
        forward, owner.forward = owner.forward, _everywhere
        try:
            yield
        finally:
            owner.forward = forward


def _everywhere(model: Any, images: Any) -> Any:
    """Return what the heads of one of torchvision's detection networks say before boxes are selected: of every place
    of the feature maps (whose own channels may be pruned), and where there is a second stage, of boxes all over the
    image."""
    listed = model.transform(list(images))[0]
    features = model.backbone(listed.tensors)
    maps = features if isinstance(features, Mapping) else {"0": features}
    if not hasattr(model, "rpn"):
        return model.head(list(maps.values()))
    boxes = [_windows(*size).to(listed.tensors) for size in listed.image_sizes]
    roi = model.roi_heads
    return model.rpn.head(list(maps.values())), roi.box_predictor(
        roi.box_head(roi.box_roi_pool(maps, boxes, listed.image_sizes))
    )


def _windows(height: int, width: int) -> Tensor:
    """Return nine boxes [9, 4] half as high and wide as the image, in steps of a quarter."""
    corners = [(x, y, x + 2, y + 2) for y in range(3) for x in range(3)]
    return torch.tensor(corners) * torch.tensor([width, height, width, height]) / 4


def _dicts(targets: Any) -> list[dict[str, Tensor]]:
    """Return targets as torchvision takes them."""
    return [_with_size(_named(each)) for each in targets]


def _named(target: Any) -> dict[str, Any]:
    if isinstance(target, Tensor):
        there = target[target[:, 4] > 0]
        return {"boxes": there[:, :4], "labels": there[:, 4].long()}
    if not isinstance(target, Mapping) or not {"boxes", "labels"} <= target.keys():
        found = ", ".join(map(str, target)) if isinstance(target, Mapping) else described(target)
        raise SlimError(f"the target of an image is {found}: expected a dict of boxes and labels")
    boxes = torch.as_tensor(target["boxes"]).float().reshape(-1, 4)
    return {**target, "boxes": boxes, "labels": torch.as_tensor(target["labels"], device=boxes.device).long()}


def _with_size(target: dict[str, Any]) -> dict[str, Any]:
    """Leave out what has no height or no width, with all that is said of it: torchvision's networks refuse it."""
    boxes = target["boxes"]
    there = (boxes[:, 2:] > boxes[:, :2]).all(1)
    of_boxes = {
        key for key, value in target.items() if isinstance(value, Tensor) and value.shape[:1] == boxes.shape[:1]
    }
    return {key: value[there] if key in of_boxes else value for key, value in target.items()}
