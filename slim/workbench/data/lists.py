"""Lists of image files with their labels, `data.name: imagelist`: a CSV file, or JSON, as `data.root`.

    path,label,split                      [{"path": "a/1.jpg", "label": "cat", "split": "train"}, …]
    a/1.jpg,cat,train
    b/7.jpg,dog,test

Paths are relative to the file. CSV may have tabs, semicolons, bars or spaces for commas, and no line of names. The
columns may have other usual names (NAMES); `split` may be missing: parts are held out then, as of other data sets. What
a label is depends on the task: see `slim.workbench.data.targets`. For multilabel and regression it may also be a column
for each class or number, in place of one called label. JSON may also be an object of parts, {"train": [{…}, …], …}, or
of labels by path.
"""

import codecs
import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from slim.errors import SlimError
from slim.images import IMAGE_FILES
from slim.workbench.config import DataConfig
from slim.workbench.data import folder
from slim.workbench.data.splits import PARTS, Split
from slim.workbench.data.targets import indicators, targets_of

NAMES = {
    "path": (
        *("path", "file", "image", "filename", "file_name", "filepath", "file_path", "image_path", "img_path"),
        *("img", "image_file", "image_name"),
    ),
    "label": ("label", "labels", "class", "target", "category", "class_name", "label_name", "value"),
    "split": ("split", "subset", "set", "partition", "part", "phase"),
}
NO_LABELS = ("", "id", "index", "unnamed: 0")  # columns beside those of several labels
IN_COLUMNS = ("multilabel", "regression")  # tasks whose labels may be a column each
DELIMITERS = "\t,;| "
TABLES, LINES = (".csv", ".tsv", ".txt"), (".jsonl", ".ndjson")


def read(cfg: DataConfig, task: str) -> tuple[list[str], dict[str, Split]]:
    """Return classes and splits of the list in the file `cfg.root`. Raises SlimError for a file that isn't there or
    isn't such a list, and names the row."""
    path = Path(cfg.root).expanduser()
    rows = _rows(path)
    place, split = _column(rows[0], "path"), _column(rows[0], "split")
    label = _column(rows[0], "label")
    columns = [label] if label is not None else _label_columns(rows[0], (place, split)) if task in IN_COLUMNS else []
    if place is None or not columns:
        what = "path" if place is None else "label"
        raise SlimError(f"list {str(path)!r} has {', '.join(map(str, rows[0]))}: expected a column {what!r}")
    parts: dict[str, tuple[list[bytes], list[Any]]] = {}
    for number, row in enumerate(rows, start=1):
        said = str((split and row.get(split)) or "train").strip().lower()
        if said not in PARTS:
            raise SlimError(f"{str(path)!r}, row {number}: split is {said!r}: expected {', '.join(PARTS)}")
        found = [row.get(column) for column in columns]
        if not isinstance(row.get(place), str) or None in found:
            raise SlimError(f"{str(path)!r}, row {number}: expected a {place} and a {columns[0]}")
        names, labels = parts.setdefault(PARTS[said], ([], []))
        names.append(os.fsencode(_own_path(row[place].strip(), path.parent)))
        labels.append(found if label is None else found[0])
    if "train" not in parts:
        raise SlimError(f"{str(path)!r} has no row with split train: expected training images")
    said_of = {part: labels for part, (_, labels) in parts.items()}
    if label is None and task == "multilabel":
        classes, targets = columns, indicators(said_of)
    else:
        classes, targets = targets_of(said_of, task)
        classes = columns if label is None else classes
    images = folder.images_of(cfg, {part: (str(path.parent), np.array(names)) for part, (names, _) in parts.items()})
    return classes, {part: Split(images[part], targets[part]) for part in parts}


def _rows(path: Path) -> list[Mapping[str, Any]]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SlimError(f"list {str(path)!r} can't be read: {error.strerror}") from None
    utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError:
        raise SlimError(f"list {str(path)!r} isn't text in UTF-8: expected CSV or JSON") from None
    kind = path.suffix.lower()
    try:
        if kind in TABLES:
            rows: Any = _table(text)
        elif kind in LINES:
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
        elif kind == ".json":
            rows = _listed(json.loads(text))
        else:
            known = ", ".join((*TABLES, ".json", *LINES))
            raise SlimError(f"list {str(path)!r}: expected a name that ends in one of {known}")
    except (ValueError, csv.Error, RecursionError) as error:
        raise SlimError(f"list {str(path)!r} is no {kind[1:].upper()}: {error}") from None
    if not isinstance(rows, list) or not rows or not all(isinstance(row, Mapping) for row in rows):
        raise SlimError(f"list {str(path)!r} holds no rows: expected a path and a label for each image")
    return rows


def _table(text: str) -> list[dict[str, Any]]:
    """Read CSV, whatever stands between its columns; without a line of names they are path, label and split."""
    first = text.lstrip().partition("\n")[0]
    delimiter = next((each for each in DELIMITERS if each in first.strip()), ",")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    rows = [row for row in reader if row]
    if not rows:
        return []
    named = not any(cell.lower().endswith(IMAGE_FILES) for cell in rows[0])
    names = [name.strip() for name in rows[0]] if named else list(NAMES)[: len(rows[0])]
    if len(set(names)) < len(names):
        raise ValueError(f"two of its columns have one name: {', '.join(names)}")
    return [dict(zip(names, [*row, *[None] * (len(names) - len(row))])) for row in rows[named:]]


def _listed(content: Any) -> Any:
    """Return the rows of an object of parts, or of labels by path; anything else as it is."""
    if not isinstance(content, Mapping):
        return content
    if content and all(key in PARTS and isinstance(value, list) for key, value in content.items()):
        return [row | {"split": key} for key, value in content.items() for row in value if isinstance(row, dict)]
    if all(key.lower().endswith(IMAGE_FILES) for key in content):
        return [{"path": key, "label": value} for key, value in content.items()]
    return content


def _column(row: Mapping[str, Any], what: str) -> str | None:
    """Return what a row calls something."""
    own = {str(name).strip().lower(): name for name in reversed(list(row))}
    return next((own[name] for name in NAMES[what] if name in own), None)


def _label_columns(row: Mapping[str, Any], others: Sequence[str | None]) -> list[str]:
    return [name for name in row if name not in others and str(name).strip().lower() not in NO_LABELS]


def _own_path(name: str, root: Path) -> str:
    """Return a path as this system writes it: lists come from Windows, too."""
    name = os.path.expanduser(name)
    return name.replace("\\", "/") if "\\" in name and not (root / name).exists() else name
