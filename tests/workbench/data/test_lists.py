"""Lists of files with labels, and data sets of the package datasets, against the images that were written."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from workbench.commands import Command

from slim.errors import SlimError
from slim.workbench.config import DataConfig
from slim.workbench.data import load

COLOURS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}
ROWS = [
    {"path": f"photos/{name}-{number}.png", "label": name, "split": "test" if number > 7 else "train"}
    for number in range(10)
    for name in COLOURS
]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for row in ROWS:
        Image.new("RGB", (12, 8), COLOURS[row["label"]]).save(tmp_path / row["path"])
    return tmp_path


def written(folder: Path, ending: str, rows: list[dict[str, Any]]) -> str:
    path = folder / f"list.{ending}"
    if ending == "csv":
        lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
        path.write_text("\n".join(lines))
    elif ending == "json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def relabelled(**labels: Any) -> list[dict[str, Any]]:
    return [row | {"label": labels[row["label"]]} for row in ROWS]


@pytest.mark.parametrize("ending", ["csv", "json", "jsonl"])
def test_a_list_gives_each_image_its_label(ending: str, photos: Path) -> None:
    data = load(DataConfig("imagelist", written(photos, ending, ROWS)), seed=0)
    assert data.classes == ["blue", "green", "red"] and len(data.test) == 6 and len(data.train) + len(data.val) == 24
    for split in (data.train, data.val, data.test):
        colours = split.decoded()[:, :, 0, 0]
        expected = torch.tensor([COLOURS[data.classes[label]] for label in split.labels])
        assert torch.equal(colours.int(), expected.int())
    assert load(DataConfig("imagelist", str(photos / f"list.{ending}"), image_size=6), 0).image_size == (6, 6)


@pytest.mark.parametrize(
    ("task", "labels", "classes", "targets"),
    [
        ("classification", {"blue": 10.0, "green": "2 ", "red": 2}, ["2", "10"], {"blue": 1, "green": 0, "red": 0}),
        (
            "multilabel",
            {"blue": "sky; sea", "green": "", "red": "sea"},
            ["sea", "sky"],
            {"blue": [1, 1], "green": [0, 0], "red": [1, 0]},
        ),
        (
            "multilabel",
            {"blue": [1, 1], "green": [0, 0], "red": [1, 0]},
            ["0", "1"],
            {"blue": [1, 1], "green": [0, 0], "red": [1, 0]},
        ),
        (
            "regression",
            {"blue": "1|2", "green": "3|-4", "red": "5|6"},
            ["value 1", "value 2"],
            {"blue": [1, 2], "green": [3, -4], "red": [5, 6]},
        ),
        ("classification", {"blue": 10, "green": 2, "red": 2}, ["2", "10"], {"blue": 1, "green": 0, "red": 0}),
        (
            "multilabel",
            {"blue": ["sky", "sea"], "green": [], "red": ["sea"]},
            ["sea", "sky"],
            {"blue": [1, 1], "green": [0, 0], "red": [1, 0]},
        ),
        ("regression", {"blue": 0.5, "green": -1, "red": 3}, ["value"], {"blue": [0.5], "green": [-1], "red": [3]}),
    ],
)
def test_labels_mean_what_the_task_says(task: str, labels: Any, classes: Any, targets: Any, photos: Path) -> None:
    data = load(DataConfig("imagelist", written(photos, "json", relabelled(**labels))), 0, task=task)
    assert data.classes == classes
    names = {colour: name for name, colour in COLOURS.items()}
    for colour, target in zip(data.test.decoded()[:, :, 0, 0].tolist(), data.test.labels.tolist()):
        assert target == targets[names[tuple(colour)]]


@pytest.mark.parametrize(
    ("rows", "task", "message"),
    [
        ([], "classification", "holds no rows"),
        ([{"where": "a.png", "label": 1}], "classification", "has where, label: expected a column 'path'"),
        (
            [{"path": "a.png", "label": "x", "split": "exam"}],
            "classification",
            "row 1: split is 'exam': expected train",
        ),
        ([{"path": None, "label": "x"}], "classification", "row 1: expected a path and a label"),
        ([{"path": "a.png", "label": "x"}], "regression", "needs a number"),
        ([{"path": "a.png", "label": "1,5"}], "regression", "could not convert string to float: '1,5'"),
        ([{"path": "a.png", "label": float("nan")}], "regression", r"image 1 of split train has the value \[nan\]"),
        (
            [{"path": "a.png", "label": "x"}, {"path": "b.png", "label": " "}],
            "classification",
            "image 2 .* has no label",
        ),
        (
            [{"path": "a.png", "label": ["x", "y"]}],
            "classification",
            "a list of labels: expected one, or task multilabel",
        ),
        ([{"path": "a.png", "label": "x"}], "classification", "all training images have the label 'x'"),
        ([{"path": "a.png", "cat": 1, "dog": 2}], "multilabel", "image 1 .* has '2' for a class: expected 0 or 1"),
        ([{"path": "a.png", "label": "x"}], "segmentation", "expected classification, multilabel, regression"),
        ([{"path": "a.png", "label": "x", "split": "test"}], "classification", "no row with split train"),
        (
            [{"path": "a.png", "label": x, "split": "test" if x == "z" else "train"} for x in "xyz"],
            "classification",
            "label 'z' isn't among those of the training images",
        ),
        ([{"path": "none.png", "label": x} for x in "ab"], "classification", "none.png' can't be read: No such file"),
    ],
)
def test_a_broken_list_says_where(rows: list[dict[str, Any]], task: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(SlimError, match=message) as caught:
        load(DataConfig("imagelist", written(tmp_path, "json", rows)), 0, task=task)
    assert "\n" not in str(caught.value)


AS_TEXT: dict[str, Callable[[str], bytes]] = {
    "list.csv": lambda text: text.replace(",", ";").replace("path", " Image_Path").encode("utf-8-sig"),
    "list.TSV": lambda text: text.replace(",", "\t").replace("\n", "\r\n").encode("utf-16"),
    "list.txt": lambda text: text.partition("\n")[2].replace(",", " ").encode(),
    "bars.csv": lambda text: text.replace(",", " | ").replace("train", "Training").encode(),
    "quoted.csv": lambda text: text.replace("photos/blue-0.png", '"photos\\blue-0.png"').encode(),
}


@pytest.mark.parametrize("name", AS_TEXT)
def test_tables_as_other_programs_write_them(name: str, photos: Path) -> None:
    usual = load(DataConfig("imagelist", written(photos, "csv", ROWS)), seed=0)
    (photos / name).write_bytes(AS_TEXT[name]((photos / "list.csv").read_text()))
    data = load(DataConfig("imagelist", str(photos / name)), seed=0)
    assert data.classes == usual.classes
    for split, other in ((data.train, usual.train), (data.test, usual.test)):
        assert torch.equal(split.decoded(), other.decoded()) and torch.equal(split.labels, other.labels)


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_a_column_for_each_class_or_number(task: str, photos: Path) -> None:
    rows = [{"": 7, "path": row["path"], "warm": int(row["label"] == "red"), "cold": 1} for row in ROWS]
    data = load(DataConfig("imagelist", written(photos, "csv", rows), val_fraction=0), 0, task=task)
    assert data.classes == ["warm", "cold"]
    reds = (data.train.decoded()[:, 0, 0, 0] == 255).float()
    assert torch.equal(data.train.labels, torch.stack([reds, torch.ones_like(reds)], 1)) and 0 < reds.sum() < len(reds)


def test_a_run_on_a_list(photos: Path, monkeypatch: pytest.MonkeyPatch, command: Command, mistake: Command) -> None:
    """Later stages read a list only where the user says so again: no file decides what is read."""
    monkeypatch.chdir(photos)
    root = written(photos, "csv", ROWS)
    argv = ["--data.name", "imagelist", "--data.root", root, "--data.batch_size", "8"]
    command("train", *argv, "--epochs", "1", "--name", "colours", "--model.arch", "slim:resnet20")
    assert f"--data.root {root}" in mistake("prune", "--ratio", "0.3")
    assert "accuracy" in command(
        "prune", "--ratio", "0.3", "--round-to", "1", "--data.root", root, "--recover", "false"
    )


def test_a_data_set_of_hugging_face(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    names = ["red", "green", "blue"]  # not in the order of the alphabet
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    images = [Image.fromarray(np.full((6, 5, 3), COLOURS[name], np.uint8)) for name in names for _ in range(5)]
    labels = [number for number in range(3) for _ in range(5)]
    made = datasets.Dataset.from_dict({"img": images, "label": labels}, features)
    datasets.DatasetDict({"train": made, "test": made.select(range(0, 15, 5))}).save_to_disk(str(tmp_path / "three"))
    data = load(DataConfig("huggingface", str(tmp_path / "three"), val_fraction=0), 0)
    assert data.classes == names and data.test.labels.tolist() == [0, 1, 2] and len(data.train) == 15
    for split in (data.train, data.test):
        expected = torch.tensor([COLOURS[names[label]] for label in split.labels])
        assert torch.equal(split.decoded()[:, :, 2, 2].int(), expected.int())
    parquet, classes = tmp_path / "parquet", tmp_path / "classes"
    parquet.mkdir()
    made.to_parquet(parquet / "train.parquet")
    for number, (image, label) in enumerate(zip(images, labels)):
        (classes / names[label]).mkdir(parents=True, exist_ok=True)
        image.save(classes / names[label] / f"{number}.png")
    for root in (parquet, parquet / "train.parquet", classes):
        data = load(DataConfig("huggingface", str(root), val_fraction=0), 0)
        expected = torch.tensor([COLOURS[data.classes[label]] for label in data.train.labels])
        assert torch.equal(data.train.decoded()[:, :, 2, 2].int(), expected.int())
    made.select(range(5)).map(lambda row: {"label": -1}).save_to_disk(str(tmp_path / "unknown"))
    with pytest.raises(SlimError, match="image 1 of split train has no label"):
        load(DataConfig("huggingface", str(tmp_path / "unknown")), 0)
    with pytest.raises(SlimError, match="can't get the data set"):
        load(DataConfig("huggingface", str(tmp_path / "cache")), 0)
