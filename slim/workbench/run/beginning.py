"""The network that a run begins with: new, or as it came with its trained weights."""

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from slim.errors import SlimError
from slim.images import ImageSpec
from slim.workbench import data, models
from slim.workbench.config import DataConfig, RunConfig
from slim.workbench.data import Data
from slim.workbench.models.fitting import classes_of, fit_weights
from slim.workbench.models.libraries import hub_architecture
from slim.workbench.models.reading import read_weights
from slim.workbench.models.weights import HUB, Weights, is_file
from slim.workbench.run.folder import Run
from slim.workbench.run.networks import Trained, image_size, normalised_as

PIXELS = 224  # of images, where neither settings nor weights say; slim's own networks are for 32


def with_size_of_weights(run: Run) -> Run:
    """Return the run with images as large as its weights were trained on, where the user names no size and the data
    have none of their own."""
    settings = run.settings
    by_file = settings.model.weights is not None and is_file(settings.model.weights)  # which says nothing of it
    if by_file or settings.data.image_size is not None or not data.takes_size(settings.data.name):
        return run
    weights = _weights(settings)
    if weights is None or weights.image_size is None:
        return run
    run.console.print(f"images of {weights.image_size} pixels, as {weights.source} was trained on")
    return run.replace(settings=replace(settings, data=replace(settings.data, image_size=weights.image_size)))


def first_network(run: Run, stage: str, dataset: Data | None) -> Trained:
    """Return the network that the settings name, with the weights that they name, for a data set or, without one, for
    the classes that the weights were trained on.

    What the weights' library says of normalisation, size and class names holds where there is no data set; with one,
    the normalisation does. The network's name and arguments are such that no later stage needs a network of the Hub.
    """
    spec = run.settings.model
    weights = _weights(run.settings)
    arch, own = hub_architecture(spec.arch) if spec.arch.startswith(HUB) else (spec.arch, {})
    pixels = _pixels(run, weights)
    arguments: dict[str, Any] = {"gamma": None if weights else spec.gamma}
    arguments |= image_size(arch, pixels) if dataset is None else _of_data(run, arch, dataset)
    new: list[str] = []
    counted = "num_classes" in arguments  # from the data
    if not counted and arch.startswith("slim:"):
        arguments["num_classes"] = 1000  # they have no number of their own
    arguments |= own | spec.kwargs
    model = _built(run, arch, arguments)
    if weights is not None:
        if not counted and (classes := classes_of(model, weights)):
            arguments["num_classes"] = classes
            model = _built(run, arch, arguments)
        fitted = fit_weights(model, weights, arguments.get("num_classes"))
        for note in fitted.notes:
            run.console.print(note)
        new = fitted.new
    known = _known_of(model, weights, run.settings.data, arguments.get("in_channels", 3))
    if dataset is not None:
        dataset = normalised_as(known, dataset)
        images = dataset.spec
    else:
        shape = None if spec.example else (arguments.get("in_channels", 3), pixels, pixels)
        images = replace(known, shape=shape)
    return Trained(stage, model, [], {}, arch, arguments, images, dataset, run.example(), new)


def _weights(settings: RunConfig) -> Weights | None:
    """Return the weights that the settings name, which an architecture on the Hub does by itself."""
    arch, source = settings.model.arch, settings.model.weights
    if arch.startswith("timm:") and "." in arch and not source:
        raise SlimError(f"{arch} names trained weights: expected model.weights DEFAULT with it, or no tag")
    if arch.startswith(HUB) and source in (None, "DEFAULT"):
        source = arch
    return read_weights(arch, source) if source else None


def _known_of(model: nn.Module, weights: Weights | None, given: DataConfig, channels: int) -> ImageSpec:
    """Return what the user, weights and network say of the images that it takes."""
    mean, std = (weights.mean, weights.std) if weights else (None, None)
    if given.mean is not None or given.std is not None:
        if not len(given.mean or ()) == len(given.std or ()) == channels:
            both = f"data.mean is {given.mean} and data.std {given.std}"
            raise SlimError(f"{both}: expected {channels} numbers of each, or neither")
        mean, std = tuple(given.mean or ()), tuple(given.std or ())
    elif hasattr(getattr(model, "transform", None), "image_mean"):  # torchvision's detectors normalise by themselves
        mean, std = (0.0,) * channels, (1.0,) * channels
    classes = tuple(weights.classes) if weights and weights.classes else None
    return ImageSpec(classes=classes, mean=mean, std=std)


def _of_data(run: Run, arch: str, dataset: Data) -> dict[str, Any]:
    """Return the arguments of a network that follow from its data."""
    shape, classes = dataset.spec.shape, dataset.spec.classes
    named = {"num_classes": len(classes)} if classes else {}
    if run.settings.model.example:
        return named
    if shape is None:
        raise SlimError(
            f"the inputs of {dataset.name} are no tensors: expected batches of images (or other tensors), or a factory "
            "of an example as model.example"
        )
    return {"in_channels": shape[0], **named, **image_size(arch, shape[1:])}


def _built(run: Run, arch: str, arguments: dict[str, Any]) -> nn.Module:
    torch.manual_seed(run.settings.seed)
    return models.build(arch, allow_code=run.allow_code, **arguments)


def _pixels(run: Run, weights: Weights | None) -> int:
    said = run.settings.data.image_size or (weights.image_size if weights else None)
    return said or (32 if run.settings.model.arch.startswith("slim:") else PIXELS)
