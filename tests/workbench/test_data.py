"""Datasets and batches, against numpy, brute force and the files that the tests write themselves."""

import io
import math
import os
import pickle
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from sklearn.datasets import load_digits

from slim.errors import SlimError
from slim.images import ImageSpec
from slim.workbench.config import DataConfig
from slim.workbench.data import Dataset, Split, batches, load, statistics
from slim.workbench.data.files import WORTHWHILE, ImageFiles
from slim.workbench.data.policies import Policy
from slim.workbench.data.splits import hold_out


def dataset_of(images: torch.Tensor, augment: str = "none") -> Dataset:
    """A data set whose normalised images are the grey levels themselves: mean 0, deviation 1/255."""
    split = Split(images, torch.arange(len(images)))
    channels = images.shape[1]
    spec = ImageSpec(tuple(images.shape[1:]), ("a",), (0.0,) * channels, (1 / 255,) * channels)
    return Dataset("made up", spec, split, split, split, augment)


def random_images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def write_tree(root: Path, counts: dict[str, int], size: tuple[int, int] = (6, 6), seed: int = 0) -> dict:
    """PNG files root/CLASS/N.png; returns {file: RGB array}."""
    rng = np.random.default_rng(seed)
    written = {}
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            path = root / name / f"{number:03}.png"
            written[path] = rng.integers(256, size=(size[1], size[0], 3), dtype=np.uint8)
            Image.fromarray(written[path]).save(path)
    return written


def folder(root: Path, **settings: object) -> Dataset:
    return load(DataConfig(name="imagefolder", root=str(root), **settings), seed=0)  # type: ignore[arg-type]


# Splits and statistics


def test_digits_splits_hold_every_digit_once() -> None:
    data = load(DataConfig(), seed=0)
    assert data.train.images.dtype == torch.uint8
    assert data.train.labels.dtype == torch.int64
    assert (data.channels, data.image_size, data.classes) == (1, (8, 8), list("0123456789"))
    assert len(data.test) == pytest.approx(0.2 * 1797, abs=1)
    assert len(data.val) == pytest.approx(0.1 * 0.8 * 1797, abs=1)

    def rows(images: np.ndarray, labels: np.ndarray) -> list[tuple[int, ...]]:
        return sorted(map(tuple, np.column_stack([images.reshape(len(images), -1), labels]).tolist()))

    source = load_digits()
    parts = (data.train, data.val, data.test)
    ours = rows(torch.cat([part.images for part in parts]).numpy(), torch.cat([part.labels for part in parts]).numpy())
    assert ours == rows(np.rint(source.data * 255 / 16).astype(int), source.target)


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.5])
def test_splits_are_stratified_and_follow_the_seed(fraction: float) -> None:
    sizes = [3, 50, 7, 101, 1]
    labels = torch.repeat_interleave(torch.arange(5), torch.tensor(sizes))
    numbered = Split(torch.arange(len(labels)), labels)
    shares = []
    for seed in range(300):
        kept, held = hold_out(numbered, fraction, torch.Generator().manual_seed(seed))
        assert sorted(kept.images.tolist() + held.images.tolist()) == list(range(len(labels)))
        counts = torch.bincount(held.labels, minlength=5).numpy()
        assert (np.abs(counts - fraction * np.array(sizes)) < 1 + 1e-9).all()
        assert abs(len(held) - fraction * len(labels)) < 1 + 1e-9
        assert torch.equal(labels[held.images], held.labels)
        shares.append(counts / sizes)
    # no class is favoured, however small: each gives its share on average
    assert np.mean(shares, axis=0) == pytest.approx([fraction] * 5, abs=0.1)
    assert np.mean(shares, axis=0)[[1, 3]] == pytest.approx([fraction] * 2, abs=0.01)


def test_the_seed_decides_the_split() -> None:
    first, again, other = (load(DataConfig(), seed=seed) for seed in (3, 3, 4))
    for part in ("train", "val", "test"):
        assert torch.equal(getattr(first, part).images, getattr(again, part).images)
        assert not torch.equal(getattr(first, part).images[:100], getattr(other, part).images[:100])


def test_no_validation_images_on_request() -> None:
    data = load(DataConfig(val_fraction=0.0), seed=0)
    assert len(data.val) == 0
    assert len(data.train) + len(data.test) == 1797


