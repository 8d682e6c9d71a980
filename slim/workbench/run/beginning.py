"""The network that a run begins with: new, or as it came with its trained weights."""

from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from slim.errors import SlimError
from slim.images import ImageSpec
from slim.workbench import models
from slim.workbench.data import Data
from slim.workbench.models.weights import Weights, classes_of, fit_weights, read_weights
from slim.workbench.run.folder import Run
from slim.workbench.run.networks import Trained, image_size, normalised_as

PIXELS = 224  # of images, where neither settings nor weights say; slim's own networks are for 32


def first_network(run: Run, stage: str, dataset: Data | None) -> Trained:
    """Return the network that the settings name, with the weights that they name, for a data set or, without one, for
    the classes that the weights were trained on.

    What the weights' library says of normalisation, size and class names holds where there is no data set; with one,
    the normalisation does. Raises SlimError where the network has nothing to prune.
    """
    spec = run.settings.model
    if spec.arch.startswith("timm:") and "." in spec.arch and not spec.weights:
        raise SlimError(f"{spec.arch} names trained weights: expected model.weights DEFAULT with it, or no tag")
    weights = read_weights(spec.arch, spec.weights) if spec.weights else None
    pixels = _pixels(run, weights)
    arguments: dict[str, Any] = {"gamma": None if weights else spec.gamma}
    arguments |= image_size(spec.arch, pixels) if dataset is None else _of_data(spec.arch, dataset)
    if dataset is None and spec.arch.startswith("slim:"):
        arguments["num_classes"] = 1000  # they have no number of their own
    arguments |= spec.kwargs
    model = _built(run, arguments)
    if weights is not None:
        if dataset is None and (classes := classes_of(model, weights)):
            arguments["num_classes"] = classes
            model = _built(run, arguments)
        for note in fit_weights(model, weights, arguments.get("num_classes")):
            run.console.print(note)
    if not any(isinstance(module, _BatchNorm) and module.affine for module in model.modules()):
        raise SlimError(f"{spec.arch} has no BatchNorm with a scale γ: there is nothing to prune")
    known = ImageSpec()
    if weights is not None:
        names = tuple(weights.classes) if weights.classes else None
        known = ImageSpec(classes=names, mean=weights.mean, std=weights.std)
    if dataset is not None:
        dataset = normalised_as(known, dataset)
        images = dataset.spec
    else:
        images = replace(known, shape=(arguments.get("in_channels", 3), pixels, pixels))
    return Trained(stage, model, [], {}, spec.arch, arguments, images, dataset)


def _of_data(arch: str, dataset: Data) -> dict[str, Any]:
    """The arguments of a network that follow from its data."""
    shape, classes = dataset.spec.shape, dataset.spec.classes
    if shape is None:
        raise SlimError(f"the inputs of {dataset.name} are no tensors: expected batches of images (or other tensors)")
    named = {"num_classes": len(classes)} if classes else {}
    return {"in_channels": shape[0], **named, **image_size(arch, shape[1:])}


def _built(run: Run, arguments: dict[str, Any]) -> nn.Module:
    torch.manual_seed(run.settings.seed)
    return models.build(run.settings.model.arch, allow_code=run.allow_code, **arguments)


def _pixels(run: Run, weights: Weights | None) -> int:
    said = run.settings.data.image_size or (weights.image_size if weights else None)
    return said or (32 if run.settings.model.arch.startswith("slim:") else PIXELS)
