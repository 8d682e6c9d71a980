"""Augmentation of whole batches, against brute force and torchvision's on one image at a time."""

import numpy as np
import pytest
import torch
from data_sets import dataset_of, random_images

from slim.errors import SlimError
from slim.images import ImageSpec
from slim.workbench.config import DataConfig
from slim.workbench.data import Dataset, Split, batches, load
from slim.workbench.data.policies import Policy


@pytest.mark.parametrize(
    ("augment", "shape", "pad"),
    [("crop", (1, 8, 8), 1), ("crop+flip", (3, 32, 32), 4), ("crop+flip", (2, 17, 24), (2, 3))],
)
def test_augmented_images_are_shifted_originals(
    augment: str, shape: tuple[int, int, int], pad: int | tuple[int, int]
) -> None:
    pads = (pad, pad) if isinstance(pad, int) else pad
    size = 800
    data = dataset_of(random_images(size, *shape).clamp_(min=1), augment)  # black is padding alone
    shifts = []
    for images, labels in batches(data.train, data, 100, shuffle_seed=0, augment=True):
        for image, label in zip(images.round().to(torch.uint8).numpy(), labels.tolist()):
            original = data.train.decoded()[label].numpy()
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
    for moves, most in ((rows, pads[0]), (columns, pads[1])):  # every shift is as likely as the others
        counts = np.bincount(moves + most, minlength=2 * most + 1)
        assert len(counts) == 2 * most + 1
        assert counts / size == pytest.approx(np.full(len(counts), 1 / len(counts)), abs=0.06)


@pytest.mark.parametrize(("setting", "expected"), [("auto", "crop"), ("none", "none"), ("crop+flip", "crop+flip")])
def test_augmentation_of_digits_is_a_setting(setting: str, expected: str) -> None:
    assert load(DataConfig(augment=setting), seed=0).augment == expected


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
