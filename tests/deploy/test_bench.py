"""Timings against a clock that is known, and against work that is known; what must be refused."""

import gc
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from torch import Tensor, nn

import slim
from slim import tables
from slim.deploy import load, timing
from slim.deploy.bench.benchmark import BATCH_SIZES, benchmark, short_names
from slim.deploy.bench.modules import TorchRunner
from slim.deploy.bench.result import BenchReport
from slim.deploy.bench.rows import BenchRow, cautions
from slim.deploy.bench.runners import FileRunner
from slim.deploy.load import OtherWork
from slim.deploy.onnx import file
from slim.deploy.onnx.session import bound_run
from slim.deploy.onnx.target import OnnxFile, OnnxRuntime
from slim.deploy.onnx.write import Metadata
from slim.errors import SlimError
from slim.workbench import config, models
from slim.workbench.report import page
from slim.workbench.report.collect import RunRecords
from slim.workbench.report.columns import headline
from slim.workbench.run import Run, measuring
from slim.workbench.run.records import Records


def conv_file(path: Path, channels: int, shape: Sequence[int | str] = ("batch", 3, 32, 32)) -> Path:
    """Three 3×3 convolutions, built by hand: between `channels` and `channels` lies nearly all of the
    work."""
    random = np.random.default_rng(0)
    sizes = [int(shape[1]), channels, channels, channels]
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
        monkeypatch.setattr(file, "open_session", self.open)
        monkeypatch.setattr(FileRunner, "file_size", 1234)
        monkeypatch.setattr(time, "perf_counter_ns", lambda: self.now)

    def open(self, path: Path, *_: object) -> object:
        name = path.stem
        pending = list(self.milliseconds[name])

        def run(_: None, feed: dict[str, np.ndarray]) -> None:
            self.log.append(name)
            self.shapes.append(feed["images"].shape)
            self.collecting.add(gc.isenabled())
            self.now += round(pending[0] * 1_000_000)
            pending.append(pending.pop(0))

        images = SimpleNamespace(name="images", type="tensor(float)", shape=["batch", 3, 4, 5])
        return SimpleNamespace(
            run=run,
            get_inputs=lambda: [images],
            get_providers=lambda: ["CPUExecutionProvider"],
            get_modelmeta=lambda: SimpleNamespace(custom_metadata_map={}),
        )


def test_statistics_against_known_times(monkeypatch: pytest.MonkeyPatch) -> None:
    # Warm-up runs take 900 ms and mustn't count; then A takes 1 to 101 ms, and B always half of A
    times = [900.0, 900.0, *range(1, 102)]
    Stage(monkeypatch, {"a": times, "b": [t / 2 for t in times]})
    report = benchmark({"A": "a.onnx", "B": "b.onnx"}, batch_sizes=[4], runs=101, warmup=2, memory=False)
    a, b = report.rows
    assert (a.model, a.batch_size, b.model, b.batch_size) == ("A", 4, "B", 4)
    # 1 to 101: the p-th percentile of 101 even steps is p + 1
    assert (a.median_ms, a.p10_ms, a.p90_ms, a.p99_ms) == pytest.approx((51, 11, 91, 100))
    assert (b.median_ms, b.p10_ms, b.p90_ms, b.p99_ms) == pytest.approx((25.5, 5.5, 45.5, 50))
    assert (a.speedup, a.speedup_low, a.speedup_high) == pytest.approx((1, 1, 1))
    assert (b.speedup, b.speedup_low, b.speedup_high) == pytest.approx((2, 2, 2))
    assert b.differs and not a.differs and b.file_size == 1234
    assert a.samples_ms == pytest.approx(range(1, 102))  # in the order of the runs
    assert a.throughput == pytest.approx(4 / 0.051) and b.throughput == pytest.approx(4 / 0.0255)
    assert report.row("B", 4) is b


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    """Log-normal times of known medians that share slow moments: of 95 % intervals, 95 % hold the true ratio."""
    random = np.random.default_rng(0)
    for ratio in (1.0, 1.1):
        held, excluded_one, widths = 0, 0, []
        for _ in range(80):
            machine = np.exp(0.3 * np.repeat(random.standard_normal(34), 3)[:100])  # slow for three rounds in a row
            first = ratio * machine * np.exp(0.1 * random.standard_normal(100))
            other = machine * np.exp(0.1 * random.standard_normal(100))
            low, high = timing.speedup_interval(first, other)
            held += low <= ratio <= high
            excluded_one += not low <= 1 <= high
            widths.append(high - low)
        assert 0.9 <= held / 80 <= 1
        assert excluded_one < 9 if ratio == 1 else excluded_one > 50
        assert np.median(widths) < 0.2


