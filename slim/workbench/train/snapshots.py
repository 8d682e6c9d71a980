"""States to resume from: one safetensors file each, with JSON in its metadata. Nothing is unpickled."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from slim.errors import SlimError
from slim.files import clear_leftovers, replacing

FORMAT = 1


class Snapshots:
    """The folder of a training's states, of which the last `keep` stay. `about` is kept beside each, as JSON: whose
    state it is. `minutes` may pass between two. With `resume` a training goes on from the newest, if there is one."""

    def __init__(
        self, folder: Path, about: Mapping[str, Any], *, keep: int = 2, minutes: float = 10.0, resume: bool = False
    ) -> None:
        self.folder, self.about, self.keep, self.minutes, self.resume = folder, dict(about), keep, minutes, resume
        self._saved = time.monotonic()
        self._fresh = True  # nothing is known of what lies in the folder

    def due(self) -> bool:
        """Say whether it is time for the next one."""
        return time.monotonic() - self._saved > 60 * self.minutes

    def save(self, step: int, state: Mapping[str, Any]) -> Path:
        """Write the state after `step` steps, whole or not at all; then remove the oldest. The first one of a folder
        that wasn't resumed from takes the place of all that is there. Raises SlimError where it can't be written."""
        if self.folder.is_symlink():
            raise SlimError(f"{str(self.folder)!r} is a link, behind which states of others may lie: expected a folder")
        if self._fresh:
            self.clear()
            self._fresh = False
        tensors: dict[str, Tensor] = {}
        text = json.dumps({"format": FORMAT, "about": self.about, "state": _without(state, "", tensors)})
        path = self.folder / f"step-{step:09}.safetensors"
        with replacing(path) as temporary:
            save_file(tensors, temporary, metadata={"slim.state": text})
        for old in _files(self.folder)[: -self.keep]:
            old.unlink()
        clear_leftovers(self.folder)
        self._saved = time.monotonic()
        return path

    def newest(self) -> dict[str, Any] | None:
        """Return the newest state, or None where there is none. A file that can't be read counts as none."""
        found = newest(self.folder)
        if found is None:
            return None
        self._fresh = False
        path, content = found
        tensors = load_file(path)
        state: dict[str, Any] = _with(content["state"], tensors)
        return state

    def clear(self) -> None:
        """Remove all states, when the training is done. Behind a link nothing of ours lies."""
        if self.folder.is_symlink() or not self.folder.is_dir():
            return
        for path in _files(self.folder):
            path.unlink()
        clear_leftovers(self.folder)
        if not any(self.folder.iterdir()):
            self.folder.rmdir()


def newest(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """Return the newest readable file of a folder of states, with what its metadata says."""
    for path in reversed(_files(folder)):
        try:
            with safe_open(path, framework="pt") as file:
                content = json.loads(file.metadata()["slim.state"])
            if content["format"] == FORMAT:
                return path, content
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            continue
    return None


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.safetensors"))


def _without(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    """Return `value` as JSON, its tensors moved to `tensors` under the name of their place."""
    if isinstance(value, Tensor):
        tensors[place] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": place}
    if isinstance(value, Mapping):
        return {"map": [[key, _without(item, f"{place}/{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return [_without(item, f"{place}/{number}", tensors) for number, item in enumerate(value)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise SlimError(f"state {place!r} is a {type(value).__name__}, which can't be saved: expected tensors and numbers")


def _with(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Undo `_without`. Keys keep their type: those of an optimizer's state are numbers."""
    if isinstance(value, list):
        return [_with(item, tensors) for item in value]
    if isinstance(value, dict):
        if "tensor" in value:
            return tensors[value["tensor"]]
        return {key: _with(item, tensors) for key, item in value["map"]}
    return value
