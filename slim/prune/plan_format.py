"""What a plan's file may hold: checked on reading, before anything is built from it."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from slim.errors import SlimError
from slim.trace.codes import NUMBERED

FORMAT, VERSION = "slim-plan", 1
LARGEST = 2**31 - 1  # size or count
LARGEST_NUMBER = 1e300  # also not NaN


def hash_of(record: Mapping[str, Any]) -> str:
    """Return the SHA-256 over all of a plan's record but its own hash, as hex."""
    content = {key: value for key, value in record.items() if key != "hash"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def check_record(record: Mapping[str, Any]) -> None:
    """Raise SlimError, in one line, where a record isn't a plan that this version wrote, whole and consistent."""
    if not isinstance(record, Mapping) or record.get("format") != FORMAT:
        raise SlimError(f"not a pruning plan: expected an object with 'format': '{FORMAT}'")
    if record.get("version") != VERSION:
        raise SlimError(f"a pruning plan of version {record.get('version')!r:.20}: this slim reads version {VERSION}")
    try:
        if record.get("hash") != hash_of(record):
            raise SlimError("a broken pruning plan: its content doesn't have the hash that it was written with")
    except (TypeError, ValueError, RecursionError) as error:
        raise _broken(f"{type(error).__name__}: {error}") from None
    for key, (expected, fits) in _SCHEMA.items():
        if (key in record and not fits(record[key])) or key not in {*record, *_OPTIONAL}:
            raise _broken(f"{key} is {_shown(record.get(key))}: expected {expected}")
    _check_indices(record["indices"])
    _check_lists(record)
    _check_places(record)
    _check_layers(record)


def mismasked(
    removed: Mapping[str, Sequence[int]],
    cuts: Mapping[str, Mapping[Any, Sequence[int]]],
    masks: Mapping[str, Mapping[Any, Sequence[int]]],
    shapes: Mapping[str, Sequence[int]],
) -> str | None:
    """Return the name of a layer whose removed channels the masks don't zero, or of a tensor in which they zero what
    isn't cut; None where there is no such."""
    zeroed = {tuple(indices) for mask in masks.values() for indices in mask.values()}
    unmasked = [
        name
        for name, indices in removed.items()
        if tuple(indices) not in zeroed and not _within_groups(indices, masks, shapes)
    ]
    kept = [n for n, mask in masks.items() for d in mask if not {*mask[d]} <= {*cuts.get(n, {}).get(d, ())}]
    return next(iter(unmasked + kept), None)


def _within_groups(
    removed: Sequence[int], places: Mapping[str, Mapping[Any, Sequence[int]]], shapes: Mapping[str, Sequence[int]]
) -> bool:
    """Say whether these channels lie at the same places of each group, or are all that groups make, which is all that
    the weight of a transposed convolution in groups tells."""
    return any(
        [*removed] in ([group * size + i for group in groups for i in own], [i * many + k for i in own for k in groups])
        for name in places.keys() & shapes.keys()
        for dim, own in places[name].items()
        if own and 0 <= int(dim) < len(shapes[name])
        for size, many in [(shapes[name][int(dim)], len(removed) // len(own))]
        for groups in [range(many)]
    )


def _with_lists(numbers: Mapping[str, Any], lists: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Put the lists of indices in the place of their numbers."""
    return {key: lists[n] if isinstance(n, int) else _with_lists(n, lists) for key, n in numbers.items()}


def _shown(value: Any) -> str:
    try:
        return f"{value!r:.40}"
    except (RecursionError, ValueError):  # nesting, or digits, without end
        return f"a {type(value).__name__}"


def _broken(why: str) -> SlimError:
    return SlimError(f"a broken pruning plan: {why}")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST_NUMBER


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= LARGEST


def _is_size(value: Any) -> bool:
    """Return a whole number that a module keeps, or several."""
    return all(map(_is_count, value)) if isinstance(value, list | tuple) else _is_count(value)


def _list_of(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list | tuple) and all(map(fits, value))  # a tuple before it is JSON


def _to(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(map(fits, value.values()))


def _is_layer(value: Any) -> bool:
    counts = ("before", "after", "floor", "frozen")
    named = isinstance(value, dict) and value.keys() == {"name", *counts} and _is_text(value["name"])
    return named and all(_is_count(value[key]) for key in counts) and value["after"] <= value["before"]


def _is_total(value: Any) -> bool:
    return _list_of(_is_number)(value) and len(value) == 2 and value[0] >= value[1] >= 0


def _are_totals(value: Any) -> bool:
    return _to(_is_total)(value) and "channels" in value and value["channels"][0] > 0


def _are_places(value: Any) -> bool:
    return _to(_to(_is_count))(value) and all(
        dim == str(NUMBERED) or (dim.isdecimal() and len(dim) < 4) for each in value.values() for dim in each
    )


def _are_blocks(value: Any) -> bool:
    return _to(_to(lambda made: _list_of(_is_count)(made) and len(made) == 2))(value)


def _is_timing(value: Any) -> bool:
    if not isinstance(value, dict) or not value:
        return value == {}
    numbers = {key: each for key, each in value.items() if key != "runtime"}
    whole = {"original_ms", "ms", "share", *(["next_step"] if "unused" in numbers else [])} <= numbers.keys()
    return whole and _is_text(value.get("runtime")) and all(map(_is_number, numbers.values()))


_SCHEMA: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "requested": ("numbers by name", _to(_is_number)),
    "achieved": ("numbers by name", _to(_is_number)),
    "totals": ("numbers before and after by name, of channels at least one", _are_totals),
    "removed": ("numbers of index lists by layer", _to(_is_count)),
    "cuts": ("numbers of index lists by tensor and dimension", _are_places),
    "masks": ("numbers of index lists by tensor and dimension", _are_places),
    "kinds": ("numbers by kind of layer", _to(_is_count)),
    "indices": ("lists of whole numbers", _list_of(_list_of(_is_count))),
    "shapes": ("shapes by tensor", _to(_list_of(_is_count))),
    "selects": ("names of layers", _list_of(_is_text)),
    "sizes": ("numbers by the name of what keeps them", _to(_is_size)),
    "constants": ("numbers by layer", _to(_list_of(_is_number))),
    "blocks": ("blocks with modules, each with a dimension and a number of channels", _are_blocks),
    "layers": ("layers with name, before, after, floor and frozen", _list_of(_is_layer)),
    "frozen": ("numbers of channels by reason and layer", _to(_to(_is_count))),
    "shortfall": ("text", _is_text),
    "score": ("text", _is_text),
    "reason": ("text", _is_text),
    "rounding": ("text", _is_text),
    "timing": ("runtime, original_ms, ms and share, and other numbers by name", _is_timing),
}
_OPTIONAL = {"blocks", "constants", "masks", "kinds", "reason", "rounding", "score", "timing"}  # older plans have none


def _check_indices(lists: list[list[int]]) -> None:
    for indices in lists:
        if any(b <= a for a, b in zip([-1, *indices], indices)):
            raise _broken(f"indices {_shown(indices)}: expected whole numbers from 0, each larger than the one before")


def _check_lists(record: Mapping[str, Any]) -> None:
    """Check that the lists of indices which the plan names are there."""
    places = [*record["cuts"].values(), *record.get("masks", {}).values(), record["removed"]]
    for number in (number for place in places for number in place.values()):
        if number >= len(record["indices"]):
            raise _broken(f"it names list {number} of {len(record['indices'])}")


def _check_places(record: Mapping[str, Any]) -> None:
    """Check that cuts and masks lie within shapes."""
    lists, shapes = record["indices"], record["shapes"]
    for kind in ("cuts", "masks"):
        for name, place in record.get(kind, {}).items():
            for dim, number in place.items():
                shape = shapes.get(name)
                if shape is None or int(dim) == NUMBERED:  # of a tensor in a plain attribute; of another tensor
                    continue
                size = shape[int(dim)] if int(dim) < len(shape) else 0
                if lists[number] and lists[number][-1] >= size:
                    raise _broken(f"the {kind[:-1]} of {name} doesn't fit its shape {_shown(shape)}")
    if missing := shapes.keys() - record["cuts"].keys():
        raise _broken(f"{min(missing)} has a shape, and no cut")


def _check_layers(record: Mapping[str, Any]) -> None:
    """Check that what is removed of each layer is what its tensors lose, what masks zero and what is counted."""
    lists, cuts, masks = record["indices"], record["cuts"], record.get("masks")
    for layer, number in record["removed"].items():
        holder = re.sub(r"\[\d+\]$", "", layer)  # a layer whose weight is turned round has the dimension in its name
        own = {name: cut for name, cut in cuts.items() if name in (layer, holder) or name.startswith(f"{holder}.")}
        alike = any(lists[each] == lists[number] for cut in own.values() for each in cut.values())
        if not alike and not _within_groups(lists[number], _with_lists(own, lists), record["shapes"]):
            raise _broken(f"what is removed of {layer} isn't what its tensors lose")
    if masks is not None:
        removed, cut, masked = (_with_lists(numbers, lists) for numbers in (record["removed"], cuts, masks))
        name = mismasked(removed, cut, masked, record["shapes"])
        if name is not None:
            raise _broken(f"its masks zero other channels than it removes, of {_shown(name)}")
    for each in record["layers"]:
        number = record["removed"].get(each["name"])
        if each["before"] - each["after"] != (0 if number is None else len(lists[number])):
            raise _broken(f"{each['name']} goes from {each['before']} to {each['after']} channels by other indices")
    for name in record["selects"]:
        if not record["shapes"].get(f"{name}.weight"):
            raise _broken(f"{_shown(name)} selects channels, and its weight has no shape")