def test_samples_are_chosen_evenly() -> None:
    times = np.arange(100_000) / 7
    kept = timing.samples(times)
    assert len(kept) == 200 and kept == pytest.approx(np.linspace(0, times[-1], 200), abs=0.1)


def test_runs_alternate_with_the_collector_off(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch, {"a": [1], "b": [1], "c": [1]})
    assert gc.isenabled()
    report = benchmark(
        {"A": "a.onnx", "B": "b.onnx", "C": "c.onnx"}, batch_sizes=[1, 8], runs=58, warmup=2, memory=False
    )
    rounds = [tuple(stage.log[i : i + 3]) for i in range(0, 360, 3)]
    assert len(stage.log) == 360 and all(sorted(each) == ["a", "b", "c"] for each in rounds)
    assert len(set(rounds)) == 6  # every order comes, so that nobody always follows the same one
    assert stage.shapes == [(1, 3, 4, 5)] * 180 + [(8, 3, 4, 5)] * 180
    assert stage.collecting == {False} and gc.isenabled()
    assert [(row.model, row.batch_size) for row in report.rows] == [(m, n) for n in (1, 8) for m in "ABC"]


def test_collector_is_left_as_it_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    Stage(monkeypatch, {"a": [1]})
    gc.disable()
    try:
        benchmark({"A": "a.onnx"}, runs=1, warmup=0, memory=False)
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_sixteen_times_the_work_is_slower(files: dict[str, Path]) -> None:
    report = benchmark(files, batch_sizes=[1, 4], threads=1, provider="cpu", runs=15, warmup=3, memory=False)
    for batch_size in (1, 4):
        wide, thin = report.row("wide", batch_size), report.row("thin", batch_size)
        assert wide.p10_ms > thin.median_ms > 0
        assert thin.speedup is not None and thin.speedup_low is not None and thin.speedup_high is not None
        assert thin.speedup > 2 and 1 < thin.speedup_low <= thin.speedup <= thin.speedup_high and thin.differs
    assert report.row("wide", 4).p10_ms > 2 * report.row("wide", 1).p10_ms


def test_report_says_how_it_was_measured(files: dict[str, Path], tmp_path: Path) -> None:
    report = benchmark(files, batch_sizes=(1, 2), threads=1, runs=3, warmup=1, profile=2)
    written = json.loads(json.dumps(report.to_dict()))
    assert written["provider"] in onnxruntime.get_available_providers()
    assert written["onnxruntime"] == onnxruntime.__version__
    assert (written["threads"], written["runs"], written["warmup"]) == ([1], 3, 1)
    assert "core" in written["machine"]
    assert [row["median_ms"] for row in written["rows"]] == [row.median_ms for row in report.rows]

    assert json.loads(report.save(tmp_path / "new" / "bench.json").read_text()) == written
    for width in (80, 120):
        printed = io.StringIO()
        console = Console(width=width, file=printed)
        console.print(report.table())
        console.print(report.profile_table())
        text = printed.getvalue()
        assert all(len(line) <= width and "…" not in line for line in text.splitlines())
        for row in report.rows:
            shown = [tables.milliseconds(ms).removesuffix(" ms") for ms in (row.median_ms, row.p90_ms)]
            assert row.file_size is not None
            assert all(number in text for number in (*shown, f"{row.speedup:.2f}×"))
            assert width == 80 or f"{row.file_size / 1000:.3g}"[:3] in text
        for part in ("wide", "thin", report.provider, "1 thread", "3 runs", onnxruntime.__version__, "Conv"):
            assert part in text
    page = report.save_figure(tmp_path / "bench.html").read_text()
    assert "wide" in page and "batch of 2" in page and 'src="http' not in page
    boxes = report.figure().data
    assert [list(box.x) for box in boxes] == [row.samples_ms for row in report.rows]