def test_statistics_against_numpy() -> None:
    images = random_images(5000, 3, 5, 4)  # more than one chunk
    images[:, 1] //= 3
    mean, std = statistics(images)
    values = images.numpy() / 255
    np.testing.assert_allclose(mean, values.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(std, values.std((0, 2, 3)), rtol=1e-10)


def test_statistics_come_from_the_training_images_alone() -> None:
    data = load(DataConfig(), seed=1)
    values = data.train.images.numpy() / 255
    assert data.spec.mean == pytest.approx([values.mean()], rel=1e-12)
    assert data.spec.std == pytest.approx([values.std()], rel=1e-10)


def test_a_constant_channel_normalises_to_finite_values() -> None:
    mean, std = statistics(torch.full((10, 1, 4, 4), 255, dtype=torch.uint8))
    assert mean == (1.0,)
    assert std == pytest.approx([1 / 255])


# Batches


def test_batches_in_order_are_the_normalised_images() -> None:
    data = load(DataConfig(), seed=0)
    got = list(batches(data.val, data, 50))
    assert [len(labels) for _, labels in got] == [50, 50, len(data.val) - 100]
    expected = (data.val.images.numpy() / 255 - data.spec.mean[0]) / data.spec.std[0]
    images = torch.cat([images for images, _ in got])
    assert images.dtype == torch.float32
    np.testing.assert_allclose(images.numpy(), expected, atol=2e-6)
    assert torch.equal(torch.cat([labels for _, labels in got]), data.val.labels)


def test_channels_are_normalised_each_by_its_own() -> None:
    images = random_images(9, 3, 4, 4)
    split = Split(images, torch.zeros(9, dtype=torch.int64))
    data = Dataset("made up", ImageSpec(mean=(0.1, 0.5, 0.7), std=(0.2, 0.3, 0.4)), split, split, split)
    mean, std = np.array(data.spec.mean)[:, None, None], np.array(data.spec.std)[:, None, None]
    ((got, _),) = batches(split, data, 9)
    np.testing.assert_allclose(got.numpy(), (images.numpy() / 255 - mean) / std, atol=2e-6)


def test_shuffled_batches_have_one_size_and_no_image_twice() -> None:
    data = dataset_of(random_images(103, 1, 4, 4))
    got = list(batches(data.train, data, 20, shuffle_seed=5))
    assert [len(labels) for _, labels in got] == [20] * 5
    seen = torch.cat([labels for _, labels in got])  # the labels number the images
    assert len(set(seen.tolist())) == 100
    assert seen.tolist() != sorted(seen.tolist())
    assert torch.equal(torch.cat([images for images, _ in got]), data.train.images[seen].float())
    ((_, few),) = batches(data.train[:7], data, 20, shuffle_seed=5)
    assert sorted(few.tolist()) == list(range(7))


def test_shuffling_follows_its_seed() -> None:
    data = dataset_of(random_images(40, 3, 8, 8), "crop+flip")

    def epoch(seed: int) -> torch.Tensor:
        return torch.cat([images for images, _ in batches(data.train, data, 8, shuffle_seed=seed, augment=True)])

    state = torch.get_rng_state()
    assert torch.equal(epoch(1), epoch(1))
    assert not torch.equal(epoch(1), epoch(2))
    assert torch.equal(torch.get_rng_state(), state)  # nothing is drawn from torch's global generator


@pytest.mark.parametrize("seed", [None, 3])
def test_parts_of_batches_and_of_epochs_are_those_of_the_whole(seed: int | None) -> None:
    data = dataset_of(random_images(23, 3, 16, 16), "crop+flip")

    def taken(**which: object) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return list(batches(data.train, data, 5, shuffle_seed=seed, augment=seed is not None, **which))  # type: ignore[arg-type]

    whole = taken()
    for (images, labels), (later_images, later_labels) in zip(whole[2:], taken(start=2), strict=True):
        assert torch.equal(images, later_images) and torch.equal(labels, later_labels)
    shards = [taken(shard=(i, 3), start=1) for i in range(3)]
    for number, (images, labels) in enumerate(whole[1:]):
        for i in range(3):
            assert torch.equal(shards[i][number][0], images[i::3])
            assert torch.equal(shards[i][number][1], labels[i::3])


def test_augmentation_without_a_seed_is_refused() -> None:
    data = dataset_of(random_images(4, 1, 8, 8), "crop")
    with pytest.raises(ValueError, match="shuffle_seed"):
        next(batches(data.train, data, 2, augment=True))


@pytest.mark.parametrize(
    ("augment", "shape", "pad"),
    [("crop", (1, 8, 8), 1), ("crop+flip", (3, 32, 32), 4), ("crop+flip", (2, 17, 24), (2, 3))],
)
def test_augmented_images_are_shifted_originals(augment: str, shape: tuple, pad: int | tuple) -> None:
    pads = (pad, pad) if isinstance(pad, int) else pad
    size = 800
    data = dataset_of(random_images(size, *shape).clamp_(min=1), augment)  # black is padding alone
    shifts = []
    for images, labels in batches(data.train, data, 100, shuffle_seed=0, augment=True):
        for image, label in zip(images.round().to(torch.uint8).numpy(), labels.tolist()):
            original = data.train.images[label].numpy()
            found = []
            for flipped in (False, True):
                source = original[:, :, ::-1] if flipped else original
                for dy in range(-pads[0], pads[0] + 1):
                    for dx in range(-pads[1], pads[1] + 1):
                        moved = np.zeros_like(source)  # moved[y, x] = source[y + dy, x + dx]
                        height, width = source.shape[1:]
                        moved[:, max(0, -dy) : height - max(0, dy), max(0, -dx) : width - max(0, dx)] = source[
                            :, max(0, dy) : height - max(0, -dy), max(0, dx) : width - max(0, -dx)
                        ]
                        if np.array_equal(moved, image):
                            found.append((flipped, dy, dx))
                if found:
                    break
            assert len(found) == 1, f"image {label} is no shifted original"
            shifts.append(found[0])
    flips, rows, columns = np.array(shifts).T
    assert flips.mean() == pytest.approx(0.5 if augment == "crop+flip" else 0.0, abs=0.06)
    for moves, pad in ((rows, pads[0]), (columns, pads[1])):  # every shift is as likely as the others
        counts = np.bincount(moves + pad, minlength=2 * pad + 1)
        assert len(counts) == 2 * pad + 1
        assert counts / size == pytest.approx(np.full(len(counts), 1 / len(counts)), abs=0.06)


@pytest.mark.parametrize(("setting", "expected"), [("auto", "crop"), ("none", "none"), ("crop+flip", "crop+flip")])
def test_augmentation_of_digits_is_a_setting(setting: str, expected: str) -> None:
    assert load(DataConfig(augment=setting), seed=0).augment == expected  # type: ignore[arg-type]


# Image folders


def test_image_folder_with_splits(tmp_path: Path) -> None:
    written = {}
    for seed, (part, count) in enumerate({"train": 20, "val": 3, "test": 4}.items()):
        written[part] = write_tree(tmp_path / part, {"dog": count, "cat": count + 1}, seed=seed)
    data = folder(tmp_path)
    assert data.classes == ["cat", "dog"]
    assert data.augment == "crop+flip"
    for part, files in written.items():
        split = getattr(data, part)
        order = sorted(files)
        assert np.array_equal(split.images.permute(0, 2, 3, 1).numpy(), np.stack([files[path] for path in order]))
        assert [data.classes[label] for label in split.labels.tolist()] == [path.parent.name for path in order]


def test_image_folder_without_test_uses_val(tmp_path: Path) -> None:
    write_tree(tmp_path / "train", {"a": 30, "b": 30})
    held = write_tree(tmp_path / "val", {"a": 2, "b": 2}, seed=1)
    data = folder(tmp_path)
    assert np.array_equal(data.test.images.permute(0, 2, 3, 1).numpy(), np.stack([held[p] for p in sorted(held)]))
    assert (len(data.train), len(data.val)) == (54, 6)


def test_image_folder_of_classes_is_split_by_seed(tmp_path: Path) -> None:
    files = write_tree(tmp_path, {"train": 50, "car": 50})  # a class may be called train
    (tmp_path / ".cache").mkdir()
    (tmp_path / "train" / "notes.txt").write_text("no image")
    data = folder(tmp_path)
    assert data.classes == ["car", "train"]
    assert (len(data.train), len(data.val), len(data.test)) == (72, 8, 20)
    parts = torch.cat([part.images for part in (data.train, data.val, data.test)]).permute(0, 2, 3, 1).numpy()
    assert sorted(map(bytes, parts)) == sorted(map(bytes, files.values()))


def test_images_are_resized_on_request(tmp_path: Path) -> None:
    write_tree(tmp_path / "train", {"a": 5, "b": 5}, size=(16, 16))
    Image.new("L", (40, 20), 77).save(tmp_path / "train" / "a" / "grey.png")
    data = folder(tmp_path, image_size=8)
    assert data.image_size == (8, 8)
    every = torch.cat([part.images for part in (data.train, data.val, data.test)])
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
        split = getattr(data, part)
        assert len(reference) == len(split) == (400 if part == "train" else 200)
        assert data.classes == reference.classes
        assert split.labels.tolist() == reference.targets
        expected = np.stack([np.asarray(image) for image, _ in reference])
        assert np.array_equal(split.images.permute(0, 2, 3, 1).numpy(), expected)


# torchvision's sets, from files in their formats


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
    assert np.array_equal(data.test.images[:, 0].numpy(), images)
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
    assert torch.equal(data.test.images, images)
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
    assert torch.equal(data.test.images, images)
    assert data.test.labels.tolist() == labels
    assert (data.augment, data.classes) == ("crop", list("0123456789"))


def test_an_unknown_data_set_names_the_nearest() -> None:
    with pytest.raises(SlimError, match="did you mean 'cifar10'"):
        load(DataConfig(name="cifar_10"), seed=0)


# Any position, any number of processes


@pytest.mark.parametrize("augment", ["none", "crop+flip", "crop+flip+cutout"])
def test_an_epoch_can_be_entered_at_any_step(augment: str) -> None:
    data = dataset_of(random_images(103, 3, 8, 8), augment)
    for seed in (None, 4):
        settings = {"shuffle_seed": seed, "augment": seed is not None}
        whole = list(batches(data.train, data, 20, **settings))
        for start in range(len(whole) + 1):
            rest = list(batches(data.train, data, 20, start=start, **settings))
            assert len(rest) == len(whole) - start
            for ours, theirs in zip(rest, whole[start:]):
                assert all(torch.equal(a, b) for a, b in zip(ours, theirs))


@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_the_shares_of_all_processes_are_the_batches_of_one(world_size: int) -> None:
    data = dataset_of(random_images(103, 3, 8, 8), "crop+flip+cutout")
    for seed in (None, 4):
        settings = {"shuffle_seed": seed, "augment": seed is not None, "start": 1}
        whole = list(batches(data.train, data, 20, **settings))
        shares = [
            list(batches(data.train, data, 20, shard=(rank, world_size), **settings)) for rank in range(world_size)
        ]
        for step, batch in enumerate(whole):
            parts = [share[step] for share in shares if step < len(share)]
            for mine, theirs in zip(zip(*parts), batch):
                together = torch.empty_like(theirs)
                for rank, part in enumerate(mine):
                    together[rank::world_size] = part
                assert torch.equal(together, theirs)
    with pytest.raises(ValueError, match="at least one for each of 8"):
        next(batches(data.train[:7], data, 20, shuffle_seed=1, shard=(0, 8)))


def test_cutout_sets_a_square_around_a_uniform_centre_to_the_mean() -> None:
    height, width, size = 8, 12, 4000
    images = torch.full((size, 2, height, width), 200, dtype=torch.uint8)
    split = Split(images, torch.arange(size))
    data = Dataset("made up", ImageSpec(mean=(0.1, 0.2), std=(0.5, 0.25)), split, split, split, "cutout")
    ((got, _),) = batches(split, data, size, shuffle_seed=3, augment=True)
    value = (200 / 255 - np.array(data.spec.mean)) / np.array(data.spec.std)
    cut = (got == 0).numpy()
    np.testing.assert_allclose(
        np.where(cut, value[:, None, None], got.numpy()), value[None, :, None, None] + 0 * cut, rtol=1e-5
    )
    assert (cut[:, 0] == cut[:, 1]).all()
    # brute force: how often each pixel is covered by a 4×4 square whose centre (the third of its pixels) is uniform
    expected = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            expected[max(0, y - 2) : y + 2, max(0, x - 2) : x + 2] += 1 / (height * width)
    assert cut[:, 0].mean(0) == pytest.approx(expected, abs=0.03)
    assert {tuple(sorted((mask.any(1).sum(), mask.any(0).sum()))) for mask in cut[:, 0]} <= {
        (a, b) for a in (2, 3, 4) for b in (2, 3, 4) if a <= b
    }


# RandAugment and TrivialAugment, against torchvision's on one image at a time


@pytest.mark.parametrize("policy", ["randaugment", "trivialaugment"])
def test_policies_do_what_torchvision_does_to_one_image(policy: str) -> None:
    from torchvision.transforms import v2

    theirs = v2.RandAugment() if policy == "randaugment" else v2.TrivialAugmentWide()
    height, width, size = 16, 12, 300
    images = random_images(size, 3, height, width)
    ours = Policy(policy, size, (height, width), torch.Generator().manual_seed(1))
    names = [name.lower().replace("_", "") for name in ours.ranges]
    space = {name.lower().replace("color", "colour"): name for name in theirs._AUGMENTATION_SPACE}
    assert sorted(names) == sorted(space)
    got = torch.cat([ours(images[here], here) for here in (slice(0, 7), slice(7, size))])

    for image, result, operations, levels, signs in zip(images, got, ours.operation, ours.level, ours.sign):
        for operation, level, sign in zip(operations.tolist(), levels.tolist(), signs.tolist()):
            name = space[names[operation]]
            magnitudes, signed = theirs._AUGMENTATION_SPACE[name]
            magnitudes = magnitudes(31, height, width)
            value = 0.0 if magnitudes is None else float(magnitudes[level])
            value = -value if signed and sign else value
            arguments = {"interpolation": theirs.interpolation, "fill": theirs._fill}
            image = theirs._apply_image_or_video_transform(image, name, value, **arguments)
        assert torch.equal(image, result)
    if policy == "randaugment":
        assert theirs.num_ops == ours.operation.shape[1]
        assert (ours.level == theirs.magnitude).all()
    else:
        assert torch.bincount(ours.level[:, 0], minlength=31).min() > 0
    assert torch.bincount(ours.operation.flatten(), minlength=14).min() > 0


def test_an_unknown_augmentation_names_the_nearest() -> None:
    with pytest.raises(SlimError, match="unknown augmentation 'croop': did you mean 'crop'"):
        load(DataConfig(augment="croop+flip"), seed=0)


# Streams and the cache


def test_streamed_batches_are_those_from_memory_bit_for_bit(tmp_path: Path) -> None:
    write_tree(tmp_path, {"a": 430, "b": 330}, size=(9, 8))
    memory = folder(tmp_path, storage="host", cache=False, augment="crop+flip+randaugment+cutout")
    streamed = folder(tmp_path, storage="stream", workers=2, augment="crop+flip+randaugment+cutout")
    assert len(streamed.train) > WORTHWHILE  # so that processes do the work
    assert streamed.spec == memory.spec
    assert streamed.train.images.shape == memory.train.images.shape
    assert not list(tmp_path.glob(".slim*"))
    state = torch.get_rng_state()
    for settings in (
        {},
        {"shuffle_seed": 1, "augment": True},
        {"shuffle_seed": 1, "augment": True, "start": 3, "shard": (1, 2)},
    ):
        pairs = zip(batches(memory.train, memory, 64, **settings), batches(streamed.train, streamed, 64, **settings))
        count = 0
        for ours, theirs in pairs:
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs))
            count += 1
        assert count >= 5
    assert torch.equal(torch.get_rng_state(), state)


