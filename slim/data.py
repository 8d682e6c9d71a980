"""Datasets as uint8 tensors in memory, and fast batches of them.

Every data set becomes three splits (train, val, test) of uint8 images, decoded once. Batches are cut,
augmented and normalised as whole tensors on the device that trains, so that small images cost next to nothing
per step.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from slim.config import DataConfig
from slim.errors import SlimError, unknown

TEST_FRACTION = 0.2  # held out for testing where the source has no test set of its own
IMAGE_FILES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


@dataclass(frozen=True)
class Split:
    """Images, uint8 [N, C, H, W], and their class numbers, int64 [N]."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor | slice) -> "Split":
        return Split(self.images[index], self.labels[index])

    def to(self, device: torch.device | str) -> "Split":
        """The same split on a device; no copy where it is there already."""
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Dataset:
    """Three disjoint splits, with the statistics that normalise them.

    `mean` and `std` hold one number per channel, in units where black is 0 and white is 1, from the training
    images alone. `augment` is "none", "crop" or "crop+flip".
    """

    name: str
    classes: list[str]
    train: Split
    val: Split
    test: Split
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: str

    @property
    def channels(self) -> int:
        return self.train.images.shape[1]

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.train.images.shape[2], self.train.images.shape[3]


def load(cfg: DataConfig, seed: int) -> Dataset:
    """The data set that `cfg` names, split by `seed`.

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
    classes, parts = source.read(cfg)
    generator = torch.Generator().manual_seed(seed)
    if "test" not in parts:
        parts["train"], parts["test"] = _hold_out(parts["train"], TEST_FRACTION, generator)
    if "val" not in parts:
        parts["train"], parts["val"] = _hold_out(parts["train"], cfg.val_fraction, generator)
    for part in ("train", "test"):
        if not len(parts[part]):
            raise SlimError(f"{cfg.name} has too few images: none is left for the {part} split")
    mean, std = statistics(parts["train"].images)
    augment = source.augment if cfg.augment == "auto" else cfg.augment
    return Dataset(name, classes, parts["train"], parts["val"], parts["test"], mean, std, augment)


def batches(
    split: Split,
    dataset: Dataset,
    batch_size: int,
    *,
    shuffle_seed: int | None = None,
    augment: bool = False,
    device: torch.device | str = "cpu",
    start: int = 0,
    shard: tuple[int, int] = (0, 1),
) -> Iterator[tuple[Tensor, Tensor]]:
    """One pass over a split: normalised float32 images [B, C, H, W] and labels [B], on `device`.

    Without `shuffle_seed` the order is the split's own and the last batch may be smaller. With it the order
    is random and all batches have the same size: the images left over, fewer than a batch and others in each
    epoch, are skipped (a tiny last batch would give BatchNorm bad statistics). A split smaller than a batch
    is one batch.

    `augment` applies the data set's augmentation and needs `shuffle_seed`: order, crops and flips all follow
    from it, and are the same on every device.

    `start` leaves out that many batches, for a training that goes on within an epoch. `shard` = (i, n) gives every
    n-th image of each batch, from the i-th on: the part of process i of n. A part without images is left out.
    """
    if augment and shuffle_seed is None:
        raise ValueError("augment needs shuffle_seed: without it the crops would not be reproducible")
    split = split.to(device)
    size = len(split)
    scale = 1 / (255 * torch.tensor(dataset.std))
    shift = -torch.tensor(dataset.mean) / torch.tensor(dataset.std)
    scale, shift = (values.reshape(1, -1, 1, 1).to(device) for values in (scale, shift))

    if shuffle_seed is None:
        for first in range(start * batch_size, size, batch_size):
            batch = split[first + shard[0] : first + batch_size : shard[1]]
            if not len(batch):
                continue
            yield batch.images.float().mul_(scale).add_(shift), batch.labels
        return

    generator = torch.Generator().manual_seed(shuffle_seed)  # on the CPU: the same draws whatever the device
    order = torch.randperm(size, generator=generator).to(device)
    height, width = split.images.shape[2:]
    pads = max(1, height // 8), max(1, width // 8)  # 4 pixels for CIFAR's 32, 1 for the digits' 8
    top, left = (torch.randint(2 * pad + 1, (size,), generator=generator).to(device) for pad in pads)
    mirrored = torch.randint(2, (size,), generator=generator).bool().to(device)
    for step in range(start, steps_per_epoch(size, batch_size)):
        here = slice(step * batch_size + shard[0], (step + 1) * batch_size, shard[1])
        batch = split[order[here]]
        images = batch.images
        if augment and dataset.augment != "none":
            images = crop(images, top[here], left[here], pads)
        if augment and dataset.augment == "crop+flip":
            images = torch.where(mirrored[here, None, None, None], images.flip(3), images)
        yield images.float().mul_(scale).add_(shift), batch.labels


def steps_per_epoch(size: int, batch_size: int) -> int:
    """The number of shuffled batches that `batches` cuts from `size` images."""
    return max(1, size // batch_size)


def crop(images: Tensor, top: Tensor, left: Tensor, pads: tuple[int, int]) -> Tensor:
    """Each image of [B, C, H, W] shifted: padded with black by `pads` = (rows, columns) on each side, then
    cut to its old size with the corner at (top[i], left[i]), both int64 [B] in 0 … 2·pad."""
    height, width = images.shape[2:]
    padded = F.pad(images, (pads[1], pads[1], pads[0], pads[0]))
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view [B, C, top, left, H, W]
    return windows[torch.arange(len(images), device=images.device), :, top, left]


def statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and (population) standard deviation per channel of uint8 images [N, C, H, W], where white is 1.

    The sums are whole numbers, so the result doesn't depend on their order. A constant channel gets the
    deviation of one grey level, 1/255, so that normalising it stays finite.
    """
    total = torch.zeros(images.shape[1], dtype=torch.int64)
    squares = torch.zeros_like(total)
    for chunk in images.split(4096):  # int64 copies of everything would be large
        values = chunk.to(torch.int64)
        total += values.sum((0, 2, 3))
        squares += (values * values).sum((0, 2, 3))
    count = images.numel() // images.shape[1]
    mean = total.double() / count
    std = (squares.double() / count - mean * mean).clamp(min=0).sqrt().clamp(min=1)
    return tuple((mean / 255).tolist()), tuple((std / 255).tolist())


