"""The stages of a run: which file is the newest, and what stage each follows from."""

import os
from pathlib import Path

import pytest

from slim.errors import SlimError
from slim.workbench.config import RunConfig
from slim.workbench.run import Run
from slim.workbench.run.stages import newest
from slim.workbench.train import Snapshots


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


def test_states_of_a_training_that_is_done_go_and_others_stay(tmp_path: Path) -> None:
    run, settings = Run(tmp_path, RunConfig()), RunConfig()
    run.records.enter("sparse", {"params": 1}, settings)
    for stage in ("sparse", "finetuned"):
        Snapshots(run.records.states(stage), {}).save(1, {})
    run.path("sparse").touch()  # saved after its last state, and the process was killed before that went
    with run.lock():
        pass
    assert not run.records.states("sparse").exists() and run.records.states("finetuned").exists()
    Snapshots(run.records.states("sparse"), {}).save(1, {})  # of the same training, begun anew
    with run.lock():
        pass
    assert run.records.states("sparse").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *[("summary.json", content) for content in (b"{", b"[]", b'{"sparse": 3}', b"\xff", b"[" * 100_000)],
        *[("metrics.jsonl", content) for content in (b"3", b"{}", b'{"stage": 3, "epoch": 1}', b'{"stage": "sparse"}')],
        ("metrics.jsonl", b'{"stage": "sparse", "epoch": "x"}'),
    ],
)
def test_broken_records_are_one_line(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SlimError, match=f"{name}' is (broken|not text)"):
        Run(tmp_path, RunConfig()).records.check()