def test_a_mistake_in_a_worker_is_one_line(tmp_path: Path) -> None:
    files = sorted(write_tree(tmp_path, {"a": 400, "b": 400}))
    data = folder(tmp_path, storage="stream", workers=2)
    for file in files[1:]:
        file.write_bytes(b"no image")
    with pytest.raises(SlimError, match="not an image that Pillow can read") as error:
        list(batches(data.train, data, 64, shuffle_seed=0))
    assert "\n" not in str(error.value)


def test_only_folders_are_streamed() -> None:
    with pytest.raises(SlimError, match=r"data\.storage stream is for image folders, digits comes in one piece"):
        load(DataConfig(storage="stream"), seed=0)


def test_storage_follows_what_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tree(tmp_path, {"a": 20, "b": 20})
    size = 40 * 3 * 6 * 6
    for free, in_memory in ((4 * size, True), (4 * size - 1, False)):
        monkeypatch.setattr("slim.workbench.data.folder._free_memory", lambda free=free: free)
        assert isinstance(folder(tmp_path).train.images, torch.Tensor) == in_memory
    assert isinstance(folder(tmp_path, storage="host").train.images, torch.Tensor)
    assert not isinstance(folder(tmp_path, storage="stream").train.images, torch.Tensor)

    data = folder(tmp_path, storage="host")
    needed = data.train.nbytes + data.val.nbytes
    assert needed == data.train.images.numel() + data.val.images.numel()
    for storage, free, moves in (
        ("auto", 2 * needed, True),
        ("auto", 2 * needed - 2, False),
        ("device", 0, True),
        ("host", math.inf, False),
    ):
        monkeypatch.setattr("slim.workbench.data.splits._free_on", lambda device, free=free: free)
        placed = replace(data, storage=storage).to("meta")
        assert (placed.train.images.device.type, placed.train.labels.device.type) == (
            "meta" if moves else "cpu",
            "meta",
        )


