"""ONNX files of other makers: read, pruned, proved, recovered and written again."""

from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from deploy.detector import Detector
from deploy.made_up import MadeUp
from deploy.onnx_networks import ConvNet, Words, shake
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import slim
from slim.deploy import guard
from slim.deploy.guard import Compared
from slim.deploy.onnx import source
from slim.deploy.onnx.session import silence
from slim.deploy.onnx.target import OnnxRuntime

EXPORTS: dict[str, dict[str, Any]] = {
    "torchscript 11, folded": {"dynamo": False, "opset_version": 11},
    "torchscript 17, not folded": {
        "dynamo": False,
        "opset_version": 17,
        "training": torch.onnx.TrainingMode.PRESERVE,
        "do_constant_folding": False,
    },
    "dynamo 20": {"dynamo": True, "opset_version": 20, "external_data": False, "verbose": False},
}
QUICK = {"batch_sizes": [1], "runs": 2, "warmup": 1}
NETWORKS: dict[str, Any] = {
    "classifier": (ConvNet, (3, 8, 8)),
    "detector": (Detector, (3, 32, 32)),
    "words": (Words, (3, 8, 20)),
}


def exported(net: nn.Module, shape: tuple[int, ...], path: Path, how: str, *, batch: int | None = None) -> Path:
    """Export as torch does it, not slim, with names and metadata of its own."""
    settings = dict(EXPORTS[how])
    if batch is None and settings["dynamo"]:
        settings["dynamic_shapes"] = ({0: "n"},)
    elif batch is None:
        settings["dynamic_axes"] = {"picture": {0: "n"}, "found": {0: "n"}}
    with silence():
        settings |= {"input_names": ["picture"], "output_names": ["found"]}
        torch.onnx.export(net.eval(), (torch.randn(batch or 2, *shape),), path, **settings)
    model = onnx.load(path)
    note = model.metadata_props.add()
    note.key, note.value = "author", "somebody"
    onnx.save(model, path)
    return path


def run(path: Path, images: np.ndarray) -> np.ndarray:
    made: np.ndarray = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(
        None, {"picture": images}
    )[0]
    return made


@pytest.mark.parametrize("how", EXPORTS)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_read_and_pruned_as_it_is(name: str, how: str, tmp_path: Path) -> None:
    kind, shape = NETWORKS[name]
    torch.manual_seed(0)
    net = shake(kind())
    path = exported(net, shape, tmp_path / "net.onnx", how)
    read, x = slim.read_onnx(path), torch.randn(3, *shape)
    expected = run(path, x.numpy())
    with torch.no_grad():
        assert np.abs(read(x).numpy() - expected).max() <= 1e-5 * np.abs(expected).max()
        assert np.abs(read.double()(x.double()).float().numpy() - expected).max() <= 1e-5 * np.abs(expected).max()
    read.float()
    plan = slim.plan(read, x, slim.Flops(0.5), score=slim.Magnitude())
    own = slim.plan(net, x, slim.Flops(0.5), score=slim.Magnitude())
    assert plan.totals["flops"][0] == own.totals["flops"][0]  # what follows a BatchNorm isn't counted
    assert plan.totals["flops"][1] <= 0.5 * plan.totals["flops"][0]
    assert slim.verify(read, plan.apply(read), plan, x) < 1e-10


def test_layers_keep_the_names_that_the_file_has_for_them(tmp_path: Path) -> None:
    net = shake(Detector())
    for how in EXPORTS:
        read = slim.read_onnx(exported(net, (3, 32, 32), tmp_path / "net.onnx", how))
        names = {name for name, module in read.named_modules() if isinstance(module, nn.Conv2d)}
        assert names == {name for name, module in net.named_modules() if isinstance(module, nn.Conv2d)}, how


