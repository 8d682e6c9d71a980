"""Where data sets come from: the digits, torchvision's small sets, and folders of images."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image

from slim.errors import SlimError, unknown
from slim.images import resized
from slim.workbench import tasks
from slim.workbench.code import Allowed, names_code
from slim.workbench.config import DataConfig
from slim.workbench.data import folder, hugging_face, lists
from slim.workbench.data.augment import operations
from slim.workbench.data.factory import from_factory
from slim.workbench.data.loaders import Loaders
from slim.workbench.data.shapes import CLASSES, render_shapes
from slim.workbench.data.splits import STATISTICS_FROM, Dataset, Split, hold_out, spec_of

TEST_FRACTION = 0.2  # held out for testing where the source has no test set of its own


def load_any(
    cfg: DataConfig, seed: int, *, task: str = "classification", allow_code: Allowed = ()
) -> Dataset | Loaders:
    """Return the data that `cfg` names for a task: a data set of slim's, see `load`, or what the user's own
    `package.module:factory` or `file.py:factory` gives, see `slim.workbench.data.factory`."""
    if names_code(cfg.name):
        return from_factory(cfg, seed, task, allow_code)
    return load(cfg, seed, task=task, allow_code=allow_code)


def takes_size(name: str) -> bool:
    """Say whether images come in the size that the settings ask for, as they have none of their own."""
    return names_code(name) or (name.lower() in SOURCES and SOURCES[name.lower()].takes_size)


def is_labelled(name: str) -> bool:
    """Say whether data come with labels, as far as their name tells."""
    return name.lower() not in SOURCES or SOURCES[name.lower()].labelled


def load(cfg: DataConfig, seed: int, *, task: str = "classification", allow_code: Allowed = ()) -> Dataset:
    """Return the data set that `cfg` names, split by `seed`, for a task: see `slim.workbench.tasks.build_task`.

    A test set that comes with the data is used as it is; otherwise 20 % of the images, drawn by `seed`, are
    the test set (so stages of one run need one seed, or the test images of one become training images of the
    next). Of the remaining images `cfg.val_fraction` are for validation. Both draws are stratified: each
    class gives its share, to within one image.

    Raises `SlimError` for an unknown name, and for missing or broken files.
    """
    name = cfg.name.lower()
    if name not in SOURCES:
        raise unknown("data set", cfg.name, SOURCES)
    source = SOURCES[name]
    if cfg.storage == "stream" and source.read not in (folder.read, folder.read_unlabelled, lists.read):
        raise SlimError(f"data.storage stream is for image folders, {name} comes in one piece: expected auto")
    augment = source.augment if cfg.augment == "auto" else cfg.augment
    operations(augment)  # a mistake shows before any work
    classes, parts = source.read(cfg, task) if source.by_task else source.read(cfg)
    made: tasks.Task = tasks.Unlabelled()
    if source.labelled:
        train, val, test = _three(parts, cfg, torch.Generator().manual_seed(seed))
        made = tasks.build_task(task, classes=len(classes), allow_code=allow_code)
    else:
        train, val, test = parts["train"], parts["train"][:0], parts["train"][:0]
    spec = spec_of(train, classes, STATISTICS_FROM)
    return Dataset(name, spec, train, val, test, augment, cfg.storage, cfg.batch_size, made)


def _three(parts: "Splits", cfg: DataConfig, generator: torch.Generator) -> tuple[Split, Split, Split]:
    """Return training, validation and test split; those that the source doesn't have are held out."""
    if "test" not in parts:
        parts["train"], parts["test"] = hold_out(parts["train"], TEST_FRACTION, generator)
    if "val" not in parts:
        parts["train"], parts["val"] = hold_out(parts["train"], cfg.val_fraction, generator)
    for part in ("train", "test"):
        if not len(parts[part]):
            raise SlimError(f"{cfg.name} has too few images: none is left for the {part} split")
    return parts["train"], parts["val"], parts["test"]


Splits = dict[str, Split]  # split name -> split: at least train


