"""Data of the user's own: what `data.name: package.module:factory` or `file.py:factory` gives.

The factory is called with those of `root`, `image_size`, `batch_size` and `seed` that it has parameters for, and gives

- a `slim.workbench.data.Dataset`: uint8 images in memory, augmented and normalised on the device; or
- training, validation and test data, as a tuple or a dict of `train`, `val`, `test`, and if you like `classes`, their
  names, and `transform`, a function of a batch's inputs that is called on the device where they are used. A tuple of
  two has no validation data; a LightningDataModule gives its own. Each is a data set of samples (input, target), as
  torch's DataLoader takes them, or an iterable of batches, such as a DataLoader. Inputs come (from `transform`) as the
  network takes them; without it, uint8 images [C, H, W], or Pillow's, are normalised as those of data sets are.
  Validation data may be missing: of samples, `data.val_fraction` are held out then. So may test data, or all but one
  data set: a fifth of its samples is held out.

    def make(root):
        return datasets.Country211(root, "train", TRANSFORM), None, datasets.Country211(root, "test", TRANSFORM)
"""

import inspect
import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader, IterableDataset, random_split
from torch.utils.data import Dataset as Samples

from slim.errors import SlimError
from slim.images import ImageSpec, read_image
from slim.workbench import nested, tasks
from slim.workbench.causes import explain, told
from slim.workbench.code import FAILURES, Allowed, import_object
from slim.workbench.config import DataConfig
from slim.workbench.data.loaders import TARGETS, Loaders, is_raw, pair
from slim.workbench.data.splits import PARTS, STATISTICS_FROM, Dataset, statistics
from slim.workbench.data.workers import prepare_worker, watched
from slim.workbench.tasks import Task

SPLITS = ("train", "val", "test")
ABOUT = ("transform", "classes")
TEST_FRACTION = 0.2  # as of our own data sets


def from_factory(cfg: DataConfig, seed: int, task: str, allow_code: Allowed) -> Dataset | Loaders:
    """Return the data of the user's own factory. Raises SlimError where it can't be called or gives something else."""
    factory = import_object("data", cfg.name, allow_code=allow_code)
    offered = {"root": cfg.root, "image_size": cfg.image_size, "batch_size": cfg.batch_size, "seed": seed}
    known = inspect.signature(factory).parameters
    torch.manual_seed(seed)  # for a factory that draws
    try:
        made = factory(**{key: value for key, value in offered.items() if key in known})
        made = _of_module(made) if hasattr(made, "train_dataloader") else made
    except SlimError:
        raise
    except FAILURES as error:
        reason = told(error, None)
        raise SlimError(f"the data factory {cfg.name!r} failed ({reason})") from error
    if isinstance(made, Dataset):
        wanted = tasks.build_task(task, classes=len(made.classes) or None, allow_code=allow_code)
        return replace(made, batch_size=cfg.batch_size, task=wanted)
    transform = made.get("transform") if isinstance(made, Mapping) else None
    if transform is not None and not callable(transform):
        raise SlimError(f"the transform of {cfg.name!r} is of type {type(transform).__name__}: expected a function")
    train, val, test = _parts(made, cfg.name)
    classes = made.get("classes") if isinstance(made, Mapping) else None
    classes = _classes(train) if classes is None else tuple(map(str, classes))
    if test is None:
        train, test = _held_out(train, TEST_FRACTION, seed)
    if test is None:
        raise SlimError(f"the data factory {cfg.name!r} gave no test data: expected samples or batches")
    if val is None and cfg.val_fraction:
        train, val = _held_out(train, cfg.val_fraction, seed)
    wanted = tasks.build_task(task, classes=len(classes) if classes else None, allow_code=allow_code)
    train, val, test = (_batches(part, cfg, wanted, shuffle=part is train) for part in (train, val, test))
    loaders = Loaders(train, val, test, task=wanted, name=cfg.name, spec=ImageSpec(None, classes))
    loaders = replace(loaders, transform=partial(_transformed, transform, cfg.name))
    return replace(loaders, spec=_spec(loaders, classes, transform is None))


def _transformed(transform: Callable[[Any], Any] | None, name: str, inputs: Any) -> Any:
    """Return the inputs as the network takes them, in float32, whatever floats they are."""
    try:
        return tree_map(_as_float, inputs if transform is None else transform(inputs))
    except FAILURES as error:
        raise explain(error) or SlimError(f"the transform of {name!r} failed ({told(error, None)})") from error


def _as_float(leaf: Any) -> Any:
    return leaf.float() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf


def _of_module(module: Any) -> tuple[Any, ...]:
    """Return what a LightningDataModule gives; Lightning's own methods, which stand for those that it lacks, raise."""
    module.prepare_data()
    module.setup("fit")
    module.setup("test")
    given = [getattr(module, f"{part}_dataloader") for part in SPLITS]
    return tuple(
        None if each.__module__.partition(".")[0] in ("lightning", "pytorch_lightning") else each() for each in given
    )


