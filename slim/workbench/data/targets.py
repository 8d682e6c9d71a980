"""What a list of labels means for a task: words and numbers as they stand in files, made targets."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from slim.errors import SlimError

Labels = Sequence[Any]
SEPARATORS = "|;,"  # between several labels of one image, where a label is text: the first of them that occurs
INDICATORS = {"0": 0.0, "1": 1.0, "0.0": 0.0, "1.0": 1.0, "false": 0.0, "true": 1.0}


def targets_of(labels: Mapping[str, Labels], task: str) -> tuple[list[str], dict[str, Tensor]]:
    """Return class names and the targets of each part, such as train, for one of the tasks in `READERS`.

    classification: a name or number for each image. multilabel: a list of names, names joined by "|", ";" or ",", which
    may be none, or a 0 or 1 for each class. regression: a number, or a list of them.
    Raises SlimError for another task, for labels that mean nothing to it, and for a class that training doesn't have.
    """
    if task not in READERS:
        raise SlimError(
            f"labels of a list can't be read for task {task!r}: expected {', '.join(READERS)}, or a factory"
        )
    return READERS[task](labels)


def _classification(labels: Mapping[str, Labels]) -> tuple[list[str], dict[str, Tensor]]:
    if any(isinstance(each, list | tuple) for found in labels.values() for each in found):
        raise SlimError("an image has a list of labels: expected one, or task multilabel (or regression)")
    named = {part: [_name(each) for each in found] for part, found in labels.items()}
    if all(_is_whole(name) for found in named.values() for name in found):  # 1.0 and 01 are 1
        named = {part: [str(int(float(name))) for name in found] for part, found in named.items()}
    for part, found in named.items():
        if "" in found or "nan" in found:
            raise SlimError(f"image {found.index('' if '' in found else 'nan') + 1} of split {part} has no label")
    classes = _names(named["train"])
    if len(classes) < 2:
        raise SlimError(f"all training images have the label {classes[0]!r}: expected at least 2 classes")
    number = _numbered(classes)
    return classes, {part: torch.tensor([number(each) for each in found]) for part, found in named.items()}


def _multilabel(labels: Mapping[str, Labels]) -> tuple[list[str], dict[str, Tensor]]:
    if _are_indicators([each for found in labels.values() for each in found]):
        return [str(number) for number in range(len(labels["train"][0]))], indicators(labels)
    split = _split(labels)
    classes = _names(name for names in split["train"] for name in names)
    if not classes:
        raise SlimError("no training image has a label: expected names, or a 0 or 1 for each class")
    number = _numbered(classes)
    targets = {part: torch.zeros(len(found), len(classes)) for part, found in split.items()}
    for part, found in split.items():
        for row, names in zip(targets[part], found):
            row[[number(name) for name in names]] = 1
    return classes, targets


def _are_indicators(labels: Labels) -> bool:
    """Say whether each label is a list of a 0 or 1 for every class, and not of names: these differ in number, or don't
    come twice."""
    listed = all(isinstance(each, list | tuple) and len(each) == len(labels[0]) > 1 for each in labels)
    return listed and {_name(each) for row in labels for each in row} <= INDICATORS.keys()


def indicators(labels: Mapping[str, Labels]) -> dict[str, Tensor]:
    """Return which classes are there, given a 0 or 1, or a truth value, for each. SlimError for anything else."""
    for part, rows in labels.items():
        for number, row in enumerate(rows, start=1):
            if strange := [str(each) for each in row if _name(each).lower() not in INDICATORS]:
                raise SlimError(f"image {number} of split {part} has {strange[0]!r} for a class: expected 0 or 1")
    return {
        part: torch.tensor([[INDICATORS[_name(each).lower()] for each in row] for row in rows])
        for part, rows in labels.items()
    }


def _regression(labels: Mapping[str, Labels]) -> tuple[list[str], dict[str, Tensor]]:
    try:
        numbers = {
            part: torch.tensor([[float(number) for number in each] for each in found])
            for part, found in _split(labels, "|;").items()  # a comma may be within a number
        }
    except ValueError as error:  # text, or rows of different lengths
        raise SlimError(f"task regression needs a number, or as many, for each image: {error}") from None
    for part, found in numbers.items():
        if not (finite := found.isfinite().all(1)).all():
            number = int((~finite).nonzero()[0]) + 1
            said = found[number - 1].tolist()
            raise SlimError(f"image {number} of split {part} has the value {said}: expected numbers")
    width = numbers["train"].shape[1]
    return [f"value {n + 1}" for n in range(width)] if width > 1 else ["value"], numbers


READERS: dict[str, Callable[[Mapping[str, Labels]], tuple[list[str], dict[str, Tensor]]]] = {
    "classification": _classification,
    "multilabel": _multilabel,
    "regression": _regression,
}


def _name(label: Any) -> str:
    return "" if label is None else str(label).strip()


def _is_whole(name: str) -> bool:
    try:
        return float(name).is_integer()
    except ValueError:
        return False


def _split(labels: Mapping[str, Labels], separators: str = SEPARATORS) -> dict[str, list[list[str]]]:
    """Return the names, or numbers, in each label."""
    text = [each for found in labels.values() for each in found if isinstance(each, str)]
    separator = next((each for each in separators if any(each in label for label in text)), SEPARATORS[0])
    return {part: [_several(each, separator) for each in found] for part, found in labels.items()}


def _several(label: Any, separator: str) -> list[str]:
    """Return the names in one label."""
    if isinstance(label, list | tuple):
        return [_name(each) for each in label]
    text = _name(label)
    if text[:1] + text[-1:] == "[]":  # a list of Python's, as pandas writes it
        text, separator = text[1:-1].replace("'", "").replace('"', ""), ","
    return [name.strip() for name in text.split(separator) if name.strip()]


def _names(found: Iterable[str]) -> list[str]:
    """Return the classes in order: of numbers that of their size, else the alphabet's."""
    names = set(found)
    return sorted(names, key=float) if all(_is_whole(name) for name in names) else sorted(names)


def _numbered(classes: list[str]) -> Callable[[str], int]:
    numbers = {name: number for number, name in enumerate(classes)}

    def number(name: str) -> int:
        if name not in numbers:
            raise SlimError(f"label {name!r} isn't among those of the training images: {', '.join(classes[:5])}, …")
        return numbers[name]

    return number