def _hold_out(split: Split, fraction: float, generator: torch.Generator) -> tuple[Split, Split]:
    """What stays and what is held out. Walking through the shuffled images class by class and taking one
    whenever the running share passes a whole number gives every class its share to within one image."""
    shuffled = torch.randperm(len(split), generator=generator)
    by_class = shuffled[split.labels[shuffled].argsort(stable=True)]
    offset = torch.rand((), generator=generator, dtype=torch.float64)  # else the last classes give more
    share = (torch.arange(len(split) + 1, dtype=torch.float64) * fraction + offset).floor()
    held = torch.zeros(len(split), dtype=torch.bool)
    held[by_class] = share[1:] > share[:-1]
    return split[~held], split[held]


Parts = dict[str, Split]  # split name -> split: at least train


def _digits(cfg: DataConfig) -> tuple[list[str], Parts]:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = (bunch.images * (255 / 16)).round().astype(np.uint8)  # grey levels 0 … 16
    return [str(digit) for digit in range(10)], {"train": _split(images, bunch.target, cfg.image_size)}


def _torchvision(cls_name: str, cfg: DataConfig) -> tuple[list[str], Parts]:
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


def _image_folder(cfg: DataConfig) -> tuple[list[str], Parts]:
    """root/train/CLASS and root/test/CLASS, with root/val/CLASS as the validation set (or, where there is no
    root/test, as the test set); or root/CLASS alone. Images become RGB."""
    root = Path(cfg.root).expanduser()
    if not root.is_dir():
        raise SlimError(f"no folder {str(root)!r}: expected a tree root/train/CLASS/IMAGE or root/CLASS/IMAGE")
    folders = {"train": root}
    if _subfolders(root / "train"):  # a class may be called train, but holds images
        folders = {part: root / part for part in ("train", "val", "test") if (root / part).is_dir()}
    if "test" not in folders and "val" in folders:
        folders["test"] = folders.pop("val")
    classes = [folder.name for folder in _subfolders(folders["train"])]
    if len(classes) < 2:
        raise SlimError(f"{str(folders['train'])!r} holds {len(classes)} class folders: expected at least 2")
    files = {part: _list_images(folder, classes) for part, folder in folders.items()}
    images = iter(_decode([path for part in files.values() for path, _ in part], cfg.image_size))
    parts = {}
    for part, listed in files.items():
        labels = torch.tensor([label for _, label in listed])
        stacked = np.stack([next(images) for _ in listed])
        parts[part] = Split(torch.from_numpy(stacked).permute(0, 3, 1, 2).contiguous(), labels)
    return classes, parts


