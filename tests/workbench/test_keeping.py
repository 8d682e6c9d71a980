"""When fine-tuning has made a network worse: by more than validation images vary, whatever the metric."""

import math
import statistics
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from slim.workbench import data, train
from slim.workbench.config import ComputeConfig, DataConfig
from slim.workbench.run.keeping import is_worse, standard_error
from slim.workbench.tasks import Classification, MultiLabel, Regression, Segmentation, Task

CPU = ComputeConfig(device="cpu")


def of_images(values: Tensor) -> list[Tensor]:
    """Tallies of a metric that is a mean, each image a part."""
    return [torch.stack([value, torch.ones(())]) for value in values]


def right(count: int, of: int = 143) -> Tensor:
    return (torch.arange(of) < count).float()


def error(of: int = 143) -> Tensor:
    return torch.rand(of, generator=torch.Generator().manual_seed(1))


NOISE = torch.randn(143, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(
    ("task", "before", "after", "worse"),
    [
        (Classification(), right(143), right(142), False),  # a single image of 143
        (Classification(), right(140), right(143), False),
        (Classification(), right(140), right(140), False),
        (Classification(), right(143), right(130), True),
        (Classification(), right(143), right(14), True),
        (Classification(), right(134), right(130).flip(0), False),  # 13 lost, 9 others gained
        (Regression(), error(), error() + 0.01, True),  # less is better; on every image a little worse
        (Regression(), error(), error() - 0.01, False),
        (Regression(), error(), error() + 0.5 * NOISE - 0.5 * NOISE.mean() + 0.01, False),  # lost in what images vary
        (Regression(), error(), error() + 0.5 * NOISE - 0.5 * NOISE.mean() + 0.5, True),
    ],
)
def test_worse_is_what_lies_beyond_the_spread(task: Task, before: Tensor, after: Tensor, worse: bool) -> None:
    assert is_worse(task, of_images(before), of_images(after)) == worse


def test_a_single_part_shows_nothing() -> None:
    whole = [torch.tensor([140.0, 143.0])], [torch.tensor([100.0, 143.0])]
    assert standard_error(Classification(), *whole) == math.inf and not is_worse(Classification(), *whole)


@pytest.mark.parametrize("task", [Classification(), Regression()])
def test_of_means_it_is_the_standard_error_of_the_paired_difference(task: Task) -> None:
    before, after = torch.rand(2, 20, generator=torch.Generator().manual_seed(3))
    found = standard_error(task, of_images(before), of_images(after))
    assert found == pytest.approx(statistics.stdev((after - before).tolist()) / math.sqrt(20), rel=1e-5)


@pytest.mark.parametrize("task", [MultiLabel(3), Segmentation(3)])
def test_of_other_metrics_it_is_what_they_vary_by(task: Task) -> None:
    """F1 and mean IoU are no means over images: 150 draws of 30 images from the same source are the truth."""
    generator, differences, estimates = torch.Generator().manual_seed(4), [], []
    for _ in range(150):
        truth = torch.randint(3, (30, 4, 4), generator=generator)
        hard = torch.rand(30, 1, 1, generator=generator)  # images, of which both networks find some harder
        parts: list[list[Tensor]] = [[], []]
        for network, odds in enumerate((0.9, 0.8)):
            sure = torch.rand(30, 4, 4, generator=generator) < odds * hard**0.3
            guess = torch.randint(3, (30, 4, 4), generator=generator)
            scores = nn.functional.one_hot(torch.where(sure, truth, guess), 3).float()
            for image in range(30):
                of_one = scores[image : image + 1], truth[image : image + 1]
                if isinstance(task, MultiLabel):
                    of_one = 2 * of_one[0].reshape(-1, 3) - 1, nn.functional.one_hot(of_one[1].flatten(), 3)
                parts[network].append(task.tally(*of_one))
        values = [task.value(torch.stack(tallies).sum(0)) for tallies in parts]
        differences.append(values[1] - values[0])
        estimates.append(standard_error(task, *parts))
    assert statistics.mean(estimates) == pytest.approx(statistics.stdev(differences), rel=0.15)


class Stream:
    """Batches that don't say how many they are."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


@pytest.mark.parametrize(
    ("batches", "stream", "parts"),
    [([143], False, 20), ([64, 64, 15], False, 21), ([7] * 30, False, 30), ([40, 40], True, 2), ([3], False, 3)],
)
def test_parts_are_the_images_in_their_order(batches: list[int], stream: bool, parts: int) -> None:
    """Batches that are too few are cut: by a network that says what it is told, each part counts its own images."""
    total, generator = sum(batches), torch.Generator().manual_seed(5)
    errors = torch.rand(total, 1, generator=generator)
    given = list(zip(errors.split(batches), torch.zeros(total, 1).split(batches)))
    loaders, held_out = data.Loaders(given, task=Regression()), Stream(given) if stream else given
    found = train.tallies(nn.Identity(), held_out, loaders, 20, compute=CPU)
    counts = [int(part[1]) for part in found]
    assert len(found) == parts and sum(counts) == total
    expected = torch.stack([part.sum() for part in errors.split(counts)])
    assert torch.allclose(torch.stack([part[0] for part in found]), expected)


def test_together_they_are_the_metric() -> None:
    digits = data.load(DataConfig(), 0)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    found = train.tallies(network, digits.val, digits, 20, compute=CPU)
    assert len(found) == 18 and network.training  # of 8 images each
    assert digits.task.value(sum(found)) == train.evaluate(network, digits.val, digits, compute=CPU)["accuracy"]
