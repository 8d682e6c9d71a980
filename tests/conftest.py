"""What every test file needs: one thread, so that small tests don't fight over cores, and the digits to train on."""

from dataclasses import replace

import pytest
import torch

from slim.workbench.config import DataConfig
from slim.workbench.data import Dataset, load

torch.set_num_threads(1)

MADE_ONCE = ("chained", "whole_run")  # fixtures of half a minute and more, of several files
LONGEST = (*MADE_ONCE, "test_pruning", "test_onnx_pruned", "test_paths", "test_planning", "test_resume", "test_passes")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give tests that share such a fixture, or a file, to one of the two processes: what they share is made once. The
    longest come first, as neither process should wait for the other at the end."""
    for item in items:
        item.add_marker(pytest.mark.xdist_group(_group(item)))
    items.sort(key=lambda item: _group(item) not in LONGEST)


def _group(item: pytest.Item) -> str:
    used = getattr(item, "fixturenames", [])
    return next((name for name in MADE_ONCE if name in used), item.path.stem)


@pytest.fixture(scope="session")
def all_digits() -> Dataset:
    """UCI digits, split by seed 0."""
    return load(DataConfig(), seed=0)


@pytest.fixture(scope="session")
def digits(all_digits: Dataset) -> Dataset:
    """The first 512 of their training images, for a training of seconds."""
    return replace(all_digits, train=all_digits.train[:512])
