"""What a list of labels means for a task: words and numbers as they stand in files, made targets."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from slim.errors import SlimError

Labels = Sequence[Any]
SEPARATOR = "|"  # between several labels of one image, where a label is text


def targets_of(labels: Mapping[str, Labels], task: str) -> tuple[list[str], dict[str, Tensor]]:
    """Return class names and the targets of each part, such as train, for one of the tasks in `READERS`.

    classification: a name or number for each image. multilabel: a list of names, or names joined by "|", which may be
    none. regression: a number, or a list of them.
    Raises SlimError for another task, for labels that mean nothing to it, and for a class that training doesn't have.
    """
    if task not in READERS:
        raise SlimError(
            f"labels of a list can't be read for task {task!r}: expected {', '.join(READERS)}, or a factory"
        )
    return READERS[task](labels)


def _classification(labels: Mapping[str, Labels]) -> tuple[list[str], dict[str, Tensor]]:
    classes = _names(labels["train"])
    number = _numbered(classes)
    return classes, {part: torch.tensor([number(str(each)) for each in found]) for part, found in labels.items()}


def _multilabel(labels: Mapping[str, Labels]) -> tuple[list[str], dict[str, Tensor]]:
    split = {part: [_several(each) for each in found] for part, found in labels.items()}
    classes = _names(name for names in split["train"] for name in names)
    number = _numbered(classes)
    targets = {part: torch.zeros(len(found), len(classes)) for part, found in split.items()}
    for part, found in split.items():
        for row, names in zip(targets[part], found):
            row[[number(name) for name in names]] = 1
    return classes, targets


def _regression(labels: Mapping[str, Labels]) -> tuple[list[str], dict[str, Tensor]]:
    try:
        numbers = {
            part: torch.tensor([[float(number) for number in _several(each)] for each in found])
            for part, found in labels.items()
        }
    except ValueError as error:  # text, or rows of different lengths
        raise SlimError(f"task regression needs a number, or as many, for each image: {error}") from None
    width = numbers["train"].shape[1]
    return [f"value {n + 1}" for n in range(width)] if width > 1 else ["value"], numbers


READERS: dict[str, Callable[[Mapping[str, Labels]], tuple[list[str], dict[str, Tensor]]]] = {
    "classification": _classification,
    "multilabel": _multilabel,
    "regression": _regression,
}


def _several(label: Any) -> list[str]:
    """Return the names in one label."""
    if isinstance(label, list | tuple):
        return [str(each) for each in label]
    return [name.strip() for name in str(label).split(SEPARATOR) if name.strip()]


def _names(found: Iterable[Any]) -> list[str]:
    """Return the classes in order: of numbers that of their size, else the alphabet's."""
    names = {str(each) for each in found}
    return sorted(names, key=int) if all(name.isdecimal() for name in names) else sorted(names)


def _numbered(classes: list[str]) -> Callable[[str], int]:
    numbers = {name: number for number, name in enumerate(classes)}

    def number(name: str) -> int:
        if name not in numbers:
            raise SlimError(f"label {name!r} isn't among those of the training images: {', '.join(classes[:5])}, …")
        return numbers[name]

    return number
