"""Folders of images, against the files that the tests write themselves."""

import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from data_sets import folder, write_tree
from PIL import Image

from slim.errors import SlimError
from slim.workbench.config import DataConfig
from slim.workbench.data import Split, load
from slim.workbench.data.files import ImageFiles


@pytest.mark.parametrize("names", [("train", "val", "test"), ("Training", "valid", "TEST")])
def test_image_folder_with_splits(names: tuple[str, str, str], tmp_path: Path) -> None:
    written = {}
    for seed, (part, count) in enumerate({"train": 20, "val": 3, "test": 4}.items()):
        written[part] = write_tree(tmp_path / names[seed], {"dog": count, "cat": count + 1}, seed=seed)
    data = folder(tmp_path)
    assert data.classes == ["cat", "dog"]
    assert data.augment == "crop+flip"
    for part, files in written.items():
        split: Split = getattr(data, part)
        order = sorted(files)
        assert np.array_equal(split.decoded().permute(0, 2, 3, 1).numpy(), np.stack([files[path] for path in order]))
        assert [data.classes[label] for label in split.labels.tolist()] == [path.parent.name for path in order]


def test_image_folder_without_test_uses_val(tmp_path: Path) -> None:
    write_tree(tmp_path / "train", {"a": 30, "b": 30})
    held = write_tree(tmp_path / "val", {"a": 2, "b": 2}, seed=1)
    data = folder(tmp_path)
    assert np.array_equal(data.test.decoded().permute(0, 2, 3, 1).numpy(), np.stack([held[p] for p in sorted(held)]))
    assert (len(data.train), len(data.val)) == (54, 6)


def test_image_folder_of_classes_is_split_by_seed(tmp_path: Path) -> None:
    files = write_tree(tmp_path, {"train": 50, "car": 50})  # a class may be called train
    (tmp_path / ".cache").mkdir()
    (tmp_path / "train" / "notes.txt").write_text("no image")
    data = folder(tmp_path)
    assert data.classes == ["car", "train"]
    assert (len(data.train), len(data.val), len(data.test)) == (72, 8, 20)
    parts = torch.cat([part.decoded() for part in (data.train, data.val, data.test)]).permute(0, 2, 3, 1).numpy()
    assert sorted(map(bytes, parts)) == sorted(map(bytes, files.values()))


def test_images_are_resized_on_request(tmp_path: Path) -> None:
    write_tree(tmp_path / "train", {"a": 5, "b": 5}, size=(16, 16))
    Image.new("L", (40, 20), 77).save(tmp_path / "train" / "a" / "grey.png")
    data = folder(tmp_path, image_size=8)
    assert data.image_size == (8, 8)
    every = torch.cat([part.decoded() for part in (data.train, data.val, data.test)])
    assert (every == 77).all((1, 2, 3)).sum() == 1  # a uniform image stays so at any size
    assert load(DataConfig(image_size=16), seed=0).image_size == (16, 16)


def test_image_folder_mistakes(tmp_path: Path) -> None:
    def refused(root: Path, **settings: object) -> str:
        with pytest.raises(SlimError) as error:
            folder(root, **settings)
        assert "\n" not in str(error.value)
        return str(error.value)

    missing = tmp_path / "missing"
    assert str(missing) in refused(missing)
    assert "expected" in refused(missing)

    flat = tmp_path / "flat"
    files = sorted(write_tree(flat, {"a": 10, "b": 10}))
    Image.new("RGB", (7, 5)).save(files[3])
    assert f"{str(files[3])!r} is 7×5 pixels" in (message := refused(flat))
    assert "image_size" in message

    whole = files[0].read_bytes()
    for broken in (whole[: len(whole) // 2], b"no image at all", b""):
        files[0].write_bytes(broken)
        assert str(files[0]) in refused(flat, image_size=4)
    Image.fromarray(np.full((6, 6), 40000, np.uint16)).save(files[0])
    assert "8-bit" in refused(flat, image_size=4)

    (flat / "c").mkdir()
    assert str(flat / "c") in refused(flat)

    split = tmp_path / "split"
    write_tree(split / "train", {"a": 3, "b": 3})
    write_tree(split / "test", {"a": 3})
    assert "no class folder 'b'" in refused(split)
    write_tree(split / "test" / "deeper", {"b": 3})
    assert "class folder" in refused(split)

    write_tree(tmp_path / "one", {"a": 3})
    assert "1 class" in refused(tmp_path / "one")


def test_cifar10_jpeg_against_torchvision(tmp_path: Path) -> None:
    if "SLIM_DATA" not in os.environ:
        pytest.skip("set SLIM_DATA to the folder that holds cifar10-jpeg.tar.gz")
    from torchvision.datasets import ImageFolder

    with tarfile.open(Path(os.environ["SLIM_DATA"]) / "cifar10-jpeg.tar.gz") as tar:
        for member in tar:
            if member.name.startswith("cifar10-jpeg/train"):
                break  # the test images come first, and reading on takes a while
            if member.isfile() and (number := int(Path(member.name).stem)) < 60:
                if number >= 20:
                    member.name = member.name.replace("/test/", "/train/")
                tar.extract(member, tmp_path, filter="data")
    root = tmp_path / "cifar10-jpeg"
    data = folder(root, val_fraction=0.0)
    assert len(data.classes) == 10
    assert data.image_size == (32, 32)
    for part in ("train", "test"):
        reference = ImageFolder(root / part)
        split: Split = getattr(data, part)
        assert len(reference) == len(split) == (400 if part == "train" else 200)
        assert data.classes == reference.classes
        assert split.labels.tolist() == reference.targets
        expected = np.stack([np.asarray(image) for image, _ in reference])
        assert np.array_equal(split.decoded().permute(0, 2, 3, 1).numpy(), expected)


@pytest.mark.parametrize(("free", "workers"), [(1e8, 1), (2e9, 2), (1e12, 8)])
def test_no_more_images_are_decoded_at_once_than_memory_holds_if_all_are_large(
    free: float, workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of 67 million pixels takes 7 bytes for each while it is decoded: 0.47 GB of the half of what is free."""
    write_tree(tmp_path, {"a": 10, "b": 10})
    monkeypatch.setattr("slim.images.free_memory", lambda: free)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    train = folder(tmp_path, storage="stream").train.images
    assert isinstance(train, ImageFiles) and train.workers == workers
