"""Folders of images: what is in them, and the cache of their decoded images."""

import hashlib
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from slim.errors import SlimError
from slim.files import replacing
from slim.images import IMAGE_FILES, decoders, read_image
from slim.memory import free_memory
from slim.workbench.config import DataConfig
from slim.workbench.data.files import ImageFiles
from slim.workbench.data.splits import PARTS, Split

FORMAT = "2"  # of the cache: raised when images are decoded differently
MOST_WORKERS = 16  # by default: each holds some batches
SHARE_OF_MEMORY = 0.25  # that decoded images may take: splitting them copies them, and others want to live too


def read(cfg: DataConfig) -> tuple[list[str], dict[str, Split]]:
    """Return the classes and splits of root/train/CLASS and root/test/CLASS, with root/val/CLASS as the validation set
    (or, where there is no root/test, as the test set); or of root/CLASS alone. The splits may have other usual names,
    such as Training or valid. Images become RGB.

    They are decoded into memory if they take at most a quarter of what is free there, and else stay in their files;
    `cfg.storage` can force either. What is decoded is kept in a hidden file in root (if `cfg.cache`) for the next time,
    for as long as names, sizes and times of the files stay as they were.
    """
    root = Path(cfg.root).expanduser()
    if not root.is_dir():
        raise SlimError(f"no folder {str(root)!r}: expected a tree root/train/CLASS/IMAGE or root/CLASS/IMAGE")
    folders = {"train": root}
    named = {PARTS[name.lower()]: root / name for name in reversed(_subfolders(root)) if name.lower() in PARTS}
    if "train" in named and _subfolders(named["train"]):  # a class may be called train, but holds images
        folders = named
    if "test" not in folders and "val" in folders:
        folders["test"] = folders.pop("val")
    classes = _subfolders(folders["train"])
    if len(classes) < 2:
        raise SlimError(f"{str(folders['train'])!r} holds {len(classes)} class folders: expected at least 2")
    listed = {part: _list_images(folder, classes) for part, folder in folders.items()}

    images = images_of(cfg, {part: (str(folders[part]), names) for part, (names, _) in listed.items()}, root)
    return classes, {part: Split(images[part], labels) for part, (_, labels) in listed.items()}


def read_unlabelled(cfg: DataConfig) -> tuple[list[str], dict[str, Split]]:
    """Return all images under a folder, at any depth, without labels."""
    root = Path(cfg.root).expanduser()
    if not root.is_dir():
        raise SlimError(f"no folder {str(root)!r}: expected one of images")
    names = _names_under(root, root)
    if not names:
        raise SlimError(f"no image under {str(root)!r}: expected {', '.join(IMAGE_FILES)} files")
    images = images_of(cfg, {"train": (str(root), np.array(names))})
    return [], {"train": Split(images["train"], torch.zeros(len(names), 0))}


def images_of(
    cfg: DataConfig, listed: Mapping[str, tuple[str, np.ndarray]], home: Path | None = None
) -> dict[str, ImageFiles] | dict[str, Tensor]:
    """Return the images of each part, given as a folder and the names of files in it: in memory or in their files, as
    `cfg.storage` says. What is decoded is kept in `home`, if there is one."""
    size = (cfg.image_size, cfg.image_size) if cfg.image_size else None
    root, names = listed["train"]
    first = read_image(Path(root, os.fsdecode(names[0])), size, max_pixels=cfg.max_pixels)
    cores = (os.cpu_count() or 1) // _processes_here()
    workers = decoders(min(cores, MOST_WORKERS), cfg.max_pixels) if cfg.workers is None else cfg.workers
    files = {
        part: ImageFiles(root, names, first.shape[:2], size is not None, workers, cfg.max_pixels, cfg.timeout)
        for part, (root, names) in listed.items()
    }
    if cfg.storage in ("device", "host") or (cfg.storage == "auto" and _fits(files)):
        _check_room(files, cfg.storage)
        return _decoded(files, home if cfg.cache else None)
    return files


