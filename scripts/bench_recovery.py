"""Time least squares for a wide layer, and slim.recover for a whole network; by default on two threads.

    python scripts/bench_recovery.py [--images 400] [--network resnet50] [--network-images 64 128] [--threads 2]

The wide layer is as in CREPE, a network for pitch: 128 channels × 64 taps, 8,192 features, which read a mixture of 512
sources with noise, as layers of a trained network do. Half of its input channels are pruned in a second row. Its fit
is judged on images that it never saw. Seconds of the network grow with the images, up to those that fit in memory.
"""

import time
from datetime import date
from pathlib import Path

import torch
import torchvision
from shared import RESULTS, parser_of, ran_on, table
from torch import Tensor, nn

import slim
from slim.prune.recovery.regression import fit_layer
from slim.trace.intercept import LayerCall

TAPS, LENGTH = 64, 32


def wide_layer(images: int, channels: int) -> tuple[float, float, float]:
    """Seconds of a fit, and the share of the variance that is missed on images of their own, before and after."""
    torch.manual_seed(0)
    mix, weight = torch.randn(128, 512) / 22, torch.randn(128, 128, TAPS) / 90

    def batch() -> tuple[Tensor, Tensor]:
        x = torch.einsum("cs,nst->nct", mix, torch.randn(images, 512, LENGTH)).relu()
        target = torch.conv1d(x, weight, padding=TAPS // 2)
        return x[:, :channels], target + 0.05 * target.std() * torch.randn(target.shape)

    (x, target), (unseen, wanted) = batch(), batch()
    old = weight[:, :channels].contiguous()
    layer = LayerCall("product", "weight", torch.conv1d, {"input": x, "weight": old, "padding": TAPS // 2}, lambda: x)
    start = time.perf_counter()
    made = fit_layer(layer, target, intercept=True)
    seconds = time.perf_counter() - start
    assert made is not None

    def missed(weight: Tensor, bias: Tensor | None) -> float:
        left = wanted - torch.conv1d(unseen, weight, None if bias is None else bias.float(), padding=TAPS // 2)
        return float(left.var((0, 2), correction=0).sum() / wanted.var((0, 2), correction=0).sum())

    return seconds, missed(old, None), missed(made.weight, made.bias)


def whole_network(name: str, images: int) -> tuple[float, str]:
    """Seconds of recovery at 224 × 224, and how it was recovered."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.01, 1)
    x = torch.randn(images, 3, 224, 224)
    plan = slim.plan(model, x[:1], ratio=0.5)
    recovered = slim.recover(model, plan.apply(model), plan, x)
    return recovered.seconds, recovered.chosen


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--channels", type=int, nargs="+", default=[128, 64])
    parser.add_argument("--network", default="resnet50")
    parser.add_argument("--network-images", type=int, nargs="*", default=[64, 128])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS / f"bench_recovery-{date.today()}.md")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    layers, networks = [], []
    for channels in options.channels:
        seconds, before, after = wide_layer(options.images, channels)
        layers.append(
            (f"{channels} × {TAPS}", f"{channels * TAPS:,}", f"{seconds:.1f}", f"{before:.4f}", f"{after:.4f}")
        )
        print(layers[-1], flush=True)
    for images in options.network_images:
        seconds, chosen = whole_network(options.network, images)
        networks.append((options.network, images, f"{seconds:.1f}", chosen))
        print(networks[-1], flush=True)
    text = [
        "# Recovery",
        "",
        ran_on("torchvision"),
        "",
        f"{options.threads} threads. One layer, {options.images} images of {LENGTH} places:",
        "",
        table(("reads", "features", "seconds", "missed before", "missed after, on unseen images"), layers),
        "",
        table(("network, 224×224", "images", "seconds", "recovered by"), networks),
    ]
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text("\n".join(text) + "\n")
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
