"""INT8 files: what is in them, what they predict against onnxruntime alone, and what must be refused."""

import json
import re
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from networks import digits_network
from onnx import numpy_helper
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn

import slim
from slim import checkpoint
from slim.deploy.processor import saturates
from slim.errors import SlimError
from slim.workbench.cli import export as export_command
from slim.workbench.config import RunConfig
from slim.workbench.run import Run, bench_stage, export_stage, int8_stage, train_stage

CLASSES = [str(digit) for digit in range(10)]


@pytest.fixture(scope="module")
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Raw images uint8 [N, 1, 8, 8] and labels."""
    bunch = load_digits()
    return torch.tensor(bunch.images / 16 * 255).round().to(torch.uint8)[:, None], torch.tensor(bunch.target)


@pytest.fixture(scope="module")
def fitted() -> tuple[nn.Module, float, float]:
    """A network that is right on more than 9 of 10 digits; mean and std of its images."""
    return digits_network()


@pytest.fixture(scope="module")
def normalised(fitted: tuple[nn.Module, float, float], digits: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return (digits[0] / 255 - fitted[1]) / fitted[2]


@pytest.fixture(scope="module")
def source(fitted: tuple[nn.Module, float, float], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("int8") / "float.onnx"
    net, mean, std = fitted
    slim.export_onnx(
        net,
        torch.zeros(1, 1, 8, 8),
        path,
        metadata={"classes": CLASSES, "mean": [mean], "std": [std], "plan_digest": "abc"},
    )
    return path


@pytest.mark.parametrize("reduce_range", ["auto", True])
def test_int8_predicts_like_float(
    source: Path,
    normalised: torch.Tensor,
    digits: tuple[torch.Tensor, torch.Tensor],
    tmp_path: Path,
    reduce_range: Any,
) -> None:
    images, labels = normalised, digits[1]
    path = tmp_path / "int8.onnx"
    test = [(images[1500:1600], labels[1500:1600]), (images[1600:], labels[1600:])]
    report = slim.quantize_onnx(
        source, path, [images[:128], images[128:200]], test, max_loss=0.03, reduce_range=reduce_range
    )
    assert report.path == path and report.file_size == path.stat().st_size < source.stat().st_size
    accuracies = []
    for file in (source, path):  # by onnxruntime alone
        logits = onnxruntime.InferenceSession(file).run(None, {"images": images[1500:].numpy()})[0]
        accuracies.append(float(np.mean(logits.argmax(1) == labels[1500:].numpy())))
    assert [report.float_accuracy, report.accuracy] == pytest.approx(accuracies)
    assert accuracies[0] > 0.9 and report.images == 297 and report.loss <= 0.03

    model, before = onnx.load(path), onnx.load(source)
    assert {e.key: e.value for e in model.metadata_props} == {e.key: e.value for e in before.metadata_props}
    # Weights: a scale for each output channel, and no further from the float ones than half a step
    weights = {entry.name: numpy_helper.to_array(entry) for entry in model.graph.initializer}
    convolution = next(node for node in before.graph.node if node.op_type == "Conv")
    name = convolution.input[1]
    original = next(numpy_helper.to_array(e) for e in before.graph.initializer if e.name == name)
    quantised, scale = weights[f"{name}_quantized"], weights[f"{name}_scale"]
    assert quantised.dtype == np.int8 and scale.shape == (16,)
    assert np.abs(quantised.astype(int)).max() <= (64 if reduce_range is True or saturates() else 127)
    steps = scale[:, None, None, None]
    assert (np.abs(quantised * steps - original) <= steps / 2 * 1.001).all()
    # … and integer kernels run it
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    kinds = {node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node}
    assert "QLinearConv" in kinds and not kinds & {"Conv", "FusedConv"}


def test_with_preprocessing_in_the_graph(
    fitted: tuple[nn.Module, float, float], digits: tuple[torch.Tensor, torch.Tensor], tmp_path: Path
) -> None:
    float_path, path = tmp_path / "float.onnx", tmp_path / "int8.onnx"
    net, mean, std = fitted
    slim.export_onnx(
        net,
        torch.zeros(1, 1, 8, 8),
        float_path,
        preprocess=True,
        metadata={"mean": [mean], "std": [std], "classes": CLASSES},
    )
    raw = digits[0].permute(0, 2, 3, 1)
    slim.quantize_onnx(float_path, path, [raw[:200]], [(raw[1500:], digits[1][1500:])], max_loss=0.03)
    kinds = [node.op_type for node in onnx.load(path).graph.node]
    assert [kind for kind in kinds if "Linear" not in kind][:4] == ["Cast", "Mul", "Add", "Transpose"]
    assert "QuantizeLinear" not in kinds[: kinds.index("Mul")] and kinds.count("DequantizeLinear") >= 6
    predicted = slim.OnnxModel(path).predict(list(raw[1500:].numpy()), top=1)
    assert np.mean([int(best[0][0]) == label for best, label in zip(predicted, digits[1][1500:])]) > 0.9


def test_readme_example_runs(
    source: Path,
    normalised: torch.Tensor,
    digits: tuple[torch.Tensor, torch.Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    readme = (Path(__file__).parents[2] / "docs" / "howto" / "onnx.md").read_text()
    match = re.search(r"<!-- onnx-model-example -->\n+```python\n(.*?)```", readme, re.DOTALL)
    assert match, "onnx.md has no block marked <!-- onnx-model-example -->"
    monkeypatch.chdir(tmp_path)
    shutil.copy(source, "model.onnx")
    Path("photos").mkdir()
    for i in range(1700, 1703):
        Image.fromarray(digits[0][i, 0].numpy()).save(f"photos/{i}.png")
    given: dict[str, Any] = {
        "slim": slim,
        "images": normalised[1500:],
        "labels": digits[1][1500:],
        "calibration": [normalised[:200]],
    }
    exec(match.group(1).replace("0.01", "0.03"), given)
    for best, logits in zip(given["best"], given["logits"][200:203], strict=True):
        assert [int(label) for label, _ in best] == np.argsort(-logits)[:3].tolist()
    assert capsys.readouterr().out == f"INT8 {given['made'].accuracy:.1%}, float {given['made'].float_accuracy:.1%}\n"


def test_bad_results_are_refused(
    source: Path, normalised: torch.Tensor, digits: tuple[torch.Tensor, torch.Tensor], tmp_path: Path
) -> None:
    images, labels = normalised, digits[1]
    path = tmp_path / "int8.onnx"
    path.write_bytes(b"earlier")
    test = [(images[1500:], labels[1500:])]
    dark = images[:32] * 0.01  # ranges that real images pass a hundredfold
    with pytest.raises(SlimError, match=r"^INT8 is right on \d+\.\d\d% where float is on 9\d.* 297 images: .* 1\.00%"):
        slim.quantize_onnx(source, path, [dark], test)
    with pytest.raises(SlimError, match="loss of at most 5"):  # without labels, float's own answers are the truth
        slim.quantize_onnx(source, path, [dark], [(images[1500:], None)], max_loss=0.05)
    with pytest.raises(SlimError, match="no calibration images"):
        slim.quantize_onnx(source, path, [], test)
    with pytest.raises(SlimError, match="no test images"):
        slim.quantize_onnx(source, path, [images[:32]], [])
    with pytest.raises(SlimError, match=r"images of shape \[2, 3, 8, 8\]: expected \[N, 1, 8, 8\]"):
        slim.quantize_onnx(source, path, [torch.zeros(2, 3, 8, 8)], test)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"earlier"]
    assert slim.quantize_onnx(source, path, [dark], test, max_loss=1).loss > 0.01


def test_the_command_enters_a_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = RunConfig(name="short")
    settings.train.epochs = 1
    run = tmp_path / "checkpoints" / "short"
    state = Run(run, settings)
    train_stage(state)
    shutil.copy(run / "sparse.safetensors", run / "finetuned.safetensors")
    export_command.main(["--int8", "--calibration_images", "64", "--bench.runs", "3", "--max_loss", "1"])
    summary = json.loads((run / "summary.json").read_text())
    assert list(summary) == ["sparse", "onnx", "int8"]
    assert summary["int8"]["file_size"] == (run / "model.int8.onnx").stat().st_size < summary["onnx"]["file_size"]
    assert 0 < summary["int8"]["accuracy"] < 1
    printed = capsys.readouterr().out
    assert "INT8" in printed and "latency" in printed and printed.splitlines()[-1].startswith("wrote ")

    bench_stage(state, run / "model.onnx")
    summary = json.loads((run / "summary.json").read_text())
    assert summary["int8"]["latency_ms"] > 0 and summary["int8"]["speedup"] > 0

    kept = (run / "model.int8.onnx").read_bytes()
    monkeypatch.setattr("slim.deploy.onnx.quantize._compare", lambda *_: (0.5, 0.9, 10))
    with pytest.raises(SlimError, match=r"^INT8 is right on 50.00% where float is on 90.00%"):
        int8_stage(state, run / "finetuned.safetensors")
    assert (run / "model.int8.onnx").read_bytes() == kept
    assert json.loads((run / "summary.json").read_text()) == summary

    # A new model.onnx leaves no INT8 file of another one, and has its card, whether or not INT8 is refused
    (run / "sparse.safetensors").unlink()  # so that it needn't be exported again, too
    for options in (["--int8"], []):
        (run / "model.int8.onnx").write_bytes(kept)
        (run / "model_card.md").write_text("of the earlier one")
        with nullcontext() if not options else pytest.raises(SystemExit):
            export_command.main([*options, "--calibration_images", "64", "--bench.runs", "3"])
        shown = capsys.readouterr()
        assert ("INT8 is right on 50.00%" in shown.err) == bool(options)
        assert "model.int8.onnx: it was made from another model.onnx" in " ".join(shown.out.split())
        assert not (run / "model.int8.onnx").exists()
        assert list(json.loads((run / "summary.json").read_text())) == ["sparse", "onnx"]
        assert "`model.onnx`" in (run / "model_card.md").read_text()


@pytest.mark.parametrize("trained_by_slim", [True, False])
def test_images_are_normalised_as_the_file_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained_by_slim: bool
) -> None:
    """A network with a std of its own, ten times the data set's, and a first convolution that makes up for it."""
    monkeypatch.chdir(tmp_path)
    settings = RunConfig(name="own")
    settings.train.epochs, settings.bench.runs = 2, 1
    trained = train_stage(Run(tmp_path / "checkpoints" / "own", settings))
    about, net = checkpoint.read_metadata(trained), slim.load(trained)
    next(module for module in net.modules() if isinstance(module, nn.Conv2d)).weight.data *= 10
    facts = {key: about[key] for key in ("arch", "arch_kwargs")}
    facts["images"] = replace(slim.ImageSpec.of(about), std=(10 * about["std"][0],))
    path = tmp_path / "checkpoints" / "own2" / "finetuned.safetensors"
    slim.save(path, net, config=about["config"] if trained_by_slim else None, **facts)
    settings.export.int8 = True
    export_stage(Run(path.parent, settings), path)
    summary = json.loads(path.with_name("summary.json").read_text())
    expected = about["metrics"]["accuracy"]
    assert expected > 0.5
    assert summary["onnx"]["accuracy"] == pytest.approx(expected, abs=0.006)  # one or two of 360 images
    assert summary["int8"]["accuracy"] == pytest.approx(expected, abs=0.02)
