"""What a plan's file may hold: checked on reading, before anything is built from it."""

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

from slim.errors import SlimError

FORMAT, VERSION = "slim-plan", 1


def hash_of(record: Mapping[str, Any]) -> str:
    """Return the SHA-256 over all of a plan's record but its own hash, as hex."""
    content = {key: value for key, value in record.items() if key != "hash"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def check_record(record: Mapping[str, Any]) -> None:
    """Raise SlimError, in one line, where a record isn't a plan that this version wrote, whole and consistent."""
    if record.get("format") != FORMAT:
        raise SlimError(f"not a pruning plan: expected an object with 'format': '{FORMAT}'")
    if record.get("version") != VERSION:
        raise SlimError(f"a pruning plan of version {record.get('version')!r:.20}: this slim reads version {VERSION}")
    try:
        if record.get("hash") != hash_of(record):
            raise SlimError("a broken pruning plan: its content doesn't have the hash that it was written with")
        _check_indices(record["indices"])
        _check_numbers(record)
        _check_cuts(record)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RecursionError) as error:
        raise _broken(f"{type(error).__name__}: {error}") from error


def _broken(why: str) -> SlimError:
    return SlimError(f"a broken pruning plan: {why}")


def _check_indices(lists: list[list[int]]) -> None:
    for indices in lists:
        if any(type(i) is not int for i in indices) or any(b <= a for a, b in zip([-1, *indices], indices)):
            raise _broken(f"indices {indices!s:.40}: expected whole numbers from 0, each larger than the one before")


def _check_numbers(record: Mapping[str, Any]) -> None:
    for name in ("requested", "achieved"):
        for kind, value in record[name].items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise _broken(f"{name} {kind} is {value!r:.20}: expected a number")


def _check_cuts(record: Mapping[str, Any]) -> None:
    """Check that cuts lie within shapes, and that what is removed of each layer is what its tensors lose."""
    lists, cuts, shapes = record["indices"], record["cuts"], record["shapes"]
    for name, shape in shapes.items():
        for dim, number in cuts[name].items():
            if not 0 <= int(dim) < len(shape) or (lists[number] and lists[number][-1] >= shape[int(dim)]):
                raise _broken(f"the cut of {name} doesn't fit its shape {shape}")
    for layer, number in record["removed"].items():
        own = [cut for name, cut in cuts.items() if name == layer or name.startswith(f"{layer}.")]
        if not any(lists[each] == lists[number] for cut in own for each in cut.values()):
            raise _broken(f"what is removed of {layer} isn't what its tensors lose")
    for layer in record["layers"]:
        number = record["removed"].get(layer["name"])
        if layer["before"] - layer["after"] != (0 if number is None else len(lists[number])):
            raise _broken(f"{layer['name']} goes from {layer['before']} to {layer['after']} channels by other indices")
