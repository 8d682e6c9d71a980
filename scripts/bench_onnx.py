"""An ONNX file in, a thin ONNX file out: slim.prune_onnx beside the structured pruning of onnxsim.

    pip install onnxsim torchcrepe
    python scripts/bench_onnx.py [--only NAME …] [--keep 0.5] [--quick]

Each network is exported by torch's own exporter (opset 13, BatchNorms folded), as it would come from others. Half of
the FLOPs stay; onnxsim takes a share of each layer's channels, which is searched for until its FLOPs are the same or as
near as it comes. Both see the same calibration data, onnxsim for its scores, slim for scores and recovery; nothing
is trained. The distance is that of the outputs to the original file's on held-out data: squared error relative to the
outputs' own, and how often both agree on the largest. CREPE tiny has its trained weights and hears tones with overtones
and noise; the networks of torchvision have random ones with statistics fitted to random images, which tell about
FLOPs and times, and of distance only in which order they come. Times: one thread, batch 1, in turn.
"""

import math
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import torchvision
from shared import parser_of, ran_on, table, write
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import slim
from slim.deploy.onnx.file import OnnxFile
from slim.deploy.onnx.session import silence

IMAGES = 96
SHARE_HELD_OUT = 0.25
STEPS = 8  # of the search for onnxsim's share of channels


def tones(count: int) -> Tensor:
    """Frames of 1,024 samples at 16 kHz, of zero mean and unit variance, as CREPE takes them."""
    random = np.random.default_rng(0)
    time = np.arange(1024) / 16000
    pitch = np.exp(random.uniform(math.log(60), math.log(900), count))[:, None]
    loud = random.uniform(0.1, 1, (count, 8)) / np.arange(1, 9)
    phase = random.uniform(0, 2 * np.pi, (count, 8))
    frames = sum(loud[:, [k]] * np.sin(2 * np.pi * pitch * (k + 1) * time + phase[:, [k]]) for k in range(8))
    frames = frames + random.normal(0, 0.05, (count, 1024))
    frames = (frames - frames.mean(1, keepdims=True)) / frames.std(1, keepdims=True)
    return torch.from_numpy(frames.astype(np.float32))


def crepe() -> tuple[nn.Module, Tensor]:
    import torchcrepe

    net = torchcrepe.Crepe("tiny")
    weights = Path(torchcrepe.__file__).parent / "assets" / "tiny.pth"
    net.load_state_dict(torch.load(weights, weights_only=True))
    return net.eval(), tones(512)


def of_torchvision(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    net, images = getattr(torchvision.models, name)(weights=None), torch.randn(IMAGES, 3, 128, 128)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
            module.momentum = None
    with torch.no_grad():
        net.train()(images[:32])
    return net.eval(), images


NETWORKS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "CREPE tiny": crepe,
    "ResNet-50": lambda: of_torchvision("resnet50"),
    "MobileNetV2": lambda: of_torchvision("mobilenet_v2"),
    "EfficientNet-B0": lambda: of_torchvision("efficientnet_b0"),
}


def flops(file: Path, example: Tensor) -> int:
    """Multiply-adds × 2 of one input, counted in the network that the file is read into."""
    net = slim.read_onnx(file)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(example[:1])
    return int(counter.get_total_flops())


def by_onnxsim(source: Path, path: Path, calibration: Tensor, keep: float) -> None:
    """Prune with onnxsim until the file has `keep` of the FLOPs, or as near to that as it comes."""
    import onnxsim

    feeds = [{"x": part.numpy()} for part in calibration.split(16)]
    low, high, whole = 0.0, 0.95, flops(source, calibration)
    best = math.inf
    for _ in range(STEPS):
        middle = (low + high) / 2
        made = onnxsim.apply_structured_wanda_pruning(onnx.load(source), feeds, sparsity=middle)
        trial = path.with_suffix(".trial.onnx")
        onnx.save(made, trial)
        share = flops(trial, calibration) / whole
        low, high = (middle, high) if share > keep else (low, middle)
        if abs(share - keep) < best:
            best = abs(share - keep)
            trial.replace(path)


def row(name: str, keep: float, folder: Path) -> list[list[str]]:
    """Return what both make of a network."""
    net, inputs = NETWORKS[name]()
    source, ours, theirs = (folder / f"{which}.onnx" for which in ("source", "slim", "onnxsim"))
    with silence():
        axes = {"x": {0: "n"}, "y": {0: "n"}}
        names = {"input_names": ["x"], "output_names": ["y"]}
        settings: dict[str, Any] = {"dynamo": False, "opset_version": 13, "dynamic_axes": axes, **names}
        torch.onnx.export(net, (inputs[:2],), source, **settings)
    held_out = round(SHARE_HELD_OUT * len(inputs))
    calibration, test = inputs[held_out:], inputs[:held_out]
    slim.prune_onnx(source, [calibration], slim.Flops(keep), out=ours, bench={"batch_sizes": [1], "runs": 1})
    by_onnxsim(source, theirs, calibration, keep)
    files = {"original": source, "slim": ours, "onnxsim": theirs}
    timed = slim.benchmark(files, batch_sizes=[1], threads=1, memory=False)
    outputs = {which: OnnxFile(file, "cpu", 0).run({"x": test.numpy()})[0] for which, file in files.items()}
    truth, whole = outputs["original"], flops(source, inputs)
    rows = []
    for which, file in files.items():
        made = timed.row(which, 1)
        rows.append(
            [
                name,
                which,
                f"{flops(file, inputs) / whole:.1%}",
                f"{float(((outputs[which] - truth) ** 2).sum() / (truth**2).sum()):.3g}",
                f"{float((outputs[which].argmax(1) == truth.argmax(1)).mean()):.0%}",
                f"{made.median_ms:.2f}",
                f"{made.speedup:.2f}×" if made.speedup else "",
            ]
        )
    return rows


def main() -> None:
    warnings.simplefilter("ignore")
    parser = parser_of(__doc__)
    parser.add_argument("--only", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--keep", type=float, default=0.5)
    parser.add_argument("--quick", action="store_true", help="write beside the full results, not over them")
    arguments = parser.parse_args()
    rows: list[list[str]] = []
    for name in arguments.only:
        with tempfile.TemporaryDirectory() as folder:
            rows += row(name, arguments.keep, Path(folder))
        print(rows[-3:], flush=True)
        header = ["network", "by", "FLOPs left", "distance", "agree", "ms", "speed-up"]
        text = f"# ONNX files, pruned\n\n{ran_on('onnxruntime', 'onnxsim')}\n\n{table(header, rows)}\n"
        write("bench_onnx", text, quick=arguments.quick)


if __name__ == "__main__":
    main()
