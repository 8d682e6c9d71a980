"""torchvision's sets, from files in their formats."""

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from data_sets import random_images

from slim.errors import SlimError
from slim.workbench.config import DataConfig
from slim.workbench.data import load


def write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header + array.tobytes())


def write_mnist(root: Path, name: str = "MNIST", parts: tuple[str, ...] = ("train", "t10k")) -> dict:
    rng = np.random.default_rng(0)
    written = {}
    for part in parts:
        images = rng.integers(256, size=(60 if part == "train" else 20, 28, 28), dtype=np.uint8)
        labels = (np.arange(len(images)) % 10).astype(np.uint8)
        write_idx(root / name / "raw" / f"{part}-images-idx3-ubyte", images)
        write_idx(root / name / "raw" / f"{part}-labels-idx1-ubyte", labels)
        written[part] = images, labels
    return written


@pytest.mark.parametrize(
    ("name", "augment", "first"), [("MNIST", "crop", "0"), ("FashionMNIST", "crop+flip", "T-shirt/top")]
)
def test_mnist_files(tmp_path: Path, name: str, augment: str, first: str) -> None:
    images, labels = write_mnist(tmp_path, name)["t10k"]
    data = load(DataConfig(name=name.lower(), root=str(tmp_path)), seed=0)
    assert np.array_equal(data.test.decoded()[:, 0].numpy(), images)
    assert np.array_equal(data.test.labels.numpy(), labels)
    assert (len(data.train), len(data.val), data.image_size) == (54, 6, (28, 28))
    assert (data.augment, data.classes[0]) == (augment, first)


def test_incomplete_or_broken_mnist_is_an_error_that_names_the_download(tmp_path: Path) -> None:
    cfg = DataConfig(name="mnist", root=str(tmp_path))
    write_mnist(tmp_path, parts=("t10k",))
    with pytest.raises(SlimError, match=r"training and test files.*download: true") as error:
        load(cfg, seed=0)
    assert str(tmp_path) in str(error.value)
    write_mnist(tmp_path)
    file = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(SlimError, match="missing or broken"):
        load(cfg, seed=0)


def test_cifar_and_svhn_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from scipy.io import savemat
    from torchvision.datasets import CIFAR10, SVHN

    images = random_images(30, 3, 32, 32)
    labels = [number % 10 for number in range(30)]

    base = tmp_path / CIFAR10.base_folder
    base.mkdir()
    for name, _ in CIFAR10.train_list + CIFAR10.test_list:
        (base / name).write_bytes(pickle.dumps({"data": images.flatten(1).numpy(), "labels": labels}))
    meta = pickle.dumps({"label_names": [f"class {number}" for number in range(10)]})
    (base / "batches.meta").write_bytes(meta)
    with pytest.raises(SlimError, match="CIFAR10"):  # the check sums aren't those of the real files
        load(DataConfig(name="cifar10", root=str(tmp_path)), seed=0)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    data = load(DataConfig(name="cifar10", root=str(tmp_path)), seed=0)
    assert torch.equal(data.test.decoded(), images)
    assert data.test.labels.tolist() == labels
    assert (len(data.train), len(data.val), data.classes[3], data.augment) == (
        135,
        15,
        "class 3",
        "crop+flip",
    )

    for part in ("train", "test"):
        buffer = io.BytesIO()
        numbers = np.array([label or 10 for label in labels])[:, None]  # SVHN writes the digit 0 as 10
        savemat(buffer, {"X": images.permute(2, 3, 1, 0).numpy(), "y": numbers})
        (tmp_path / SVHN.split_list[part][1]).write_bytes(buffer.getvalue())
    monkeypatch.setattr("torchvision.datasets.svhn.check_integrity", lambda *_: True)
    data = load(DataConfig(name="svhn", root=str(tmp_path)), seed=0)
    assert torch.equal(data.test.decoded(), images)
    assert data.test.labels.tolist() == labels
    assert (data.augment, data.classes) == ("crop", list("0123456789"))


def test_an_unknown_data_set_names_the_nearest() -> None:
    with pytest.raises(SlimError, match="did you mean 'cifar10'"):
        load(DataConfig(name="cifar_10"), seed=0)
