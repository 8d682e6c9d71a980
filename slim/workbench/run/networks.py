"""A network of a run with all that its file says of it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from slim import checkpoint
from slim.images import ImageSpec
from slim.prune.plan import PruningPlan
from slim.workbench import models
from slim.workbench.data import Data, Loaders, Split
from slim.workbench.run.records import Records
from slim.workbench.run.stages import STAGES


@dataclass(frozen=True)
class Trained:
    """A network with all that its file says of it."""

    stage: str
    model: nn.Module
    plans: list[PruningPlan]
    metrics: dict[str, Any]
    arch: str | None
    arch_kwargs: dict[str, Any]
    images: ImageSpec
    dataset: Data | None  # normalised as the file says; None for a network that wasn't trained by slim
    given: Any = None  # what the user's own factory gives for an input, where it isn't one image
    new: Sequence[str] = ()  # layers that its weights didn't fit, which are untrained

    @property
    def example(self) -> Any:
        """Return what the network takes: an image of noise, or what the user gave."""
        return example_images(self.images.shape or ()) if self.given is None else self.given

    def replace(self, **changes: Any) -> "Trained":
        """Return it with some of its fields changed."""
        return replace(self, **changes)


def trained_beside(source: Path) -> dict[str, Path]:
    """Return the networks that the run of `source` trained before it was pruned, stage -> file, the latest first.
    A file that an earlier run left in the folder isn't among them."""
    known = Records(source.parent).summary()
    files = {stage: source.with_name(STAGES[stage].file) for stage in ("sparse", "baseline")}
    recorded = {stage: path for stage, path in files.items() if stage in known}
    return {stage: path for stage, path in (recorded or files).items() if path.is_file()}


def unpruned_beside(source: Path) -> Path | None:
    """Return the file of the network that the run of `source` had last before any pruning: the sparse one, unless it
    lost channels in training or there is none; None where there is no other either."""
    return next((path for path in trained_beside(source).values() if not times_pruned(path)), None)


def teacher_beside(source: Path) -> Path | None:
    """Return the file of the network to learn from beside the labels: the baseline where there is one, for sparse
    training costs some accuracy; else what there is before any pruning."""
    unpruned = [path for path in trained_beside(source).values() if not times_pruned(path)]
    return unpruned[-1] if unpruned else None


def times_pruned(path: Path) -> int:
    """Return how often the network in a file was pruned."""
    return len(checkpoint.read_metadata(path)["plans"])


def normalised_as(images: ImageSpec, dataset: Data) -> Data:
    """Return the data set normalised by the mean and std that a network's file names, or by its own where it names
    none, and with the file's classes where it has none. Loaders normalise by themselves what isn't uint8."""
    spec = dataset.spec
    if isinstance(dataset, Loaders) and spec.mean is None:
        return dataset
    mean, std, classes = images.mean or spec.mean, images.std or spec.std, spec.classes or images.classes
    return replace(dataset, spec=replace(spec, mean=mean, std=std, classes=classes))


def validation_of(dataset: Data | None) -> Any:
    """Return the validation images of data with labels; None where there are none."""
    val = dataset.val if dataset is not None and dataset.task.labelled else None
    return None if isinstance(val, Split) and not len(val) else val


def example_images(shape: Sequence[int]) -> Tensor:
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))


def image_size(arch: str, pixels: int | tuple[int, ...]) -> dict[str, Any]:
    """Return the argument image_size for the networks whose layers depend on it."""
    return {"image_size": pixels} if "image_size" in models.arguments(arch) else {}
