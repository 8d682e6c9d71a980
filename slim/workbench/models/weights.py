"""Trained weights: read from a file, or by the library that knows them by name, and fitted to a network."""

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from slim.errors import SlimError, unknown
from slim.files import check_regular

PICKLED = (".pt", ".pth", ".bin", ".ckpt")
WHERE = ("state_dict", "model", "model_state_dict", "ema", "model_ema", "state_dict_ema", "net", "weights", "params")
PREFIXES = ("module.", "_orig_mod.", "net.", "model.", "ema.")
NAMED = 3  # names in an error


@dataclass(frozen=True)
class Weights:
    """Trained weights, and what is known of them."""

    source: str
    state: Mapping[str, Tensor]
    classes: list[str] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    image_size: int | None = None
    notes: list[str] = field(default_factory=list)  # what was done to read them, a line each


def read_weights(arch: str, source: str) -> Weights:
    """Return trained weights for an architecture.

    source: a file (.safetensors, or .pt, .pth, .bin, .ckpt that hold tensors only: a state dict, or one under a usual
    key), or for `torchvision:` and `timm:` the name of weights, such as DEFAULT or IMAGENET1K_V2, which that library
    finds or downloads.
    Raises SlimError where there is no such file or name, and for a pickled model, which would run code.
    """
    path = Path(source)
    library, _, name = arch.partition(":")
    if path.suffix in PICKLED:
        state, notes = _state_in(_unpickled(path), path)
        return Weights(source, state, notes=notes)
    if path.suffix == ".safetensors":
        return Weights(source, _safetensors(path))
    if library == "torchvision":
        return _torchvision(name, source)
    if library == "timm":
        return _timm(name, source)
    raise SlimError(
        f"weights {source!r}: expected a file that ends in .safetensors or {', '.join(PICKLED)}, or with torchvision: "
        "or timm: the name of weights such as DEFAULT"
    )


def fit_weights(model: nn.Module, weights: Weights, num_classes: int | None) -> list[str]:
    """Put weights into a network, in place, and return what is worth telling, a line each.

    A last layer for another number of classes keeps its new values. Raises SlimError for any other tensor that the
    weights lack, have too many or in another shape, and names the first ones.
    """
    own = model.state_dict()
    state = _without_prefixes(weights.state, own)
    counters = {name for name in own if name.endswith("num_batches_tracked")}  # which older files lack
    missing = [name for name in own if name not in state and name not in counters]
    extra = [name for name in state if name not in own]
    other = [name for name in own if name in state and own[name].shape != state[name].shape]
    heads = [name for name in other if _is_head(own[name], state[name], num_classes)]
    wrong = [*missing, *extra, *(name for name in other if name not in heads)]
    if wrong:
        what = "lack" if missing else "have too many tensors:" if extra else "have another shape of"
        more = f" and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
        raise SlimError(f"weights {weights.source!r} don't fit: they {what} {', '.join(wrong[:NAMED])}{more}")
    model.load_state_dict({name: tensor for name, tensor in state.items() if name not in heads}, strict=False)
    layers = dict.fromkeys(name.rpartition(".")[0] for name in heads)
    replaced = [
        f"{layer}: made new for {num_classes} classes (the weights have {len(state[heads[0]])})" for layer in layers
    ]
    return [*weights.notes, *replaced]


def classes_of(model: nn.Module, weights: Weights) -> int | None:
    """Return the number of classes of the weights' last layer, where it is all that differs from the network's."""
    own = model.state_dict()
    state = _without_prefixes(weights.state, own)
    other = [(own[name], state[name]) for name in own if name in state and own[name].shape != state[name].shape]
    sizes = {len(theirs) for ours, theirs in other if ours.dim() and theirs.shape[1:] == ours.shape[1:]}
    return sizes.pop() if len(sizes) == 1 and len({len(ours) for ours, _ in other}) == 1 else None


