"""Processes that read data: what they may have in hand, and what is said when they die, stop or can't hand over."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from data_sets import folder, write_tree
from torch.utils.data import DataLoader, Dataset

from slim.errors import SlimError
from slim.workbench.data import batches, workers
from slim.workbench.data.workers import PREFETCHED, Workers, prepare_worker, watched


class Unhandable(torch.Tensor):
    """What can't be handed over, like a tensor without room in /dev/shm."""

    def __reduce_ex__(self, _: Any) -> Any:
        raise RuntimeError("unable to allocate shared memory(shm): No space left on device (28)")


class Odd(Dataset):
    """Samples of which the fourth is made by a process that has trouble."""

    def __init__(self, trouble: str) -> None:
        self.trouble = trouble

    def __len__(self) -> int:
        return 8

    def __getitem__(self, number: int) -> Any:
        if number != 3:
            return torch.zeros(2)
        match self.trouble:
            case "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            case "stopped":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "shared memory":
                return torch.zeros(2).as_subclass(Unhandable)
            case "mistake":
                return dict[str, int]()["label"]
            case "vanished":
                return Path("vanished.jpg").read_bytes()
        raise AssertionError("a process that goes on")


@pytest.mark.parametrize(
    ("trouble", "told"),
    [
        ("killed", r"a process that reads the data died.*data\.workers"),
        ("stopped", r"gave no batch for data\.timeout seconds"),
        ("shared memory", r"a process that reads the data died.*/dev/shm"),
        ("mistake", r"reading mine failed \(KeyError: 'label'\)"),
    ],
)
def test_trouble_of_a_worker_is_one_line_and_no_hang(
    trouble: str, told: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.5)
    loader = DataLoader(
        Odd(trouble),
        batch_size=None,
        num_workers=1,
        timeout=2,
        worker_init_fn=prepare_worker,
        generator=torch.Generator(),
    )
    start = time.monotonic()
    with pytest.raises(SlimError, match=told) as caught:
        list(watched(loader, "mine"))
    assert "\n" not in str(caught.value) and time.monotonic() - start < 30
    assert "Traceback" not in capfd.readouterr().err


def test_what_vanished_is_named() -> None:
    loader = DataLoader(Odd("vanished"), batch_size=None, num_workers=1)
    with pytest.raises(OSError, match=r"vanished\.jpg"):
        list(watched(loader, "mine"))


def test_a_generator_goes_on_after_one_was_taken() -> None:
    def numbers() -> Iterator[int]:
        yield from range(5)

    given = numbers()
    assert next(watched(given, "mine")) == 0
    assert list(watched(given, "mine")) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("memory", "expected"),
    [(1e12, Workers(8, PREFETCHED)), (4 * 160e6, Workers(8, 2)), (4 * 40e6, Workers(4, 1)), (1, Workers(1, 1))],
)
def test_batches_in_hand_follow_the_memory_there_is(
    memory: float, expected: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "free_memory", lambda: memory)
    assert Workers.fitting(8, 10_000_000) == expected
    assert Workers.fitting(0, 10_000_000).count == 0


@pytest.mark.parametrize("forked", [True, False])
def test_batches_of_workers_are_those_of_one_process(
    forked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In memory that they share, of which slots are used again, or through a pipe."""
    write_tree(tmp_path, {"a": 430, "b": 330}, size=(9, 8))
    alone, several = (folder(tmp_path, storage="stream", workers=count) for count in (0, 1))
    if not forked:
        monkeypatch.setattr(Workers, "shared", lambda self, shape: None)
    monkeypatch.setattr(workers, "PREFETCHED", 2)
    found = [[images for images, _ in batches(data.train, data, 50, shuffle_seed=0)] for data in (alone, several)]
    assert len(found[0]) > 5 and all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_more_than_all_memory_is_refused_before_it_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tree(tmp_path, {"a": 20, "b": 20})
    monkeypatch.setattr("slim.workbench.data.folder.free_memory", lambda: 40 * 3 * 6 * 6 - 1.0)
    with pytest.raises(SlimError, match=r"data\.storage host.*data\.storage stream"):
        folder(tmp_path, storage="host")


def test_a_larger_image_than_allowed_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    write_tree(tmp_path, {"a": 400, "b": 400}, size=(6, 6))
    with pytest.raises(SlimError, match=r"6×6 pixels: expected at most 35 \(max_pixels\)"):
        folder(tmp_path, max_pixels=35)
    assert len(folder(tmp_path, max_pixels=36).train)


def test_a_pipe_among_the_images_is_not_waited_for(tmp_path: Path) -> None:
    first = sorted(write_tree(tmp_path, {"a": 3, "b": 3}))[0]
    first.unlink()
    os.mkfifo(first)
    with pytest.raises(SlimError, match="it is a pipe or a device, expected a file"):
        folder(tmp_path)