def test_peak_memory_grows_with_the_batch(tmp_path: Path) -> None:
    """64 channels of 128×128 floats, in and out of each convolution: at least 8 MB more for each further image."""
    path = conv_file(tmp_path / "wide.onnx", 64, ("batch", 3, 128, 128))
    report = benchmark({"wide": path}, batch_sizes=[4, 1], threads=1, provider="cpu", runs=1, warmup=0)
    one, four = report.row("wide", 1).memory, report.row("wide", 4).memory
    assert one is not None and four is not None
    assert one > 8e6 and 3 * 8e6 < four - one < 3 * 50e6


def test_profile_finds_the_node_that_takes_the_time(tmp_path: Path) -> None:
    """Of three convolutions, the second reads and writes 64 channels; the others 3 or 4 on one side."""
    random = np.random.default_rng(0)
    sizes = [3, 64, 64, 4]
    weights = [
        numpy_helper.from_array(random.standard_normal((b, a, 3, 3)).astype(np.float32), f"w{i}")
        for i, (a, b) in enumerate(pairwise(sizes))
    ]
    names = ["images", "a", "b", "logits"]
    nodes = [helper.make_node("Conv", [names[i], f"w{i}"], [names[i + 1]], name=f"conv{i}") for i in range(3)]
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, 48, 48])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "convolutions", [images], [logits], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "a.onnx")
    report = benchmark({"a": tmp_path / "a.onnx"}, batch_sizes=[1], threads=1, runs=20, memory=False, profile=1)
    nodes_found = report.profiles["a"]
    assert nodes_found[0].node.startswith(("conv1", "b")) and nodes_found[0].operator == "Conv"
    assert nodes_found[0].share > 0.5 and sum(node.share for node in nodes_found) == pytest.approx(1)
    total = sum(node.ms for node in nodes_found)
    assert 0.1 * report.row("a", 1).median_ms < total < 10 * report.row("a", 1).median_ms


def test_bound_inputs_and_outputs_give_the_same(files: dict[str, Path]) -> None:
    """What a GPU would use, on the device that every machine has."""
    runner = FileRunner("wide", files["wide"], OnnxRuntime("cpu", 1))
    feed = runner.feed(2)
    bound: list[np.ndarray] = []
    assert isinstance(runner.opened, OnnxFile)
    session = runner.opened.session

    class Session:
        io_binding = staticmethod(session.io_binding)
        get_outputs = staticmethod(session.get_outputs)

        def run_with_iobinding(self, binding: onnxruntime.IOBinding) -> None:
            session.run_with_iobinding(binding)
            bound.append(binding.copy_outputs_to_cpu()[0])

    bound_run(Session(), feed, "cpu")()
    assert np.array_equal(bound[0], session.run(None, feed)[0])


@pytest.mark.parametrize("named", [False, True])
def test_a_network_with_several_inputs(named: bool) -> None:
    seen: list[list[int]] = []

    class Two(nn.Module):
        def forward(self, images: Tensor, more: Tensor) -> Tensor:
            seen.append([len(images), len(more)])
            return images.flatten(1) + more

    example: Any = (torch.randn(2, 1, 2, 2), torch.randn(2, 1))
    runner = TorchRunner(Two(), dict(zip(("images", "more"), example)) if named else example, threads=1)
    assert runner.shapes == [(1, 2, 2), (1,)]
    slim.benchmark({"two": runner}, batch_sizes=[3], runs=1, warmup=0, memory=False)
    assert set(map(tuple, seen)) == {(3, 3)}


