"""Data sets of images that the tests make themselves."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from slim.images import ImageSpec
from slim.workbench.config import DataConfig
from slim.workbench.data import Dataset, Split, load


def dataset_of(images: torch.Tensor, augment: str = "none") -> Dataset:
    """A data set whose normalised images are the grey levels themselves: mean 0, deviation 1/255."""
    split = Split(images, torch.arange(len(images)))
    channels = images.shape[1]
    spec = ImageSpec(tuple(images.shape[1:]), ("a",), (0.0,) * channels, (1 / 255,) * channels)
    return Dataset("made up", spec, split, split, split, augment)


def random_images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def write_tree(root: Path, counts: dict[str, int], size: tuple[int, int] = (6, 6), seed: int = 0) -> dict:
    """PNG files root/CLASS/N.png; returns {file: RGB array}."""
    rng = np.random.default_rng(seed)
    written = {}
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            path = root / name / f"{number:03}.png"
            written[path] = rng.integers(256, size=(size[1], size[0], 3), dtype=np.uint8)
            Image.fromarray(written[path]).save(path)
    return written


def folder(root: Path, **settings: object) -> Dataset:
    return load(DataConfig(name="imagefolder", root=str(root), **settings), seed=0)  # type: ignore[arg-type]