def _parts(made: Any, name: str) -> tuple[Any, Any, Any]:
    if isinstance(made, Samples):
        made = {"train": made}
    if isinstance(made, Mapping):
        if unknown := [str(key) for key in made if key not in (*PARTS, *ABOUT)]:
            known = ", ".join((*PARTS, *ABOUT))
            raise SlimError(f"the data factory {name!r} gave {', '.join(unknown[:3])}: expected some of {known}")
        named = {PARTS[key]: value for key, value in made.items() if key in PARTS}
        made = tuple(named.get(part) for part in SPLITS)
    if isinstance(made, tuple | list) and len(made) == 2:
        made = (made[0], None, made[1])
    if not isinstance(made, tuple | list) or len(made) != 3:
        found = f"{len(made)} parts" if isinstance(made, tuple | list) else f"an object of type {type(made).__name__}"
        raise SlimError(
            f"the data factory {name!r} gave {found}: expected (train, test), (train, val, test), or a Dataset"
        )
    parts = dict(zip(SPLITS, made))
    for part, given in parts.items():
        empty = isinstance(given, Samples) and _length(given) == 0
        if empty and part == "val":
            parts[part] = None
        elif empty or (given is None and part == "train"):
            raise SlimError(f"the data factory {name!r} gave no {part} data: expected samples or batches")
        elif given is not None and not isinstance(given, Iterable | Samples):
            raise SlimError(
                f"the {part} data of {name!r} are of type {type(given).__name__}: expected samples or batches"
            )
    return parts["train"], parts["val"], parts["test"]


def _length(part: Any) -> int | None:
    """Return the number of samples; None where that isn't known."""
    try:
        return len(part)
    except (TypeError, NotImplementedError):
        return None


def _held_out(train: Any, share: float, seed: int) -> tuple[Any, Any]:
    """Return what stays of samples, and what is held out: None of what comes in batches or in an order of its own."""
    if not isinstance(train, Samples) or isinstance(train, IterableDataset) or not (count := _length(train)):
        return train, None
    held = round(share * count)
    stays, others = random_split(train, [count - held, held], torch.Generator().manual_seed(seed))
    return (stays, others) if 0 < held < count else (train, None)


def _batches(part: Any, cfg: DataConfig, task: Task, *, shuffle: bool) -> Any:
    """Return samples in batches; what comes in batches as it is."""
    if not isinstance(part, Samples):
        return part
    return DataLoader(
        part,
        cfg.batch_size,
        shuffle=shuffle and not isinstance(part, IterableDataset),
        collate_fn=partial(_collated, task),
        num_workers=cfg.workers or 0,
        worker_init_fn=prepare_worker,
        timeout=cfg.timeout if cfg.workers else 0,
        drop_last=shuffle and (_length(part) or 0) > cfg.batch_size,  # as of our own data sets
    )


def _collated(task: Task, samples: list[Any]) -> Any:
    """Return samples as a batch, Pillow's pictures as bytes: images [C, H, W], and maps of classes [H, W]."""
    return task.collate([_in_bytes(sample) for sample in samples])


def _in_bytes(sample: Any) -> Any:
    if isinstance(sample, Mapping):
        return {key: tree_map(_map if key in TARGETS else _image, value) for key, value in sample.items()}
    if isinstance(sample, tuple | list) and len(sample) == 2:
        return tree_map(_image, sample[0]), tree_map(_map, sample[1])
    return sample


def _image(leaf: Any) -> Any:
    if not isinstance(leaf, Image.Image):
        return leaf
    return torch.tensor(read_image(leaf, channels=1 if leaf.mode in ("1", "L") else 3)).permute(2, 0, 1)


def _map(leaf: Any) -> Any:
    return torch.tensor(np.asarray(leaf)) if isinstance(leaf, Image.Image) else leaf  # of a palette the numbers


def _classes(train: Any) -> tuple[str, ...] | None:
    """Return the names that torchvision's data sets have, also behind a DataLoader or a Subset."""
    for _ in range(4):
        if isinstance(names := getattr(train, "classes", None), list | tuple):
            return tuple(map(str, names))
        train = getattr(train, "dataset", None)
    return None


def _spec(loaders: Loaders, classes: tuple[str, ...] | None, may_be_raw: bool) -> ImageSpec:
    """Return what is known of the inputs: the shape of one, as the network takes it, where it is a tensor; and of raw
    images mean and std of the first ones."""
    if iter(loaders.train) is loaders.train:
        raise SlimError(
            f"the training data of {loaders.name!r} can be had once only: expected an iterable, such as a list"
        )
    batches = (loaders.transform(pair(batch, loaders.name)[0]) for batch in watched(loaders.train, loaders.name))
    first = next(batches, None)
    if first is None:
        raise SlimError(f"the data factory {loaders.name!r} gave no training batch: expected at least one")
    one = first[0][None] if isinstance(first, nested.Samples) else first
    shape = tuple(one.shape[1:]) if isinstance(one, Tensor) else None
    images: list[Tensor] = []
    for each in itertools.chain([first], batches):
        if not may_be_raw or not is_raw(each) or each.shape[1:] != shape or sum(map(len, images)) >= STATISTICS_FROM:
            break
        images.append(each)
    mean, std = statistics(torch.cat(images)) if images else (None, None)
    return ImageSpec(shape, classes, mean, std)