def _is_head(own: Tensor, found: Tensor, num_classes: int | None) -> bool:
    return own.dim() > 0 and len(own) == num_classes and own.shape[1:] == found.shape[1:]


def _unpickled(path: Path) -> Any:
    check_regular("weights", path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise SlimError(f"weights {str(path)!r} can't be read: {error.strerror or error}") from None
    except pickle.UnpicklingError:
        raise SlimError(
            f"weights {str(path)!r} hold a pickled object, which can run code when opened: expected tensors alone, as "
            "torch.save(model.state_dict(), …) writes them"
        ) from None
    except Exception as error:  # a broken archive, of which there are many kinds
        raise SlimError(f"weights {str(path)!r} are broken ({type(error).__name__})") from None


def _safetensors(path: Path) -> dict[str, Tensor]:
    check_regular("weights", path)
    try:
        with safe_open(path, framework="pt") as file:
            if "slim" in (file.metadata() or {}):
                raise SlimError(f"weights {str(path)!r} are a checkpoint of slim: give it as FILE, without weights")
        return load_file(path)
    except OSError as error:
        raise SlimError(f"weights {str(path)!r} can't be read: {error.strerror or error}") from None
    except SafetensorError as error:
        raise SlimError(f"weights {str(path)!r} are truncated or no safetensors file: {error}") from None


def _state_in(content: Any, path: Path) -> tuple[Mapping[str, Tensor], list[str]]:
    """Find the state dict in what a file holds."""
    if _is_state(content):
        return content, []
    found = [key for key in WHERE if isinstance(content, Mapping) and _is_state(content.get(key))]
    if not found:
        keys = ", ".join(map(str, list(content)[:NAMED])) if isinstance(content, Mapping) else type(content).__name__
        raise SlimError(
            f"weights {str(path)!r} hold {keys}: expected a state dict, or one under {', '.join(WHERE[:4])}"
        )
    return content[found[0]], [f"weights are those under {found[0]!r} in {path}"] if len(found) > 1 else []


def _is_state(value: Any) -> bool:
    return isinstance(value, Mapping) and len(value) > 0 and all(isinstance(t, Tensor) for t in value.values())


def _without_prefixes(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take wrappers' prefixes off names, as long as they come nearer to the network's."""
    state = dict(state)
    while not state.keys() & own.keys():
        prefix = next((p for p in PREFIXES if state and all(name.startswith(p) for name in state)), None)
        if prefix is None:
            break
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _torchvision(name: str, source: str) -> Weights:
    from torchvision import models

    known = models.get_model_weights(name)
    if source not in known.__members__:
        raise unknown(f"weights of torchvision:{name}", source, known.__members__)
    chosen = known[source]
    transforms = chosen.transforms()
    return Weights(
        f"torchvision:{name} {source}",
        _downloaded(lambda: chosen.get_state_dict(progress=False, check_hash=True), source),
        classes=list(chosen.meta["categories"]) if "categories" in chosen.meta else None,
        mean=_numbers(getattr(transforms, "mean", None)),
        std=_numbers(getattr(transforms, "std", None)),
        image_size=next(iter(getattr(transforms, "crop_size", [])), None),
    )


def _timm(name: str, source: str) -> Weights:
    import timm

    if source != "DEFAULT":
        name = f"{name.partition('.')[0]}.{source}"
    made = _downloaded(lambda: timm.create_model(name, pretrained=True), name)
    about = made.pretrained_cfg
    size = about.get("input_size")
    return Weights(
        f"timm:{name}",
        made.state_dict(),
        None,
        _numbers(about.get("mean")),
        _numbers(about.get("std")),
        size and size[-1],
    )


def _numbers(values: Sequence[float] | None) -> tuple[float, ...] | None:
    return None if values is None else tuple(float(value) for value in values)


def _downloaded(read: Any, source: str) -> Any:
    """Return what another library finds or downloads; what goes wrong there in one line."""
    try:
        return read()
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise SlimError(f"can't get the weights {source!r} ({reason})") from error