@pytest.mark.parametrize("batch", [None, 1])
def test_a_thin_file_keeps_names_batch_and_metadata_and_comes_close(batch: int | None, tmp_path: Path) -> None:
    torch.manual_seed(0)
    how, net = "torchscript 11, folded", shake(Detector())
    path = exported(net, (3, 32, 32), tmp_path / "net.onnx", how, batch=batch)
    model = onnx.load(path)
    model.doc_string, model.model_version, model.domain, model.graph.name = "finds shapes", 7, "org.me", "shapes"
    model.graph.input[0].doc_string = "0 to 1"
    onnx.save(model, path)
    images = torch.rand(48, 3, 32, 32)
    done = slim.prune_onnx(
        path, images.split(16), slim.Flops(0.6), out=tmp_path / "thin.onnx", bench=QUICK, round_to=None
    )
    of_one_image = slim.plan(net, images[:1], score=slim.Magnitude()).totals
    assert done.plan.totals["flops"][0] == of_one_image["flops"][0]
    before, after = onnx.load(path), onnx.load(tmp_path / "thin.onnx")
    assert [entry.name for entry in (*after.graph.input, *after.graph.output)] == ["picture", "found"]
    first = after.graph.input[0].type.tensor_type.shape.dim[0]
    assert (first.dim_value or None) == batch and first.dim_param == ("" if batch else "n")
    assert after.graph.output[0].type.tensor_type.shape.dim[0].dim_param == first.dim_param
    for said in ("doc_string", "model_version", "domain", "graph.name"):
        assert attrgetter(said)(after) == attrgetter(said)(before)
    assert after.graph.input[0].doc_string == "0 to 1"
    assert {"author": "somebody", "slim.plan": done.plan.digest}.items() <= {
        entry.key: entry.value for entry in after.metadata_props
    }.items()
    numbers = [sum(np.prod(each.dims) for each in model.graph.initializer) for model in (before, after)]
    assert numbers[1] < 0.8 * numbers[0]
    assert done.plan.totals["flops"][1] <= 0.6 * done.plan.totals["flops"][0]
    assert done.proof < 1e-10 and done.read_error < 1e-5 and done.recovery is not None and done.bench is not None
    if batch is None:
        a, b = (run(file, images.numpy()) for file in (path, tmp_path / "thin.onnx"))
        error = float(((a - b) ** 2).sum() / (a**2).sum())
        assert error == pytest.approx(done.squared_error, rel=0.5)  # that of held-out images alone
        assert error < 0.1
    assert "held-out images" in str(done) and "×" in str(done)


def test_without_images_the_size_of_filters_decides(tmp_path: Path) -> None:
    path = exported(shake(ConvNet()), (3, 8, 8), tmp_path / "net.onnx", "torchscript 11, folded")
    done = slim.prune_onnx(path, None, slim.Flops(0.6), out=tmp_path / "thin.onnx", bench=QUICK, round_to=None)
    read = slim.read_onnx(path)
    expected = slim.plan(read, torch.zeros(2, 3, 8, 8), slim.Flops(0.6), score=slim.Magnitude())
    assert done.plan.digest == expected.digest and done.recovery is None and done.squared_error is None
    assert "nothing was recovered" in str(done)


def test_a_network_that_takes_places_in_a_table(tmp_path: Path) -> None:
    """Whole numbers of 32 bits go in as they are: from calibration data of another type, and without any."""
    random = np.random.default_rng(0)
    shapes = {"table": (20, 6), "first": (16, 6, 3), "second": (4, 16, 3)}
    weights = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    nodes = [
        helper.make_node("Gather", ["table", "text"], ["rows"]),
        helper.make_node("Transpose", ["rows"], ["channels"], perm=[0, 2, 1]),
        helper.make_node("Conv", ["channels", "first"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "second"], ["found"]),
    ]
    text = helper.make_tensor_value_info("text", TensorProto.INT32, ["n", 9])
    found = helper.make_tensor_value_info("found", TensorProto.FLOAT, ["n", 4, 5])
    held = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "text", [text], [found], held)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), tmp_path / "net.onnx"
    )
    for batches in ([torch.randint(0, 20, (16, 9))], None):
        done = slim.prune_onnx(tmp_path / "net.onnx", batches, slim.Flops(0.5), out=tmp_path / "thin.onnx", bench=QUICK)
        assert done.plan.totals["flops"][1] <= 0.5 * done.plan.totals["flops"][0] and done.read_error < 1e-5
        assert onnx.load(tmp_path / "thin.onnx").graph.input[0].type.tensor_type.elem_type == TensorProto.INT32


