"""Data sets of the package `datasets`, `data.name: huggingface`: as `data.root` a folder that `save_to_disk` wrote,
another that the package reads (parquet, class folders), a file such as parquet, or `owner/name`, through the user's
cache."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slim.errors import SlimError
from slim.extras import named_if_missing
from slim.images import read_image
from slim.memory import free_memory
from slim.workbench.causes import told
from slim.workbench.config import DataConfig
from slim.workbench.data.lists import NAMES
from slim.workbench.data.splits import PARTS, Split
from slim.workbench.data.targets import targets_of

IMAGES = ("image", "img", "picture")  # usual names of a column of images
SAVED = ("dataset_dict.json", "dataset_info.json")  # in what `save_to_disk` wrote
SHARE_OF_MEMORY = 0.25  # that decoded images may take: see `slim.workbench.data.folder`


def read(cfg: DataConfig, task: str) -> tuple[list[str], dict[str, Split]]:
    """Return classes and splits of `cfg.root`, with all images decoded into memory in the size of the first one or
    in `cfg.image_size`. Raises SlimError where it can't be had, or has no column of images or of labels."""
    found = _loaded(cfg)
    parts = {PARTS[part]: data for part, data in found.items() if part in PARTS}
    if "train" not in parts:
        raise SlimError(f"{cfg.root} has {', '.join(map(str, found))}: expected a split train")
    columns = parts["train"].column_names
    image, label = (_column(cfg.root, columns, names) for names in (IMAGES, (*NAMES["label"], "fine_label")))
    images = {part: _decoded(cfg, data, image) for part, data in parts.items()}
    labels = {part: [_named(data.features[label], each) for each in data[label]] for part, data in parts.items()}
    classes, targets = targets_of(labels, task)
    names = getattr(parts["train"].features[label], "names", None)
    if task == "classification" and names and set(classes) == set(names):  # in the order that it has there
        order = torch.tensor([names.index(name) for name in classes])
        classes, targets = list(names), {part: order[each] for part, each in targets.items()}
    return classes, {part: Split(images[part], targets[part]) for part in parts}


def _loaded(cfg: DataConfig) -> dict[str, Any]:
    with named_if_missing():
        import datasets

    name, path = cfg.root, Path(cfg.root)
    try:
        if any((path / file).is_file() for file in SAVED):
            made = datasets.load_from_disk(name)
        elif path.is_file():
            made = datasets.load_dataset(path.suffix[1:], data_files=name)
        else:
            made = datasets.load_dataset(name)
    except Exception as error:  # what is missing, unreachable or broken raises errors of many kinds
        reason = told(error, 200)
        raise SlimError(f"can't get the data set {name!r} ({reason})") from error
    return dict(made) if isinstance(made, dict) else {"train": made}


def _decoded(cfg: DataConfig, data: Any, column: str) -> Tensor:
    """Return all images of a split, uint8 [N, 3, H, W]."""
    size = (cfg.image_size, cfg.image_size) if cfg.image_size else None
    first = read_image(data[0][column], size, max_pixels=cfg.max_pixels)
    height, width = first.shape[:2]
    if len(data) * first.nbytes > SHARE_OF_MEMORY * free_memory():
        raise SlimError(
            f"{cfg.root} takes too much memory at {width}×{height} pixels: expected a smaller "
            "data.image_size, or a factory of your own"
        )
    images = np.empty((len(data), height, width, 3), np.uint8)
    for number, picture in enumerate(data[column]):
        pixels = read_image(picture, size, max_pixels=cfg.max_pixels)
        if pixels.shape != first.shape:
            raise SlimError(f"image {number} of {cfg.root} has another size: expected data.image_size")
        images[number] = pixels
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def _named(feature: Any, label: Any) -> Any:
    """Return a label as a name, where the data set has names for its numbers; None where there is none, which some have
    as -1."""
    if hasattr(feature, "int2str"):
        return None if label is None or label < 0 else feature.int2str(label)
    inner = getattr(feature, "feature", None)
    return [inner.int2str(each) for each in label] if inner is not None and hasattr(inner, "int2str") else label


def _column(name: str, columns: list[str], wanted: tuple[str, ...]) -> str:
    found = next((each for each in wanted if each in columns), None)
    if found is None:
        raise SlimError(f"{name} has columns {', '.join(columns)}: expected one called {' or '.join(wanted[:3])}")
    return found