def _subfolders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _list_images(folder: Path, classes: list[str]) -> list[tuple[Path, int]]:
    """The images under folder/CLASS, at any depth, with their class numbers."""
    found = {path.name for path in _subfolders(folder)}
    for name in sorted(found.symmetric_difference(classes)):
        raise SlimError(
            f"{str(folder)!r} has {'an unknown' if name in found else 'no'} class folder {name!r}: "
            f"expected the {len(classes)} classes of the training folder"
        )
    listed = []
    for label, name in enumerate(classes):
        paths = (folder / name).rglob("*")
        images = sorted(path for path in paths if path.suffix.lower() in IMAGE_FILES and not path.name.startswith("."))
        if not images:
            raise SlimError(f"no image in class folder {str(folder / name)!r}: expected {', '.join(IMAGE_FILES)} files")
        listed += [(path, label) for path in images]
    return listed


def _decode(paths: list[Path], size: int | None) -> list[np.ndarray]:
    """Images as uint8 [H, W, 3] of one size, in the order of `paths`."""
    from rich.console import Console
    from rich.progress import track

    images: list[np.ndarray] = []
    pool = ThreadPoolExecutor(os.cpu_count())  # Pillow decodes outside the interpreter lock
    try:
        decoded = pool.map(lambda path: _open(path, size), paths)
        bar = partial(track, console=Console(stderr=True), transient=True, disable=len(paths) < 1000)
        for path, image in zip(paths, bar(decoded, "decoding images", len(paths))):
            if images and image.shape != images[0].shape:
                raise SlimError(
                    f"{str(path)!r} is {_pixels(image)}, but {str(paths[0])!r} is {_pixels(images[0])}: "
                    "images of different sizes need data.image_size"
                )
            images.append(image)
    finally:
        pool.shutdown(cancel_futures=True)
    return images


def _pixels(image: np.ndarray) -> str:
    return f"{image.shape[1]}×{image.shape[0]} pixels"


def _open(path: Path, size: int | None) -> np.ndarray:
    try:
        with Image.open(path) as image:
            if image.mode[0] in "IF":  # Pillow would clip 16 bits at 255
                raise SlimError(f"image {str(path)!r} has mode {image.mode}: expected 8 bits per channel")
            return np.asarray(_resize(image.convert("RGB"), size))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise SlimError(f"can't read image {str(path)!r}: expected a whole JPEG, PNG or similar file") from error


def _resize(image: Image.Image, size: int | None) -> Image.Image:
    """To size × size pixels, bilinear, not keeping the aspect ratio: as `OnnxModel.predict` does it."""
    if size is None or image.size == (size, size):
        return image
    return image.resize((size, size), Image.Resampling.BILINEAR)


def _split(images: np.ndarray, labels: Any, size: int | None) -> Split:
    """Arrays uint8 [N, H, W] or [N, H, W, C] as a split, resized where `size` asks for it."""
    if size is not None and images.shape[1:3] != (size, size):
        images = np.stack([np.asarray(_resize(Image.fromarray(image), size)) for image in images])
    tensor = torch.from_numpy(np.ascontiguousarray(images)).reshape(*images.shape[:3], -1)
    return Split(tensor.permute(0, 3, 1, 2).contiguous(), torch.as_tensor(labels, dtype=torch.int64))


@dataclass(frozen=True)
class _Source:
    read: Callable[[DataConfig], tuple[list[str], Parts]]  # class names and the splits that the source has
    augment: str  # what "auto" means: a mirrored digit is another digit, or none


SOURCES = {
    "digits": _Source(_digits, "crop"),
    "mnist": _Source(partial(_torchvision, "MNIST"), "crop"),
    "svhn": _Source(partial(_torchvision, "SVHN"), "crop"),
    "fashionmnist": _Source(partial(_torchvision, "FashionMNIST"), "crop+flip"),
    "cifar10": _Source(partial(_torchvision, "CIFAR10"), "crop+flip"),
    "cifar100": _Source(partial(_torchvision, "CIFAR100"), "crop+flip"),
    "imagefolder": _Source(_image_folder, "crop+flip"),
}