def _digits(cfg: DataConfig) -> tuple[list[str], Splits]:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = (bunch.images * (255 / 16)).round().astype(np.uint8)  # grey levels 0 … 16
    return [str(digit) for digit in range(10)], {"train": _split(images, bunch.target, cfg.image_size)}


def _shapes(cfg: DataConfig, task: str) -> tuple[list[str], Splits]:
    """Return 2,400 images, the same in each run: with their maps for segmentation, or what else a task is about."""
    made = render_shapes(2400, cfg.image_size or 48)
    targets = {"detection": made.boxes, "multilabel": made.presence, "regression": made.coverage}.get(task, made.maps)
    classes = {"multilabel": CLASSES[1:], "regression": ("coverage",)}.get(task, CLASSES)
    return list(classes), {"train": Split(made.images, targets)}


def _torchvision(cls_name: str, cfg: DataConfig) -> tuple[list[str], Splits]:
    from torchvision import datasets

    svhn = cls_name == "SVHN"  # its interface is its own
    parts = {}
    for part in ("train", "test"):
        which: dict[str, Any] = {"split": part} if svhn else {"train": part == "train"}
        try:
            data = getattr(datasets, cls_name)(cfg.root, download=cfg.download, **which)
        except (OSError, RuntimeError, ValueError, TypeError, AssertionError) as error:
            # torchvision raises any of these for missing, broken and unreachable files
            reason = str(error).partition("\n")[0]
            hint = f"the download failed: {reason}" if cfg.download else "set download: true to fetch them"
            raise SlimError(
                f"missing or broken files of {cls_name} under {cfg.root!r}: expected its training and test "
                f"files as torchvision.datasets.{cls_name} keeps them; {hint}"
            ) from error
        images = data.data.transpose(0, 2, 3, 1) if svhn else np.asarray(data.data)
        parts[part] = _split(images, data.labels if svhn else data.targets, cfg.image_size)
    if svhn:
        return [str(digit) for digit in range(10)], parts
    return [name.partition(" - ")[0] for name in data.classes], parts  # MNIST calls them "0 - zero"


def _split(images: np.ndarray, labels: Any, size: int | None) -> Split:
    """Arrays uint8 [N, H, W] or [N, H, W, C] as a split, resized where `size` asks for it."""
    if size is not None and images.shape[1:3] != (size, size):
        images = np.stack([np.asarray(resized(Image.fromarray(image), (size, size))) for image in images])
    tensor = torch.from_numpy(np.ascontiguousarray(images)).reshape(*images.shape[:3], -1)
    return Split(tensor.permute(0, 3, 1, 2).contiguous(), torch.as_tensor(labels, dtype=torch.int64))


@dataclass(frozen=True)
class _Source:
    read: Callable[..., tuple[list[str], Splits]]  # class names and the splits that the source has
    augment: str  # what "auto" means: a mirrored digit is another digit, or none
    by_task: bool = False  # whether what it gives depends on the task
    labelled: bool = True
    takes_size: bool = False  # whether its images have no size of their own


SOURCES = {
    "digits": _Source(_digits, "crop"),
    "shapes": _Source(_shapes, "flip", by_task=True),  # the black borders of crops slow a U-Net down
    "mnist": _Source(partial(_torchvision, "MNIST"), "crop"),
    "svhn": _Source(partial(_torchvision, "SVHN"), "crop"),
    "fashionmnist": _Source(partial(_torchvision, "FashionMNIST"), "crop+flip"),
    "cifar10": _Source(partial(_torchvision, "CIFAR10"), "crop+flip"),
    "cifar100": _Source(partial(_torchvision, "CIFAR100"), "crop+flip"),
    "imagefolder": _Source(folder.read, "crop+flip", takes_size=True),
    "images": _Source(folder.read_unlabelled, "none", labelled=False, takes_size=True),
    "imagelist": _Source(lists.read, "crop+flip", by_task=True, takes_size=True),
    "huggingface": _Source(hugging_face.read, "crop+flip", by_task=True, takes_size=True),
}
