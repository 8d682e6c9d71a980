"""The stages of a run: which file is the newest, and what stage each follows from."""

import os
from pathlib import Path

import pytest

from slim.errors import SlimError
from slim.workbench.run.stages import newest


def test_newest_is_by_time(tmp_path: Path) -> None:
    for age, run in enumerate(["b", "c", "a"]):
        path = tmp_path / run / "sparse.safetensors"
        path.parent.mkdir()
        path.touch()
        os.utime(path, ns=(10**18 - age, 10**18 - age))
    assert newest("sparse", tmp_path).parent.name == "b"
    assert newest("sparse", tmp_path, run="a").parent.name == "a"


def test_a_missing_stage_names_its_command(tmp_path: Path) -> None:
    with pytest.raises(SlimError, match="slim-train"):
        newest("sparse", tmp_path)
