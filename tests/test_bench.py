"""Timings against a clock that is known, and against work that is known; what must be refused."""

import gc
import io
import json
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console

from slim import bench
from slim.bench import benchmark
from slim.errors import SlimError


def conv_file(path: Path, channels: int, shape: Sequence[int | str] = ("batch", 3, 32, 32)) -> Path:
    """Three 3×3 convolutions, built by hand: between `channels` and `channels` lies nearly all of the
    work."""
    random = np.random.default_rng(0)
    sizes = [shape[1], channels, channels, channels]
    weights = [
        numpy_helper.from_array(random.standard_normal((out, into, 3, 3)).astype(np.float32), f"w{i}")
        for i, (into, out) in enumerate(pairwise(sizes))
    ]
    names = ["images", "a", "b", "logits"]
    nodes = [
        helper.make_node("Conv", [names[i], f"w{i}"], [names[i + 1]], pads=[1, 1, 1, 1], name=f"conv{i}")
        for i in range(3)
    ]
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, list(shape))
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "convolutions", [images], [logits], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bench")
    return {"wide": conv_file(folder / "wide.onnx", 64), "thin": conv_file(folder / "thin.onnx", 16)}


class Stage:
    """Sessions that take known times on a clock of their own, and write down who ran when on what."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, milliseconds: dict[str, Sequence[float]]) -> None:
        self.now = 0
        self.log: list[str] = []
        self.shapes: list[tuple[int, ...]] = []
        self.collecting: set[bool] = set()
        self.milliseconds = milliseconds
        monkeypatch.setattr(bench, "open_session", self.open)
        monkeypatch.setattr(time, "perf_counter_ns", lambda: self.now)

    def open(self, name: str, *_: object) -> object:
        pending = list(self.milliseconds[name])

        def run(_: None, feed: dict[str, np.ndarray]) -> None:
            self.log.append(name)
            self.shapes.append(feed["images"].shape)
            self.collecting.add(gc.isenabled())
            self.now += round(pending[0] * 1_000_000)
            pending.append(pending.pop(0))

        images = SimpleNamespace(name="images", type="tensor(float)", shape=["batch", 3, 4, 5])
        return SimpleNamespace(run=run, get_inputs=lambda: [images], get_providers=lambda: ["CPUExecutionProvider"])


def test_statistics_against_known_times(monkeypatch: pytest.MonkeyPatch) -> None:
    # Warm-up runs take 900 ms and mustn't count; then A takes 1 to 101 ms, and B always half of A
    times = [900.0, 900.0, *range(1, 102)]
    Stage(monkeypatch, {"a": times, "b": [t / 2 for t in times]})
    report = benchmark({"A": "a", "B": "b"}, batch_sizes=[4], runs=101, warmup=2)
    a, b = report.rows
    assert (a.model, a.batch_size, b.model, b.batch_size) == ("A", 4, "B", 4)
    # 1 to 101: the p-th percentile of 101 even steps is p + 1
    assert (a.median_ms, a.p10_ms, a.p90_ms, a.p99_ms) == pytest.approx((51, 11, 91, 100))
    assert (b.median_ms, b.p10_ms, b.p90_ms, b.p99_ms) == pytest.approx((25.5, 5.5, 45.5, 50))
    assert (a.speedup, a.speedup_p10, a.speedup_p90) == pytest.approx((1, 1, 1))
    assert (b.speedup, b.speedup_p10, b.speedup_p90) == pytest.approx((2, 2, 2))
    assert a.throughput == pytest.approx(4 / 0.051) and b.throughput == pytest.approx(4 / 0.0255)
    assert report.row("B", 4) is b


def test_spread_of_the_speedup(monkeypatch: pytest.MonkeyPatch) -> None:
    """A is steady at 12 ms and B takes 1 to 11 ms in turn: the ratios are 12 / 11 to 12 / 1."""
    Stage(monkeypatch, {"a": [12], "b": range(1, 12)})
    row = benchmark({"A": "a", "B": "b"}, batch_sizes=[1], runs=11, warmup=0).row("B", 1)
    assert (row.speedup, row.speedup_p10, row.speedup_p90) == pytest.approx((12 / 6, 12 / 10, 12 / 2))


def test_runs_alternate_with_the_collector_off(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch, {"a": [1], "b": [1], "c": [1]})
    assert gc.isenabled()
    report = benchmark({"A": "a", "B": "b", "C": "c"}, batch_sizes=[1, 8], runs=3, warmup=2)
    assert stage.log == ["a", "b", "c"] * (2 + 3) * 2
    assert stage.shapes == [(1, 3, 4, 5)] * 15 + [(8, 3, 4, 5)] * 15
    assert stage.collecting == {False} and gc.isenabled()
    assert [(row.model, row.batch_size) for row in report.rows] == [(m, n) for n in (1, 8) for m in "ABC"]


def test_collector_is_left_as_it_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    Stage(monkeypatch, {"a": [1]})
    gc.disable()
    try:
        benchmark({"A": "a"}, runs=1, warmup=0)
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_sixteen_times_the_work_is_slower(files: dict[str, Path]) -> None:
    report = benchmark(files, batch_sizes=[1, 4], threads=1, provider="cpu", runs=15, warmup=3)
    for batch_size in (1, 4):
        wide, thin = report.row("wide", batch_size), report.row("thin", batch_size)
        assert wide.p10_ms > thin.median_ms > 0
        assert thin.speedup > 2 and thin.speedup_p10 <= thin.speedup_p90
    assert report.row("wide", 4).p10_ms > 2 * report.row("wide", 1).p10_ms


def test_report_says_how_it_was_measured(files: dict[str, Path]) -> None:
    report = benchmark(files, batch_sizes=(1, 2), threads=1, runs=3, warmup=1)
    written = json.loads(json.dumps(report.to_dict()))
    assert written["provider"] in onnxruntime.get_available_providers()
    assert written["onnxruntime"] == onnxruntime.__version__
    assert (written["threads"], written["runs"], written["warmup"]) == (1, 3, 1)
    assert "core" in written["machine"]
    assert [row["median_ms"] for row in written["rows"]] == [row.median_ms for row in report.rows]

    console = Console(width=80, file=io.StringIO())
    console.print(report.table())
    text = console.file.getvalue()
    for row in report.rows:
        assert f"{row.median_ms:.3f}" in text and f"{row.p99_ms:.3f}" in text and f"{row.speedup:.2f}×" in text
    for part in ("wide", "thin", report.provider, "1 thread", "3 runs", onnxruntime.__version__):
        assert part in text


def test_bad_settings_get_one_line(files: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("not ONNX")
    fixed = conv_file(tmp_path / "fixed.onnx", 2, (4, 3, 8, 8))
    open_size = conv_file(tmp_path / "open.onnx", 2, ("batch", 3, "height", 8))
    available = [name.removesuffix("ExecutionProvider").lower() for name in onnxruntime.get_available_providers()]
    cases: list[tuple[dict, dict, str]] = [
        ({}, {}, "expected at least one"),
        (files, {"batch_sizes": []}, "batch_sizes is empty"),
        (files, {"batch_sizes": [1, 0]}, "batch size 0: expected at least 1"),
        (files, {"runs": 0}, "runs 0: expected at least 1"),
        (files, {"warmup": -1}, "warmup -1: expected at least 0"),
        (files, {"threads": -1}, "threads -1: expected 0"),
        (files, {"provider": "cudda"}, f"'cudda'.* expected auto, {', '.join(sorted(available))}"),
        ({"gone": tmp_path / "gone.onnx"}, {}, "no file '.*gone.onnx'"),
        ({"text": tmp_path / "text.onnx"}, {}, "text.onnx' is not an ONNX file"),
        ({"fixed": fixed}, {}, "batch size 1: 'fixed' has the fixed batch size 4"),
        ({"open": open_size}, {}, "'images' of 'open' has shape .*'height'"),
    ]
    for models, settings, message in cases:
        with pytest.raises(SlimError, match=message) as caught:
            benchmark(models, **settings)
        assert "\n" not in str(caught.value)
    assert benchmark({"fixed": fixed}, batch_sizes=[4], runs=1, warmup=0).row("fixed", 4).median_ms > 0
