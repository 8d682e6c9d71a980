"""Batches: in order, shuffled, entered anywhere, shared among processes; against numpy and brute force."""

from typing import Any

import numpy as np
import pytest
import torch
from data_sets import dataset_of, random_images

from slim.images import ImageSpec
from slim.workbench.config import DataConfig
from slim.workbench.data import Dataset, Split, batches, load


def test_batches_in_order_are_the_normalised_images() -> None:
    data = load(DataConfig(), seed=0)
    got = list(batches(data.val, data, 50))
    assert [len(labels) for _, labels in got] == [50, 50, len(data.val) - 100]
    assert data.spec.mean and data.spec.std
    (mean,), (std,) = data.spec.mean, data.spec.std
    expected = (data.val.decoded().numpy() / 255 - mean) / std
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
    assert torch.equal(torch.cat([images for images, _ in got]), data.train.decoded()[seen].float())
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

    def taken(**which: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return list(batches(data.train, data, 5, shuffle_seed=seed, augment=seed is not None, **which))

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


@pytest.mark.parametrize("augment", ["none", "crop+flip", "crop+flip+cutout"])
def test_an_epoch_can_be_entered_at_any_step(augment: str) -> None:
    data = dataset_of(random_images(103, 3, 8, 8), augment)
    for seed in (None, 4):
        settings: dict[str, Any] = {"shuffle_seed": seed, "augment": seed is not None}
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
        settings: dict[str, Any] = {"shuffle_seed": seed, "augment": seed is not None, "start": 1}
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