@pytest.mark.parametrize("batch", [None, 1])
def test_by_default_the_thin_file_is_timed_against_the_original_and_revised(
    batch: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = tmp_path / "net.onnx", tmp_path / "thin.onnx"
    exported(shake(ConvNet()), (3, 8, 8), path, "torchscript 11, folded", batch=batch)
    compared: list[tuple[Path, list[int], list[str]]] = []

    def first_is_slower(original: Path, thin: Path, runtime: slim.Runtimes, image_size: int | None) -> list[Compared]:
        widths = [each.dims[0] for each in onnx.load(thin).graph.initializer if len(each.dims) == 4]
        compared.append((original, widths, [str(each) for each in runtime.each]))
        speedup = 0.8 if len(compared) == 1 else 1.2
        return [Compared("here", speedup, speedup, speedup)]

    monkeypatch.setattr(OnnxRuntime, "time", lambda _, kernels: MadeUp().time(kernels))
    monkeypatch.setattr(source, "compare_files", first_is_slower)
    monkeypatch.setattr(guard, "WIDER", (4, 8))  # the network is small
    bench = {"batch_sizes": [1, 4] if batch is None else [4], "threads": 1, "runs": 2, "warmup": 1}
    done = slim.prune_onnx(path, None, slim.Flops(0.6), out=out, bench=bench)
    read = slim.read_onnx(path)
    expected = slim.plan(read, torch.zeros(2, 3, 8, 8), slim.Flops(0.6), score=slim.Magnitude(), round_to=4)
    assert done.plan.digest == expected.digest and [each.speedup for each in done.compared] == [1.2]
    assert [original for original, _, _ in compared] == [path, path]
    assert compared[1][1] == [each.dims[0] for each in onnx.load(out).graph.initializer if len(each.dims) == 4]
    settings = [f"onnxruntime, CPU, 1 thread, batch {size}" for size in ([1, 4] if batch is None else [1])]
    assert compared[0][2] == settings  # those that the file takes
    assert "it would be slower" in str(done) and "faster than the unpruned network by " in str(done)


def broken(tmp_path: Path, how: str) -> tuple[Path, Any, dict[str, Any]]:
    path, images = tmp_path / "net.onnx", [torch.rand(16, 3, 8, 8)]
    if how == "text":
        path.write_text("no graph")
    elif how != "missing":
        exported(shake(ConvNet()), (3, 8, 8), path, "torchscript 11, folded")
    given: dict[str, Any] = {"out": tmp_path / "thin.onnx"}
    match how:
        case "few":
            images = [torch.rand(9, 3, 8, 8)]
        case "none":
            images = []
        case "size":
            images = [torch.rand(16, 3, 9, 8)]
        case "inputs":
            images = [(torch.rand(16, 3, 8, 8),) * 2]  # type: ignore[list-item]
        case "itself":
            given["out"] = path
        case "custom":
            model = onnx.load(path)
            model.graph.node[0].domain, model.graph.node[0].op_type = "com.example", "Whirl"
            onnx.save(model, path)
    return path, images, given


MISTAKES = {
    "missing": "no file .*: expected an ONNX file",
    "text": "isn't a sound ONNX file",
    "few": "9 calibration images: expected at least 12",
    "none": "no calibration images: expected at least one batch, or None",
    "size": r"images of shape \[16, 3, 9, 8\] for 'picture': expected \[N, 3, 8, 8\]",
    "inputs": "2 arrays in a batch: the file takes 1, picture",
    "itself": "expected the name of another file that ends in .onnx",
    "custom": "can't read operator com.example::Whirl",
}


@pytest.mark.parametrize("how", MISTAKES)
def test_mistakes_are_one_line_and_nothing_is_written(how: str, tmp_path: Path) -> None:
    path, images, given = broken(tmp_path, how)
    with pytest.raises(slim.SlimError, match=MISTAKES[how]) as error:
        slim.prune_onnx(path, images, slim.Flops(0.5), **given)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "thin.onnx").exists()
