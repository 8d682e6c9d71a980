"""Trained weights: what is known of them, and how they are read from a file."""

import errno
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from slim.errors import SlimError, unknown
from slim.files import check_regular
from slim.trace.copy import dotted

PICKLED = (".pt", ".pth", ".bin", ".ckpt", ".tar", ".pkl")
WHERE = ("state_dict", "model", "model_state_dict", "ema", "model_ema", "state_dict_ema", "net", "weights", "params")
HUB = "hf-hub:"
NAMED = 3  # names in an error
DEEPEST = 3  # mappings within one another
MOST_STRANGE = 100  # classes in a file that torch doesn't know: each costs time wherever one of them is named
MOST_PACKED = 20  # times its size that a file may unpack to, where torch.save packs nothing
NOT_WEIGHTS = ("optim", "sched", "scaler")  # in the keys of what a training goes on with

States = Mapping[str, Mapping[str, Tensor]]  # state dicts by the keys that lead to them in a file, "" for all of it


@dataclass(frozen=True)
class Weights:
    """Trained weights, which `read` finds or downloads, and what is known of them before that."""

    source: str
    read: Callable[[], States]
    classes: list[str] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    image_size: int | None = None

    @cached_property
    def states(self) -> States:
        """Return all tensors by name; of files that hold several sets, such as an average beside the last, each."""
        return self.read()


def is_file(source: str) -> bool:
    """Say whether a word of the settings names a file of weights."""
    return not source.startswith(HUB) and _is_file_name(file_and_key(source)[0])


def _is_file_name(name: str) -> bool:
    return Path(name).suffix.lower() in (*PICKLED, ".safetensors")


def file_and_key(source: str) -> tuple[str, str | None]:
    """Return the name of a file, and behind a colon the key of one of its sets of tensors: w.pt:ema. No key begins
    behind the letter of a drive."""
    name, _, key = source.rpartition(":")
    return (name, key) if _is_file_name(name) and not _is_file_name(source) else (source, None)


def tensors_under(key: str, states: States, source: str) -> States:
    """Return the tensors under a key of a file, or whose names begin with it."""
    named = {dotted(at, name): each for at, state in states.items() for name, each in state.items()}
    found = {name.removeprefix(f"{key}."): each for name, each in named.items() if name.startswith(f"{key}.")}
    if not found:
        raise unknown(f"key of tensors in {source!r}", key, dict.fromkeys(name.partition(".")[0] for name in named))
    return {key: found}


def states_in_file(path: Path) -> States:
    """Return the sets of tensors in a file, by the keys that lead to them, usual ones first.

    Raises SlimError where the file isn't there or broken, and where it holds nothing but a pickled object, which would
    run code.
    """
    if path.suffix.lower() == ".safetensors":
        return {"": _safetensors(path)}
    content = _unpickled(path)
    found = dict(_states_in(content))
    if not found:
        raise SlimError(_without_weights(content, path))
    return dict(sorted(found.items(), key=lambda each: _rank(each[0])))


class _Inert:
    """Stands for a pickled object whose class may not be imported, such as the arguments of a training."""

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _unpickled(path: Path) -> Any:
    """Return what a file holds; of what is neither tensor nor container nothing is imported, run or kept."""
    check_regular("weights", path)
    _check_archive(path)
    try:
        if len(strange := _strange(path)) > MOST_STRANGE:
            raise SlimError(_pickled(path))
        with torch.serialization.safe_globals([(_Inert, name) for name in strange]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        short = error.errno == errno.EINVAL  # an archive that points behind its end
        reason = "cut short" if short else error.strerror or error
        raise SlimError(f"weights {str(path)!r} can't be read: {reason}") from None
    except SlimError:
        raise
    except pickle.UnpicklingError:
        if path.read_bytes()[:1] not in (b"P", b"\x80"):  # of a zip archive, and of a pickle
            raise SlimError(f"weights {str(path)!r} are no file of torch.save: expected one, or safetensors") from None
        raise SlimError(_pickled(path)) from None
    except Exception as error:  # a broken archive, of which there are many kinds
        raise SlimError(f"weights {str(path)!r} are broken ({type(error).__name__}): expected the whole file") from None


_EXPECTED = "expected tensors alone, as torch.save(model.state_dict(), …) writes them where the model's code is"


def _pickled(path: Path) -> str:
    what = "a pickled object, such as a whole model, which can run code when opened"
    return f"weights {str(path)!r} hold {what}: {_EXPECTED}"


def _strange(path: Path) -> list[str]:
    """Return the names of classes and functions in a file that torch doesn't read by itself."""
    try:
        return torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # of broken files, and of those of torch before 1.6: torch.load says what it is
        return []


def _check_archive(path: Path) -> None:
    """Raise SlimError for an archive that torch.save didn't write: one that unpacks to far more than it is, or a
    program."""
    with suppress(OSError, zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        size = sum(entry.file_size for entry in entries)
        if size > MOST_PACKED * path.stat().st_size:
            raise SlimError(f"weights {str(path)!r} unpack to {size:,} bytes: expected a file that torch.save wrote")
        if any(entry.filename.endswith("/constants.pkl") for entry in entries):
            raise SlimError(f"weights {str(path)!r} hold a TorchScript program: {_EXPECTED}")


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


def _states_in(
    content: Any, keys: tuple[str, ...] = (), seen: set[int] | None = None
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Find the tensors with names, in what a file holds and in mappings within it, each once. What else stands there,
    such as the number of an epoch, is no part of them."""
    seen = set() if seen is None else seen
    known = not isinstance(content, Mapping) or id(content) in seen
    if known or (keys and any(word in keys[-1].lower() for word in NOT_WEIGHTS)):
        return
    seen.add(id(content))
    tensors = {name: each for name, each in content.items() if isinstance(name, str) and isinstance(each, Tensor)}
    if tensors:
        yield ".".join(keys), tensors
    if len(keys) < DEEPEST:
        for key, value in content.items():
            if isinstance(key, str):
                yield from _states_in(value, (*keys, key), seen)


def _rank(keys: str) -> int:
    return min((WHERE.index(key) for key in keys.split(".") if key in WHERE), default=len(WHERE) if keys else -1)


def _without_weights(content: Any, path: Path) -> str:
    """Return what to say of a file without a single tensor that has a name."""
    values = list(content.values()) if isinstance(content, Mapping) else [content]
    if any(isinstance(value, _Inert) for value in values):
        return _pickled(path)
    keys = ", ".join(map(str, list(content)[:NAMED])) if isinstance(content, Mapping) else f"a {type(content).__name__}"
    return f"weights {str(path)!r} hold {keys or 'nothing'}: expected a state dict, or one under {', '.join(WHERE[:4])}"
