"""Trained weights that another library knows by name: where they are, and what it says of them.

What is said is known before anything is downloaded, but for the small config.json of a repository on the Hugging Face
Hub. The weights are found or downloaded by the library, through the user's cache, when they are asked for."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from slim.errors import SlimError, unknown
from slim.extras import named_if_missing
from slim.workbench.causes import told
from slim.workbench.models.weights import HUB, States, Weights, states_in_file

HUB_FILES = ("model.safetensors", "pytorch_model.bin")  # as timm and transformers write them


def from_torchvision(name: str, source: str) -> Weights:
    """Return weights of torchvision by their name, such as DEFAULT or IMAGENET1K_V2."""
    from torchvision import models

    known = models.get_model_weights(name)
    if source not in known.__members__:
        raise unknown(f"weights of torchvision:{name}", source, known.__members__)
    chosen = known[source]
    transforms = chosen.transforms()
    return Weights(
        f"torchvision:{name} {source}",
        lambda: {"": _downloaded(lambda: chosen.get_state_dict(progress=False, check_hash=True), source)},
        classes=list(chosen.meta["categories"]) if "categories" in chosen.meta else None,
        mean=_numbers(getattr(transforms, "mean", None)),
        std=_numbers(getattr(transforms, "std", None)),
        image_size=next(iter(getattr(transforms, "crop_size", [])), None),
    )


def from_timm(name: str, source: str) -> Weights:
    """Return weights of timm by their tag, such as a1_in1k, or DEFAULT for its own choice or that of the name."""
    with named_if_missing():
        import timm

    if source != "DEFAULT":
        name = f"{name.partition('.')[0]}.{source}"
    try:
        about = timm.get_pretrained_cfg(name)
    except RuntimeError:  # no such tag
        about = None
    if about is None:
        raise unknown("weights of timm", name, timm.list_pretrained())

    def states() -> States:
        return {"": _downloaded(lambda: timm.create_model(name, pretrained=True).state_dict(), name)}

    return _described(f"timm:{name}", states, about.to_dict(), _imagenet(about))


def from_hub(source: str) -> Weights:
    """Return the weights of `hf-hub:owner/name` on the Hugging Face Hub, with what its config.json says, in timm's
    words, of classes, normalisation and size."""
    about = hub_config(source)

    def states() -> States:
        return states_in_file(first_file(source, HUB_FILES))

    cfg = about.get("pretrained_cfg") or {}
    return _described(source, states, about | cfg, about.get("label_names") or cfg.get("label_names"))


def hub_architecture(arch: str) -> tuple[str, dict[str, Any]]:
    """Return the network of timm that `hf-hub:owner/name` holds weights of, and its arguments."""
    about = hub_config(arch)
    if not isinstance(about.get("architecture"), str):
        raise SlimError(
            f"{arch} names no architecture of timm in its config.json: expected model.arch of your own, and "
            f"model.weights {arch}"
        )
    return f"timm:{about['architecture']}", dict(about.get("model_args") or {})


def hub_config(source: str) -> dict[str, Any]:
    """Return the config.json of a repository; empty where it has none that can be read."""
    path = first_file(source, ("config.json",))
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise SlimError(f"the config.json of {source} is broken: expected JSON") from None
    return about if isinstance(about, dict) else {}


def first_file(source: str, files: tuple[str, ...]) -> Path:
    """Return the first of some files of a repository, downloaded where it isn't in the cache."""
    with named_if_missing():
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError
    owner_name, _, revision = source.removeprefix(HUB).partition("@")
    for file in files:
        try:
            return Path(_downloaded(lambda: hf_hub_download(owner_name, file, revision=revision or None), source))  # noqa: B023
        except SlimError as error:
            if file == files[-1] or not isinstance(error.__cause__, EntryNotFoundError):
                raise
    raise AssertionError  # the last file is found or raises


def _described(source: str, states: Callable[[], States], about: Mapping[str, Any], classes: Any) -> Weights:
    size = about.get("input_size")
    mean, std = _numbers(about.get("mean")), _numbers(about.get("std"))
    return Weights(source, states, list(classes) if classes else None, mean, std, size and size[-1])


def _imagenet(about: Any) -> list[str] | None:
    """Return the class names of one of ImageNet's sets, which timm tells from their number."""
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset(about.to_dict()) if about.label_names is None else None
    if about.label_names is not None:
        return list(about.label_names)
    return None if subset is None else list(ImageNetInfo(subset).label_descriptions())


def _numbers(values: Any) -> tuple[float, ...] | None:
    return None if values is None else tuple(float(value) for value in values)


def _downloaded(read: Callable[[], Any], source: str) -> Any:
    """Return what another library finds or downloads; what goes wrong there in one line."""
    try:
        return read()
    except Exception as error:
        reason = told(error, 200)
        raise SlimError(f"can't get the weights {source!r} ({reason})") from error
