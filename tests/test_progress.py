"""A bar for what takes long: in a terminal, one at a time."""

import contextlib
import io
import sys
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

import slim
from slim import progress as module
from slim.progress import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def in_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Put a terminal in the place of stderr, for a test's own part: pytest sets stderr before it. No patience."""
    monkeypatch.setattr(module, "PATIENCE", -1.0)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    return terminal


def test_what_is_part_of_work_with_a_bar_gets_none_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = in_terminal(monkeypatch)
    with progress("the whole", 2) as whole:
        whole(1)
        with progress("a part", 1) as part:
            part(1)
    with progress("what follows", 1) as after:
        after(1)
    assert "the whole" in stderr.getvalue() and "what follows" in stderr.getvalue()
    assert "a part" not in stderr.getvalue()


def test_no_terminal_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", -1.0)
    file = io.StringIO()
    monkeypatch.setattr(sys, "stderr", file)
    with progress("work", 1) as advance:
        advance(1)
    assert file.getvalue() == ""


def test_a_bar_that_begins_in_silence_leaves_what_follows_to_be_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    in_terminal(monkeypatch)
    monkeypatch.setattr(module, "PATIENCE", 0.1)
    with progress("exporting", 1) as advance, contextlib.redirect_stdout(io.StringIO()):
        time.sleep(0.2)
        advance(1)
    print("the plan")
    assert capsys.readouterr().out == "the plan\n"


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten()).eval()


IMAGES = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("work", "shown"),
    [
        (lambda net: slim.plan(net, IMAGES[:1], slim.Flops(0.5), score=slim.Residual(IMAGES)), "ranking channels"),
        (lambda net: slim.plan(net, IMAGES[:1], slim.Flops(0.5), score=slim.Taylor(IMAGES)), "ranking channels"),
        (lambda net: slim.sensitivity(net, IMAGES[:1], images=IMAGES), "measuring sensitivity"),
        (
            lambda net: slim.plan(net, IMAGES[:1], slim.Loss(0.5, lambda n: float(np.tanh(n(IMAGES).std().item())))),
            "looking for the largest cut",
        ),
        (
            lambda net: slim.benchmark({"net": net}, IMAGES[:1], batch_sizes=[1], runs=1, warmup=0),
            "timing side by side",
        ),
    ],
    ids=["residual", "taylor", "sensitivity", "loss", "benchmark"],
)
def test_long_work_shows_a_bar(
    work: Callable[[nn.Module], object], shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stderr = in_terminal(monkeypatch)
    work(network())
    assert shown in stderr.getvalue()