def test_the_cache_saves_decoding_and_follows_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = write_tree(tmp_path, {"a": 30, "b": 30})
    decoded = []
    original = ImageFiles.decoded
    monkeypatch.setattr(ImageFiles, "decoded", lambda self: decoded.append(len(self)) or original(self))

    def everything() -> list[bytes]:
        data = folder(tmp_path)
        splits = (data.train, data.val, data.test)
        return sorted(map(bytes, torch.cat([s.images for s in splits]).permute(0, 2, 3, 1).numpy()))

    first = everything()
    assert first == sorted(map(bytes, files.values()))
    assert (everything(), decoded) == (first, [60])

    changed, removed, *_ = sorted(files)
    Image.fromarray(np.zeros((6, 6, 3), np.uint8)).save(changed)
    removed.unlink()
    expected = sorted([bytes(108), *(bytes(files[path]) for path in files if path not in (changed, removed))])
    assert (everything(), decoded) == (expected, [60, 59])
    assert folder(tmp_path, image_size=3).image_size == (3, 3)  # another size has a file of its own
    assert (everything(), decoded) == (expected, [60, 59, 59])

    [cache] = tmp_path.glob(".slim-*as-they-are*")
    cache.write_bytes(cache.read_bytes()[:-100])  # cut short: not believed
    assert (everything(), decoded) == (expected, [60, 59, 59, 59])
    assert folder(tmp_path, cache=False).train.images.shape[1:] == (3, 6, 6)
    assert decoded[4:] == [59]


