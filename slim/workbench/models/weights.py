"""Trained weights: what is known of them, and how they are read from a file."""

import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from slim.errors import SlimError
from slim.files import check_regular

PICKLED = (".pt", ".pth", ".bin", ".ckpt")
WHERE = ("state_dict", "model", "model_state_dict", "ema", "model_ema", "state_dict_ema", "net", "weights", "params")
HUB = "hf-hub:"
NAMED = 3  # names in an error


@dataclass(frozen=True)
class Weights:
    """Trained weights, which `read` finds or downloads, and what is known of them before that."""

    source: str
    read: Callable[[], Mapping[str, Tensor]]
    classes: list[str] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    image_size: int | None = None
    notes: list[str] = field(default_factory=list)  # what was done to read them, a line each

    @cached_property
    def state(self) -> Mapping[str, Tensor]:
        """Return the tensors by name."""
        return self.read()


def is_file(source: str) -> bool:
    """Say whether a word of the settings names a file of weights."""
    return not source.startswith(HUB) and Path(source).suffix in (*PICKLED, ".safetensors")


def state_in_file(path: Path) -> tuple[Mapping[str, Tensor], list[str]]:
    """Return the tensors in a file by name, and what is worth telling of how they were found.

    Raises SlimError where the file isn't there or broken, and for a pickled object, which would run code.
    """
    if path.suffix == ".safetensors":
        return _safetensors(path), []
    return _state_in(_unpickled(path), path)


def _unpickled(path: Path) -> Any:
    check_regular("weights", path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise SlimError(f"weights {str(path)!r} can't be read: {error.strerror or error}") from None
    except pickle.UnpicklingError:
        raise SlimError(
            f"weights {str(path)!r} hold a pickled object, such as a whole model, which can run code when opened: "
            "expected tensors alone, as torch.save(model.state_dict(), …) writes them where the model's code is"
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