def test_a_module_runs_in_pytorch(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Flatten())
    seen: list[tuple[int, ...]] = []

    def compile(given: nn.Module, **_: object) -> object:
        assert given is net

        def run(images: torch.Tensor) -> torch.Tensor:
            seen.append(tuple(images.shape))
            return net(images)

        return run

    monkeypatch.setattr(torch, "compile", compile)
    compiled = TorchRunner(net, (1, 8, 8), compiled=True, threads=1)
    both: dict[str, nn.Module | TorchRunner | Path] = {"eager": net, "compiled": compiled, "thin": files["thin"]}
    report = benchmark(both, torch.zeros(5, 1, 8, 8), batch_sizes=[2], threads=1, runs=4, warmup=1)
    assert [row.model for row in report.rows] == ["eager", "compiled", "thin"]
    assert seen == [(2, 1, 8, 8)] * 6  # once to compile, once to warm up, 4 times
    assert report.torch is not None and torch.__version__.startswith(report.torch)
    assert report.provider == "PyTorch CPU, CPUExecutionProvider"
    assert f"onnxruntime {report.onnxruntime}, torch {report.torch} on " in str(report)
    alone = benchmark({"eager": net}, torch.zeros(1, 1, 8, 8), batch_sizes=[1], runs=1, warmup=0, memory=False)
    assert "PyTorch CPU, " in str(alone) and "onnxruntime" not in str(alone)
    eager, compiled_row, thin = (row.memory for row in report.rows)
    assert eager and eager > 1e5 and thin and thin > 1e5
    assert compiled_row is None  # the compiler's would count
    with pytest.raises(SlimError, match="'eager' is a module: expected example_inputs"):
        benchmark(both)

    def no_compiler(images: torch.Tensor) -> None:
        raise RuntimeError("no C++ compiler\nand a page of advice")

    monkeypatch.setattr(torch, "compile", lambda net, **_: no_compiler)
    broken = TorchRunner(net, (1, 8, 8), compiled=True, file="net.safetensors")
    with pytest.raises(
        SlimError, match=r"can't compile net.safetensors here \(no C\+\+ compiler\); .*compiled false\)$"
    ):
        broken.prepare(2)


def test_a_checkpoint_runs_in_pytorch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    given: dict[str, Any] = {"num_classes": 10, "in_channels": 1}
    model, path = models.build("slim:vgg7", **given), tmp_path / "net.safetensors"
    slim.save(path, model, arch="slim:vgg7", arch_kwargs=given, images=slim.ImageSpec((1, 8, 8)))
    compiled: list[nn.Module] = []

    def compile(net: nn.Module, **_: object) -> nn.Module:
        compiled.append(net)
        return net

    monkeypatch.setattr(torch, "compile", compile)
    bench = config.BenchConfig(batch_sizes=[2], threads=[1], runs=1, warmup=0)
    report = measuring.bench_files(Run(tmp_path, config.RunConfig(bench=bench)), {"net": path})
    assert [row.model for row in report.rows] == ["net (eager)", "net (compiled)"]
    assert all(torch.equal(a, b) for a, b in zip(compiled[0].state_dict().values(), model.state_dict().values()))
    assert [row.file_size for row in report.rows] == [path.stat().st_size] * 2
    bench.compiled = False
    [row] = measuring.bench_files(Run(tmp_path, config.RunConfig(bench=bench)), {"net": path}).rows
    assert row.model == "net (eager)" and row.memory and row.memory > 1e5
    bench.image_size = 9
    with pytest.raises(SlimError, match=r"^image_size 9: 'net \(eager\)' takes 1×8×8 alone"):
        measuring.bench_files(Run(tmp_path, config.RunConfig(bench=bench)), {"net": path})
    slim.save(path, model, arch="slim:vgg7", arch_kwargs=given)
    with pytest.raises(SlimError, match=r"net\.safetensors doesn't say how large its images are"):
        measuring.bench_files(Run(tmp_path, config.RunConfig(bench=bench)), {"net": path})


