"""A network of a run with all that its file says of it: opened, measured, saved."""

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from slim import checkpoint
from slim.errors import SlimError
from slim.prune.plan import PruningPlan
from slim.trace.size import network_size
from slim.workbench import config, data, models, report, train
from slim.workbench.code import Allowed
from slim.workbench.config import RunConfig
from slim.workbench.data import Dataset
from slim.workbench.run.records import enter


@dataclass(frozen=True)
class Trained:
    """A network with all that its file says of it."""

    stage: str
    model: nn.Module
    plans: list[PruningPlan]
    metrics: dict[str, Any]
    facts: dict[str, Any]  # arch, arch_kwargs, classes, mean, std, input_shape: as checkpoint.save takes them
    dataset: Dataset | None  # normalised as the file says; None for a network that wasn't trained by slim

    @property
    def example(self) -> Tensor:
        return example_images(self.facts["input_shape"])


def open_network(path: Path, settings: RunConfig, allow_code: str | Collection[str]) -> Trained:
    """The network in a file, with the data set of its run.

    Settings that it was trained with can't change after that: another seed would draw other test images, of
    which the network has seen many.
    """
    about = checkpoint.read_metadata(path)
    dataset = None
    if about["config"] is not None:
        trained = config.updated(RunConfig(), about["config"])
        for name in ("seed", "task", "model"):
            was, now = getattr(trained, name), getattr(settings, name)
            if was != now:
                raise SlimError(f"{name} is {now}: {path} was trained with {was}, which can't change any more")
        dataset = load_data(settings, allow_code=allow_code)
        if dataset.classes != about["classes"]:
            raise SlimError(f"data.name is {settings.data.name!r}: {path} was trained on {trained.data.name!r}")
        dataset = normalised_as(about, dataset)
    if about["input_shape"] is None:
        raise SlimError(f"{path} doesn't say how large its images are: expected input_shape in slim.save")
    return Trained(
        stage=about["stage"] or path.stem,
        model=models.load(path, allow_code=allow_code),
        plans=[PruningPlan.from_dict(p) for p in about["plans"]],
        metrics=about["metrics"] | {"file_size": path.stat().st_size},
        facts={key: about[key] for key in ("arch", "arch_kwargs", "classes", "mean", "std", "input_shape")},
        dataset=dataset,
    )


def save_network(
    path: Path,
    model: nn.Module,
    plans: list[PruningPlan],
    facts: dict[str, Any],
    settings: RunConfig,
    dataset: Dataset | None,
    epochs: Sequence[dict[str, Any]] = (),
    fresh: bool = False,
    stage: str = "",
    made: Sequence[PruningPlan] = (),
) -> dict[str, Any]:
    """Measure a network and save it as a stage, the one that its file is named after. `made` are the plans by which it
    was pruned while it trained, after `plans`. Returns its summary, which is empty on other processes than the
    first."""
    if not train.is_rank_zero():
        return {}
    stage = stage or path.stem
    record: dict[str, Any] = asdict(network_size(model, example_images(facts["input_shape"])))
    if dataset:
        metric = dataset.task.metric
        record[metric.name] = train.evaluate(model, dataset.test, dataset, compute=settings.compute)[metric.name]
        record["metric"] = metric.to_dict()
    if epochs:
        record["training"] = report.totals(epochs)
    if made:
        record["prunes"] = len(made)
    checkpoint.save(path, model, [*plans, *made], stage=stage, metrics=record, config=settings, **facts)
    record["file_size"] = path.stat().st_size
    enter(path.parent, stage, record, settings, epochs, fresh)
    return record


def load_data(settings: RunConfig, *, allow_code: Allowed) -> Dataset:
    """Return the data set of a run."""
    found = data.load_any(settings.data, settings.seed, task=settings.task, allow_code=allow_code)
    if not isinstance(found, Dataset):
        raise SlimError(f"{found.name} gives batches: a run needs a slim.workbench.data.Dataset")
    return found


def unpruned_beside(source: Path) -> Path:
    """The file of the network that the run of `source` had before any pruning: the sparse one, unless it lost channels
    in training. It may not be there."""
    sparse = source.with_name(checkpoint.STAGES["sparse"][0])
    if sparse.exists() and checkpoint.read_metadata(sparse)["plans"]:
        return source.with_name(checkpoint.STAGES["baseline"][0])
    return sparse


def normalised_as(facts: dict[str, Any], dataset: Dataset) -> Dataset:
    """The data set normalised by the mean and std that a network's file names, or by its own where it names none."""
    mean, std = (tuple(facts[key] or getattr(dataset.spec, key)) for key in ("mean", "std"))
    return replace(dataset, spec=replace(dataset.spec, mean=mean, std=std))


def facts_of(dataset: Dataset) -> dict[str, Any]:
    return dataset.spec.to_dict()


def example_images(shape: Sequence[int]) -> Tensor:
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))


def image_size(arch: str, pixels: int | tuple[int, int]) -> dict[str, Any]:
    """The argument image_size for the networks whose layers depend on it."""
    return {"image_size": pixels} if "image_size" in models.arguments(arch) else {}