def test_a_cache_of_photographs_that_were_not_turned_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = write_tree(tmp_path, {"a": 10, "b": 10})
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # its first row is the right-hand side
    for path, pixels in files.items():
        Image.fromarray(pixels).save(path, exif=exif)

    def everything() -> list[bytes]:
        data = folder(tmp_path, storage="host")
        splits = (data.train, data.val, data.test)
        return sorted(map(bytes, torch.cat([s.images for s in splits]).permute(0, 2, 3, 1).numpy()))

    with monkeypatch.context() as earlier:  # slim before it turned them
        earlier.setattr("slim.images.upright", lambda picture: picture)
        earlier.setattr("slim.workbench.data.folder.FORMAT", "1")
        assert everything() == sorted(map(bytes, files.values()))
    turned = sorted(np.rot90(pixels, -1).tobytes() for pixels in files.values())
    assert everything() == turned == everything()


def test_a_cache_that_can_not_be_written_is_no_error(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_tree(tmp_path, {"a": 20, "b": 20})
    (tmp_path / ".slim-6x6-as-they-are.safetensors" / "in the way").mkdir(parents=True)
    assert len(folder(tmp_path).train) > 20
    assert "can't keep the decoded images" in capsys.readouterr().err


def test_training_from_a_stream_gives_the_same_weights(tmp_path: Path) -> None:
    from slim.workbench.config import ComputeConfig, OptimConfig, SparsityConfig
    from slim.workbench.models import build
    from slim.workbench.train import evaluate, fit

    on_cpu = ComputeConfig(device="cpu")
    write_tree(tmp_path, {"a": 40, "b": 40}, size=(8, 8))
    results = []
    for storage in ("host", "stream"):
        data = folder(tmp_path, storage=storage, workers=1)
        torch.manual_seed(0)
        model = build("slim:mlp", num_classes=2, in_channels=3, image_size=8)
        sparsity = SparsityConfig(penalty="group_lasso")  # which looks at images before the training
        records = fit(model, replace(data, batch_size=16), OptimConfig(epochs=2), compute=on_cpu, sparsity=sparsity)
        scores = evaluate(model, data.test, data, compute=on_cpu)
        results.append(
            (records[-1]["train_loss"], scores["loss"], torch.cat([p.flatten() for p in model.parameters()]))
        )
    assert results[0][:2] == results[1][:2]
    assert torch.equal(results[0][2], results[1][2])
