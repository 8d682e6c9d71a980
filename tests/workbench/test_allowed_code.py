"""Code runs only where the user's own command line or config names it: no file decides what is imported."""

import sys
from pathlib import Path

import pytest
from commands import Command


def test_code_runs_only_where_it_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command, mistake: Command
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    (tmp_path / "my_nets.py").write_text(
        "from torch import nn\n"
        "def small(num_classes, in_channels):\n"
        "    layers = [nn.Conv2d(in_channels, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten()]\n"
        "    return nn.Sequential(*layers, nn.Linear(8 * 36, num_classes))\n"
    )
    command("train", "--model.arch", "my_nets:small", "--epochs", "1")
    assert "allow_code" in mistake("prune")
    assert "next: slim-finetune" in command("prune", "--allow-code", "my_nets:small")