def test_nothing_is_imported_from_the_working_folder(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child that measures memory finds no module where anybody may have put one."""
    for name in ("json", "pickle", "onnxruntime", "numpy", "torch"):
        (tmp_path / f"{name}.py").write_text(f"open('{name}.was.here', 'w')\nraise SystemExit(9)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])  # as in an interactive session
    networks: dict[str, nn.Module | Path] = {"file": files["thin"], "module": nn.Flatten()}
    report = benchmark(networks, torch.zeros(1, 3, 4, 4), batch_sizes=[1], threads=1, runs=1, warmup=0)
    assert all(row.memory for row in report.rows) and not list(tmp_path.glob("*.was.here"))


def test_memory_of_what_no_other_process_can_have_is_left_out() -> None:
    net: Any = nn.Flatten()
    net.hidden = lambda x: x
    [row] = benchmark({"net": net}, torch.zeros(1, 3, 4, 4), batch_sizes=[1], threads=1, runs=1, warmup=0).rows
    assert row.memory is None and row.median_ms > 0


def test_open_image_sizes_and_raw_images(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = onnx.load(conv_file(tmp_path / "open.onnx", 2, ("batch", 3, "height", "width")))
    onnx.helper.set_model_props(model, {"slim.input_shape": "[3, 9, 11]"})
    onnx.save(model, tmp_path / "open.onnx")
    feed = FileRunner("open", tmp_path / "open.onnx", OnnxRuntime("cpu", 1)).feed(4)
    assert {name: (array.shape, array.dtype) for name, array in feed.items()} == {"images": ((4, 3, 9, 11), np.float32)}
    feed = FileRunner("open", tmp_path / "open.onnx", OnnxRuntime("cpu", 1), image_size=20).feed(4)
    assert feed["images"].shape == (4, 3, 20, 20)
    settings: Metadata = {"mean": [0.5] * 3, "std": [0.5] * 3}
    slim.export_onnx(
        net, torch.zeros(1, 3, 9, 11), tmp_path / "raw.onnx", dynamic_size=True, preprocess=True, metadata=settings
    )
    feed = FileRunner("raw", tmp_path / "raw.onnx", OnnxRuntime("cpu", 1)).feed(4)
    assert feed["images"].shape == (4, 9, 11, 3) and feed["images"].dtype == np.uint8 and feed["images"].max() > 200


def test_names_tell_files_apart() -> None:
    named = short_names(["a/model.onnx", "b/model.onnx", "b/net.onnx", "a/model.onnx"])
    assert list(named) == ["a/model.onnx", "b/model.onnx", "b/net.onnx", "a/model.onnx (2)"]
    assert list(named.values()) == [Path(p) for p in ("a/model.onnx", "b/model.onnx", "b/net.onnx", "a/model.onnx")]
    assert list(short_names(["x/a.onnx", "y/b.onnx"])) == ["a.onnx", "b.onnx"]


def one_node(path: Path, shape: Sequence[int | str] | None, op: str = "Neg", *more: np.ndarray) -> Path:
    """A file of one operator, on an input of this shape (None: open altogether) and further constants."""
    given = helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)
    made = helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)
    constants = [numpy_helper.from_array(array, f"c{i}") for i, array in enumerate(more)]
    node = helper.make_node(op, ["images", *(constant.name for constant in constants)], ["logits"])
    graph = helper.make_graph([node], "one", [given], [made], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def test_what_does_not_run_gets_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    reshape = one_node(tmp_path / "reshape.onnx", ["batch", 3, 4, 4], "Reshape", np.array([1, 48]))
    small = one_node(
        tmp_path / "small.onnx", ["batch", 3, "h", "w"], "Conv", np.zeros((2, 3, 7, 7), np.float32)
    )  # 7×7 without padding
    scalar, unranked = one_node(tmp_path / "scalar.onnx", []), one_node(tmp_path / "unranked.onnx", None)
    net = nn.Conv2d(1, 2, 3)
    eager = TorchRunner(net, (3, 8, 8), file="n.safetensors")
    compiled = TorchRunner(net, (3, 8, 8), file="n.safetensors", compiled=True)
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (reshape, {}, r"^'reshape.onnx' doesn't run on images \[32, 3, 4, 4\]: expected a batch .* cannot be reshaped"),
        (small, {"image_size": 4}, r"^'small.onnx' doesn't run on images \[1, 3, 4, 4\]: expected .* image size"),
        (small, {"image_size": 4, "profile": 1}, r"^'small.onnx' doesn't run on images"),
        (scalar, {}, "^input 'images' of 'scalar.onnx' is a scalar, or .*: expected the batch"),
        (unranked, {}, "^input 'images' of 'unranked.onnx' is a scalar, or .*: expected the batch"),
        (compiled, {}, r"n.safetensors doesn't run on images \[1, 3, 8, 8\]: .*input_shape that fit"),
        (eager, {}, r"n.safetensors doesn't run on images \[1, 3, 8, 8\]"),
    ]
    for network, settings, message in cases:
        with pytest.raises(SlimError, match=message) as caught:
            benchmark({network.name: network}, runs=1, warmup=0, threads=1, memory=False, **settings)
        assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")  # onnxruntime itself has nothing to add


def test_fixed_batches_are_measured_at_their_own_size(tmp_path: Path) -> None:
    shapes: dict[str, Sequence[int | str]] = {"one": (1, 3, 8, 8), "four": (4, 3, 8, 8), "open": ("batch", 3, 8, 8)}
    files = {name: conv_file(tmp_path / f"{name}.onnx", 4, shape) for name, shape in shapes.items()}

    def measured(*names: str, **settings: Any) -> tuple[list[tuple[str, int, bool]], list[str]]:
        quick: dict[str, Any] = {"runs": 3, "warmup": 0, "threads": 1, "memory": False, "profile": 1}
        report = benchmark({name: files[name] for name in names}, **quick | settings)
        assert all(line in " ".join(str(report).split()) for line in report.notes)
        return [(row.model, row.batch_size, row.speedup is not None) for row in report.rows], report.notes

    assert config.BenchConfig().batch_sizes == list(BATCH_SIZES)
    assert measured("open") == ([("open", 1, True), ("open", 32, True)], [])
    rows, [note] = measured("one")
    assert rows == [("one", 1, True)] and note == "batch sizes are those that files have fixed (one: 1)"
    assert measured("one", batch_sizes=[1]) == (rows, [])
    assert measured("open", "four")[0] == [("open", 4, True), ("four", 4, True)]
    rows, notes = measured("one", "four", "open", memory=True)
    assert rows == [("one", 1, True), ("open", 1, True), ("four", 4, False), ("open", 4, False)]
    assert notes == [
        "batch sizes are those that files have fixed (one: 1, four: 4)",
        "no speed-up of four: its batch size isn't that of one",
    ]


def test_no_speedup_between_files_of_unlike_images(tmp_path: Path) -> None:
    files = {
        "large": conv_file(tmp_path / "large.onnx", 4, ("batch", 3, 8, 8)),
        "vector": one_node(tmp_path / "vector.onnx", ["batch", 1]),
        "thin": conv_file(tmp_path / "thin.onnx", 2, ("batch", 3, "h", "w")),
    }
    quick: dict[str, Any] = {"batch_sizes": [1], "runs": 3, "warmup": 0, "threads": 1, "memory": False}
    with pytest.raises(SlimError, match="image_size 8: 'vector' takes 1 alone"):
        benchmark(files, image_size=8, **quick)
    del files["vector"]
    assert benchmark(files, image_size=8, **quick).row("thin", 1).speedup  # 8×8, as the fixed one
    del files["thin"]
    files |= {"vector": tmp_path / "vector.onnx", "again": files["large"]}
    report = benchmark(files, **quick)
    assert [row.speedup is None for row in report.rows] == [False, True, False]
    vector = report.row("vector", 1)
    assert vector.median_ms > 0 and not vector.differs and vector.speedup_low is vector.speedup_high is None
    assert report.notes == ["no speed-up of vector: its input is 1, that of large 3×8×8"]
    assert json.loads(report.save(tmp_path / "b.json").read_text())["rows"][1]["speedup"] is None
    # and a run's records and page leave it out
    (tmp_path / "summary.json").write_text(json.dumps({name: {"speedup": 9.0} for name in files}))
    Records(tmp_path).enter_latency(report, config.RunConfig(bench=config.BenchConfig(batch_sizes=[1], threads=[1])))
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["vector"] == {"latency_ms": vector.median_ms} and summary["large"]["speedup"] == 1
    record = {"params": 1, "flops": 1, "bench": report.to_dict()}
    shown = page.html([RunRecords(tmp_path, summary={"onnx": record})]).partition("Side by side")[2]
    assert shown.partition("</table>")[0].count("×") == 2
    assert str(report).count("×") == 2 + 2  # speed-ups, and the shape
    assert [box.name for box in report.figure().data][1] == "vector"


def test_raw_images_are_like_others(tmp_path: Path) -> None:
    """Bytes with channels last hold the same image as floats with channels first."""
    net, x = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten()), torch.zeros(1, 3, 9, 11)
    settings: Metadata = {"mean": [0.5] * 3, "std": [0.5] * 3}
    slim.export_onnx(net, x, tmp_path / "plain.onnx", metadata=settings)
    slim.export_onnx(net, x, tmp_path / "raw.onnx", preprocess=True, metadata=settings)
    files = {name: tmp_path / f"{name}.onnx" for name in ("plain", "raw")}
    assert not benchmark(files, batch_sizes=[2], runs=2, warmup=0, threads=1, memory=False).notes


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
        (files, {"profile": -1}, "profile -1: expected at least 0"),
        (files, {"threads": -1}, "threads -1: expected a whole number, 0"),
        (files, {"provider": "cudda"}, f"'cudda'.* expected auto, {', '.join(sorted(available))}"),
        ({"gone": tmp_path / "gone.onnx"}, {}, "no file '.*gone.onnx'"),
        ({"text": tmp_path / "text.onnx"}, {}, "text.onnx' is not an ONNX file"),
        (
            {"fixed": fixed},
            {"batch_sizes": [4, 1]},
            r"batch size 1: 'fixed' has the fixed batch size 4: expected batch_sizes \[4\]$",
        ),
        ({"fixed": fixed}, {"image_size": 9}, "^image_size 9: 'fixed' takes 3×8×8 alone: expected no image_size"),
        ({"open": open_size}, {"image_size": 9}, "^image_size 9: 'open' takes 3×9×8 alone"),
        ({"net": TorchRunner(nn.Flatten(), (1, 8, 8))}, {"image_size": 9}, "^image_size 9: 'net' takes 1×8×8 alone"),
        ({"net": tmp_path / "net.safetensors"}, {}, "net.safetensors': expected a file that ends in .onnx"),
        ({"open": open_size}, {}, "'images' of 'open' has shape .*'height'"),
    ]
    for given, settings, message in cases:
        with pytest.raises(SlimError, match=message) as caught:
            benchmark(given, **settings)
        assert "\n" not in str(caught.value)
    assert benchmark({"fixed": fixed}, batch_sizes=[4], runs=1, warmup=0, memory=False).row("fixed", 4).median_ms > 0


# -- busy machines -----------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="the system doesn't say what other processes take")
def test_other_work_is_that_of_other_processes() -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        with OtherWork() as others:
            time.sleep(1)
        busy.kill()
    assert others.share is not None and others.share > 0.5 / (os.cpu_count() or 1)


def test_ones_own_work_is_no_other_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine of two cores whose own process has one of them for 10 s, and others 4 s of core time."""
    seconds = iter([(0.0, 0.0, 0.0), (20.0, 14.0, 10.0)])
    monkeypatch.setattr(load, "_seconds", lambda: next(seconds))
    with OtherWork() as others:
        pass
    assert others.share == 0.2
    monkeypatch.setattr(load, "_seconds", lambda: None)
    with OtherWork() as others:
        pass
    assert others.share is None


def bench_row(low: float, high: float) -> BenchRow:
    return BenchRow("thin", 8, 1.0, 1.0, 1.0, 1.0, 8.0, speedup=(low + high) / 2, speedup_low=low, speedup_high=high)


@pytest.mark.parametrize(
    ("interval", "other_work", "said"),
    [
        ((1.9, 2.1), 0.05, []),
        ((1.9, 2.1), 0.63, ["busy machine: other processes took 63%"]),
        ((1.2, 46.0), 0.05, ["little is known of the speed-up of thin at batch 8"]),
        ((1.2, 46.0), 0.63, ["busy machine", "little is known"]),
    ],
)
def test_cautions(interval: tuple[float, float], other_work: float, said: list[str]) -> None:
    found = cautions([bench_row(*interval)], other_work)
    assert len(found) == len(said) and all(part in text for part, text in zip(said, found))
    report = BenchReport([bench_row(*interval)], "CPU", [1], 3, 0, "a machine", "1", cautions=found)
    assert all(text in " ".join(str(report).split()) for text in found) and report.to_dict()["cautions"] == found


@pytest.mark.parametrize(
    ("interval", "said"),
    [
        ((0.9, 80.0), "no difference in latency shown"),
        ((1.5, 80.0), "at least 1.50× as fast"),
        ((1.9, 2.1), "46.00× as fast"),
        ((0.1, 0.8), "at most 0.80× as fast"),
        ((None, None), "46.00× as fast"),
    ],
)
def test_a_headline_says_no_more_than_the_interval(interval: tuple[float | None, float | None], said: str) -> None:
    assert tables.speedup(46.0, *interval) == said
    row = {"speedup": 46.0, "speedup_low": interval[0], "speedup_high": interval[1]}
    assert headline({}, {"speedup": 46.0, "bench": {"rows": [row]}}) == said
