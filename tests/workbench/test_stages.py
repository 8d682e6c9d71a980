"""The stages of a run: which file is the newest, and what stage each follows from."""

import io
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from slim.deploy.guard import Compared
from slim.errors import SlimError
from slim.workbench.config import RunConfig
from slim.workbench.run import Run
from slim.workbench.run.exporting import show_slower
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
    for stage in ("baseline", "sparse"):
        run.records.enter(stage, {"params": 1}, settings)
    for stage in ("baseline", "sparse", "finetuned"):
        Snapshots(run.records.states(stage), {}).save(1, {})
    for stage in ("baseline", "sparse"):
        run.path(stage).touch()  # saved after its last state, and the process was killed before that went
    next(run.records.states("baseline").iterdir()).unlink()  # or after, and its folder is still there
    with run.lock():
        pass
    assert [run.records.states(stage).exists() for stage in ("baseline", "sparse", "finetuned")] == [False, False, True]
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


def test_a_benchmark_lies_with_the_result_that_it_is_of(tmp_path: Path) -> None:
    """With the ONNX file, or with the network itself where no exporter takes it."""
    settings = RunConfig()
    size, threads = settings.bench.batch_sizes[0], settings.bench.threads[0]

    def row(model: str, ms: float) -> Any:
        return SimpleNamespace(
            model=model, batch_size=size, threads=threads, median_ms=ms, speedup=4.0 / ms, differs=True
        )

    for stages, place in ((["baseline", "finetuned"], "finetuned"), (["baseline", "finetuned", "onnx"], "onnx")):
        records = Run(tmp_path / place, settings).records
        records.folder.mkdir()
        for stage in stages:
            records.enter(stage, {"params": 1}, settings)
        made: Any = SimpleNamespace(rows=[row("baseline", 4.0), row(place, 2.0)], to_dict=lambda: {"rows": [1]})
        records.enter_latency(made, settings)
        summary = records.summary()
        assert [stage for stage in stages if "bench" in summary[stage]] == [place]
        assert summary["finetuned"]["speedup"] == 2.0 and summary["baseline"]["latency_ms"] == 4.0


@pytest.mark.parametrize(
    ("low", "said"),
    [
        (1.2, ["faster than the unpruned network in all 2 settings, 1.80× or more"]),
        (
            0.9,
            [
                "faster than the unpruned network in all 2 settings, 1.80× or more",
                "but the benchmark shows no speed-up at batch 32, 1 thread: measure again on a quiet machine, "
                "with slim-bench",
            ],
        ),
    ],
)
def test_a_benchmark_that_contradicts_is_named(low: float, said: list[str], tmp_path: Path) -> None:
    settings = [Compared(f"batch {size}", 1.8, 1.7, 1.9) for size in (1, 32)]
    rows = [
        {"model": model, "batch_size": size, "threads": 1, "speedup_low": 1.5 if size == 1 else low}
        for size in (1, 32)
        for model in ("baseline", "onnx")
    ]
    record = {"settings": [each.to_dict() for each in settings], "bench": {"rows": rows}}
    (tmp_path / "summary.json").write_text(json.dumps({"onnx": record}))
    console = Console(file=io.StringIO(), width=200)
    show_slower(Run(tmp_path, RunConfig(), console))
    assert isinstance(console.file, io.StringIO) and console.file.getvalue().splitlines() == said
