"""Where data sets come from: the digits, torchvision's small sets, and folders of images."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from slim.config import DataConfig
from slim.data.splits import Dataset, Split, hold_out, statistics
from slim.errors import SlimError, unknown

TEST_FRACTION = 0.2  # held out for testing where the source has no test set of its own
IMAGE_FILES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


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
        parts["train"], parts["test"] = hold_out(parts["train"], TEST_FRACTION, generator)
    if "val" not in parts:
        parts["train"], parts["val"] = hold_out(parts["train"], cfg.val_fraction, generator)
    for part in ("train", "test"):
        if not len(parts[part]):
            raise SlimError(f"{cfg.name} has too few images: none is left for the {part} split")
    mean, std = statistics(parts["train"].images)
    augment = source.augment if cfg.augment == "auto" else cfg.augment
    return Dataset(name, classes, parts["train"], parts["val"], parts["test"], mean, std, augment)


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
