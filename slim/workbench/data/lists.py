"""Lists of image files with their labels, `data.name: imagelist`: a CSV file, or JSON, as `data.root`.

    path,label,split                      [{"path": "a/1.jpg", "label": "cat", "split": "train"}, …]
    a/1.jpg,cat,train
    b/7.jpg,dog,test

Paths are relative to the file. The columns may have other usual names (NAMES); `split` may be missing: parts are held
out then, as of other data sets. What a label is depends on the task: see `slim.workbench.data.targets`.
"""

import csv
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from slim.errors import SlimError
from slim.workbench.config import DataConfig
from slim.workbench.data import folder
from slim.workbench.data.splits import Split
from slim.workbench.data.targets import targets_of

NAMES = {"path": ("path", "file", "image", "filename", "file_name"), "label": ("label", "labels", "class", "target")}
PARTS = {"train": "train", "val": "val", "validation": "val", "valid": "val", "test": "test"}


def read(cfg: DataConfig, task: str) -> tuple[list[str], dict[str, Split]]:
    """Return classes and splits of the list in the file `cfg.root`. Raises SlimError for a file that isn't there or
    isn't such a list, and names the row."""
    path = Path(cfg.root).expanduser()
    rows = _rows(path)
    keys = {what: _column(path, rows[0], what) for what in NAMES}
    parts: dict[str, tuple[list[bytes], list[Any]]] = {}
    for number, row in enumerate(rows, start=1):
        said = str(row.get("split") or "train").lower()
        if said not in PARTS:
            raise SlimError(f"{str(path)!r}, row {number}: split is {said!r}: expected {', '.join(PARTS)}")
        if not isinstance(row.get(keys["path"]), str) or row.get(keys["label"]) is None:
            raise SlimError(f"{str(path)!r}, row {number}: expected a {keys['path']} and a {keys['label']}")
        names, labels = parts.setdefault(PARTS[said], ([], []))
        names.append(os.fsencode(row[keys["path"]]))
        labels.append(row[keys["label"]])
    if "train" not in parts:
        raise SlimError(f"{str(path)!r} has no row with split train: expected training images")
    classes, targets = targets_of({part: labels for part, (_, labels) in parts.items()}, task)
    images = folder.images_of(cfg, {part: (str(path.parent), np.array(names)) for part, (names, _) in parts.items()})
    return classes, {part: Split(images[part], targets[part]) for part in parts}


def _rows(path: Path) -> list[Mapping[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise SlimError(f"list {str(path)!r} can't be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SlimError(f"list {str(path)!r} isn't text: expected CSV or JSON") from None
    try:
        if path.suffix == ".csv":
            rows: Any = list(csv.DictReader(text.splitlines()))
        elif path.suffix == ".jsonl":
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
        elif path.suffix == ".json":
            rows = json.loads(text)
        else:
            raise SlimError(f"list {str(path)!r}: expected a name that ends in .csv, .json or .jsonl")
    except (ValueError, csv.Error, RecursionError) as error:
        raise SlimError(f"list {str(path)!r} is no {path.suffix[1:].upper()}: {error}") from None
    if not isinstance(rows, list) or not rows or not all(isinstance(row, Mapping) for row in rows):
        raise SlimError(f"list {str(path)!r} holds no rows: expected a path and a label for each image")
    return rows


def _column(path: Path, row: Mapping[str, Any], what: str) -> str:
    found = next((name for name in NAMES[what] if name in row), None)
    if found is None:
        raise SlimError(f"list {str(path)!r} has {', '.join(map(str, row))}: expected a column {what!r}")
    return found