def _subfolders(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def _list_images(folder: Path, classes: list[str]) -> tuple[np.ndarray, Tensor]:
    """Return the images under folder/CLASS, at any depth: names relative to `folder` as bytes, and class numbers."""
    found = set(_subfolders(folder))
    for name in sorted(found.symmetric_difference(classes)):
        raise SlimError(
            f"{str(folder)!r} has {'an unknown' if name in found else 'no'} class folder {name!r}: "
            f"expected the {len(classes)} classes of the training folder"
        )
    names: list[bytes] = []
    counts = []
    for name in classes:
        images = _names_under(folder / name, folder)
        if not images:
            raise SlimError(f"no image in class folder {str(folder / name)!r}: expected {', '.join(IMAGE_FILES)} files")
        names += images
        counts.append(len(images))
    return np.array(names), torch.repeat_interleave(torch.arange(len(classes)), torch.tensor(counts))


def _bytes(files: dict[str, ImageFiles]) -> int:
    return sum(math.prod(part.shape) for part in files.values())


def _names_under(place: Path, root: Path) -> list[bytes]:
    """Return the images under a place, at any depth, in order: their names relative to `root`, as bytes."""
    images = []
    for folder, _, files in os.walk(place):
        within = os.path.relpath(folder, root)
        images += [os.path.join(within, f) for f in files if f.lower().endswith(IMAGE_FILES) and f[0] != "."]
    return list(map(os.fsencode, sorted(images)))


def _fits(files: dict[str, ImageFiles]) -> bool:
    return _bytes(files) <= SHARE_OF_MEMORY * free_memory() / _processes_here()


def _check_room(files: dict[str, ImageFiles], storage: str) -> None:
    """Raise SlimError where decoded images take more than all that is free: the system would end the process."""
    if _bytes(files) > (free := free_memory()):
        raise SlimError(
            f"data.storage {storage}: the decoded images take {_bytes(files) / 1e9:.1f} GB of memory, of which "
            f"{free / 1e9:.1f} GB are free: expected data.storage stream, or a smaller data.image_size"
        )


def _processes_here() -> int:
    """Return how many processes of this training share the machine: each has its own copy of the images."""
    if not (dist.is_available() and dist.is_initialized()):
        return 1
    return int(os.environ.get("LOCAL_WORLD_SIZE", dist.get_world_size()))


def _decoded(files: dict[str, ImageFiles], home: Path | None) -> dict[str, Tensor]:
    """Return all images of all splits, from the cache in `home` if it is theirs; else it is made anew. It is a file, as
    other programs would take a folder for a class."""
    if home is None:
        return {part: images.decoded() for part, images in files.items()}
    one = files["train"]
    height, width = one.image_size
    path = home / f".slim-{height}x{width}{'' if one.resize else '-as-they-are'}.safetensors"
    fingerprint = _fingerprint(files)
    try:
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("files") == fingerprint:
                return {part: file.get_tensor(part) for part in files}
    except (OSError, SafetensorError):  # none yet, or not ours
        pass
    images = {part: images.decoded() for part, images in files.items()}
    try:
        with replacing(path) as temporary:
            save_file(images, temporary, metadata={"files": fingerprint})
    except SlimError as error:
        print(f"can't keep the decoded images: {error}; data.cache: false is quiet", file=sys.stderr)
    return images


def _fingerprint(files: dict[str, ImageFiles]) -> str:
    """Return what tells that the files are those that were decoded: names, sizes in bytes, times of change."""
    digest = hashlib.sha256(FORMAT.encode())
    for part, images in sorted(files.items()):
        digest.update(f"\n{part} {images.image_size} {images.resize}\n".encode())
        for name in images.names:
            about = _about(os.path.join(os.fsencode(images.root), name))
            digest.update(b"%s %d %d\n" % (name, about.st_size, about.st_mtime_ns))
    return digest.hexdigest()


def _about(path: bytes) -> os.stat_result:
    try:
        return os.stat(path)
    except OSError as error:
        raise SlimError(f"image {os.fsdecode(path)!r} can't be read: {error.strerror}") from None
