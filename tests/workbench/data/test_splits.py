"""Splits and statistics, against numpy."""

import numpy as np
import pytest
import torch
from data_sets import random_images
from sklearn.datasets import load_digits

from slim.workbench.config import DataConfig
from slim.workbench.data import Split, load, statistics
from slim.workbench.data.splits import hold_out


def test_digits_splits_hold_every_digit_once() -> None:
    data = load(DataConfig(), seed=0)
    assert data.train.decoded().dtype == torch.uint8
    assert data.train.labels.dtype == torch.int64
    assert (data.channels, data.image_size, data.classes) == (1, (8, 8), list("0123456789"))
    assert len(data.test) == pytest.approx(0.2 * 1797, abs=1)
    assert len(data.val) == pytest.approx(0.1 * 0.8 * 1797, abs=1)

    def rows(images: np.ndarray, labels: np.ndarray) -> list[tuple[int, ...]]:
        return sorted(map(tuple, np.column_stack([images.reshape(len(images), -1), labels]).tolist()))

    source = load_digits()
    parts = (data.train, data.val, data.test)
    ours = rows(
        torch.cat([part.decoded() for part in parts]).numpy(), torch.cat([part.labels for part in parts]).numpy()
    )
    assert ours == rows(np.rint(source.data * 255 / 16).astype(int), source.target)


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.5])
def test_splits_are_stratified_and_follow_the_seed(fraction: float) -> None:
    sizes = [3, 50, 7, 101, 1]
    labels = torch.repeat_interleave(torch.arange(5), torch.tensor(sizes))
    numbered = Split(torch.arange(len(labels)), labels)
    shares = []
    for seed in range(300):
        kept, held = hold_out(numbered, fraction, torch.Generator().manual_seed(seed))
        assert sorted(kept.decoded().tolist() + held.decoded().tolist()) == list(range(len(labels)))
        counts = torch.bincount(held.labels, minlength=5).numpy()
        assert (np.abs(counts - fraction * np.array(sizes)) < 1 + 1e-9).all()
        assert abs(len(held) - fraction * len(labels)) < 1 + 1e-9
        assert torch.equal(labels[held.decoded()], held.labels)
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
    values = data.train.decoded().numpy() / 255
    assert data.spec.mean == pytest.approx([values.mean()], rel=1e-12)
    assert data.spec.std == pytest.approx([values.std()], rel=1e-10)


def test_a_constant_channel_normalises_to_finite_values() -> None:
    mean, std = statistics(torch.full((10, 1, 4, 4), 255, dtype=torch.uint8))
    assert mean == (1.0,)
    assert std == pytest.approx([1 / 255])
