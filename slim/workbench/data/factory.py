"""Data of the user's own: what `data.name: package.module:factory` or `file.py:factory` gives.

The factory is called with those of `root`, `image_size`, `batch_size` and `seed` that it has parameters for, and gives

- a `slim.workbench.data.Dataset`: uint8 images in memory, augmented and normalised on the device; or
- training, validation and test data, as a tuple or a dict of `train`, `val`, `test`, and if you like `transform`, a
  function of a batch's inputs that is called on the device where they are used. Each is a data set of samples
  (input, target), as torch's DataLoader takes them, or an iterable of batches, such as a DataLoader. Inputs come (from
  `transform`) as the network takes them. Validation data may be missing: of samples, `data.val_fraction` are held out
  then.

    def make(root):
        return datasets.Country211(root, "train", TRANSFORM), None, datasets.Country211(root, "test", TRANSFORM)
"""

import inspect
from collections.abc import Iterable, Mapping, Sized
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, random_split
from torch.utils.data import Dataset as Samples

from slim.errors import SlimError
from slim.images import ImageSpec
from slim.workbench import tasks
from slim.workbench.code import Allowed, import_object
from slim.workbench.config import DataConfig
from slim.workbench.data.loaders import Loaders
from slim.workbench.data.splits import Dataset
from slim.workbench.data.workers import prepare_worker, watched
from slim.workbench.tasks import Task

PARTS = ("train", "val", "test")


def from_factory(cfg: DataConfig, seed: int, task: str, allow_code: Allowed) -> Dataset | Loaders:
    """Return the data of the user's own factory. Raises SlimError where it can't be called or gives something else."""
    factory = import_object("data", cfg.name, allow_code=allow_code)
    offered = {"root": cfg.root, "image_size": cfg.image_size, "batch_size": cfg.batch_size, "seed": seed}
    known = inspect.signature(factory).parameters
    torch.manual_seed(seed)  # for a factory that draws
    try:
        made = factory(**{key: value for key, value in offered.items() if key in known})
    except SlimError:
        raise
    except Exception as error:  # the user's code: anything can go wrong in it
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise SlimError(f"the data factory {cfg.name!r} failed ({reason})") from error
    if isinstance(made, Dataset):
        wanted = tasks.build_task(task, classes=len(made.classes) or None, allow_code=allow_code)
        return replace(made, batch_size=cfg.batch_size, task=wanted)
    transform = made.get("transform") if isinstance(made, Mapping) else None
    if transform is not None and not callable(transform):
        raise SlimError(f"the transform of {cfg.name!r} is of type {type(transform).__name__}: expected a function")
    train, val, test = _parts(made, cfg.name)
    if val is None and cfg.val_fraction and isinstance(train, Samples) and isinstance(train, Sized):
        held = round(cfg.val_fraction * len(train))
        train, val = random_split(train, [len(train) - held, held], torch.Generator().manual_seed(seed))
    classes = _classes(train)
    wanted = tasks.build_task(task, classes=len(classes) if classes else None, allow_code=allow_code)
    train, val, test = (_batches(part, cfg, wanted, shuffle=part is train) for part in (train, val, test))
    loaders = Loaders(train, val, test, task=wanted, name=cfg.name, spec=ImageSpec(None, classes))
    if transform is not None:
        loaders = replace(loaders, transform=transform)
    return replace(loaders, spec=ImageSpec(_shape(loaders), classes))


def _parts(made: Any, name: str) -> tuple[Any, Any, Any]:
    if isinstance(made, Mapping) and set(made) <= {*PARTS, "transform"}:
        made = tuple(made.get(part) for part in PARTS)
    if not isinstance(made, tuple) or len(made) != 3:
        found = f"{len(made)} parts" if isinstance(made, tuple) else f"an object of type {type(made).__name__}"
        raise SlimError(f"the data factory {name!r} gave {found}: expected a Dataset, or (train, val, test)")
    for part, given in zip(PARTS, made):
        if given is None and part != "val":
            raise SlimError(f"the data factory {name!r} gave no {part} data: expected samples or batches")
        if given is not None and not isinstance(given, Iterable | Samples):
            raise SlimError(
                f"the {part} data of {name!r} are of type {type(given).__name__}: expected samples or batches"
            )
    return made


def _batches(part: Any, cfg: DataConfig, task: Task, *, shuffle: bool) -> Any:
    """Return samples in batches; what comes in batches as it is."""
    if not isinstance(part, Samples):
        return part
    return DataLoader(
        part,
        cfg.batch_size,
        shuffle=shuffle and not isinstance(part, IterableDataset),
        collate_fn=task.collate,
        num_workers=cfg.workers or 0,
        worker_init_fn=prepare_worker,
        timeout=cfg.timeout if cfg.workers else 0,
        drop_last=shuffle and isinstance(part, Sized) and len(part) > cfg.batch_size,  # as of our own data sets
    )


def _classes(train: Any) -> tuple[str, ...] | None:
    """Return the names that torchvision's data sets have, also behind a DataLoader or a Subset."""
    for _ in range(4):
        if isinstance(names := getattr(train, "classes", None), list | tuple):
            return tuple(map(str, names))
        train = getattr(train, "dataset", None)
    return None


def _shape(loaders: Loaders) -> tuple[int, ...] | None:
    """Return the shape of one input, as the network takes it, where it is a tensor."""
    if iter(loaders.train) is loaders.train:
        raise SlimError(
            f"the training data of {loaders.name!r} can be had once only: expected an iterable, such as a list"
        )
    for batch in watched(loaders.train, loaders.name):
        inputs = loaders.transform(batch[0]) if isinstance(batch, tuple | list) and batch else None
        return tuple(inputs.shape[1:]) if isinstance(inputs, Tensor) else None
    raise SlimError(f"the data factory {loaders.name!r} gave no training batch: expected at least one")
