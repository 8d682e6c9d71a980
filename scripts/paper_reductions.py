"""Do the channels that the paper removes bring the reductions that it reports? Without training anything.

    python scripts/paper_reductions.py

The paper doesn't publish its γ. Here they are drawn log-normal, with one scale for the BatchNorms that read the shared
stream and another for those within a block, and a factor from one stage to the next. These two numbers are fitted by
grid search to the parameters and FLOPs that the paper reports for the larger ratio of a network; the row of the
smaller ratio is then a prediction. VGG-19 gets γ that keep the channel counts which the authors' code published for
70 %. Source: Network Slimming, Liu et al., ICCV 2017, Table 1 (CIFAR-10), mode "select" for pre-activation networks.
"""

import itertools
import math

import torch
from shared import parser_of, ran_on, table, write
from torch import nn

import slim
from slim.workbench.models import build

X = torch.zeros(1, 3, 32, 32)
VGG19_70 = [49, 64, 128, 128, 256, 254, 234, 198, 114, 41, 24, 11, 14, 13, 19, 104]
PAPER = {  # (network, ratio): share of the parameters and of the FLOPs removed
    ("vgg19", 0.7): (0.885, 0.510),
    ("preresnet164", 0.6): (0.352, 0.449),
    ("preresnet164", 0.4): (0.149, 0.237),
    ("densenet40", 0.7): (0.652, 0.550),
    ("densenet40", 0.4): (0.357, 0.284),
}


def norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]


def published_vgg() -> nn.Module:
    model = build("slim:vgg19", num_classes=10)
    for bn, count in zip(norms(model), VGG19_70):
        gamma = torch.rand(bn.num_features) * 0.4
        gamma[:count] += 0.5
        bn.weight.data.copy_(gamma)
    return model


def spread(arch: str, stream: float, stage: float) -> nn.Module:
    """Log-normal γ; those that read the stream are `stream` times the others, and each stage is `stage` times the one
    before it."""
    torch.manual_seed(0)
    model = build(f"slim:{arch}", num_classes=10)
    layers = norms(model)
    readers = slim.plan(model, X, ratio=0.9, scope="layer", mode="select").selects  # all lose some
    names = {m: n for n, m in model.named_modules()}
    for place, bn in enumerate(layers):
        scale = stage ** (3 * place // len(layers)) * (stream if names[bn] in readers else 1)
        bn.weight.data.log_normal_(math.log(scale), 0.5)
    return model


def reductions(model: nn.Module, ratio: float) -> tuple[float, float]:
    totals = slim.plan(model, X, ratio=ratio, mode="select", floor=0).totals
    return 1 - totals["params"][1] / totals["params"][0], 1 - totals["flops"][1] / totals["flops"][0]


def fitted(arch: str, ratio: float) -> tuple[float, float]:
    target = PAPER[arch, ratio]

    def miss(scales: tuple[float, float]) -> float:
        return math.dist(reductions(spread(arch, *scales), ratio), target)

    return min(itertools.product((0.15, 0.25, 0.4, 0.6, 0.8, 1.0), (0.7, 1.0, 1.3, 1.6, 2.0)), key=miss)


def main() -> None:
    parser_of(__doc__).parse_args()
    torch.set_num_threads(1)
    scales = {arch: fitted(arch, ratio) for arch, ratio in (("preresnet164", 0.6), ("densenet40", 0.7))}
    rows = []
    for (arch, ratio), (params, flops) in PAPER.items():
        if arch in scales:
            model = spread(arch, *scales[arch])
            which = "fitted" if ratio > 0.5 else "predicted"
            stream, stage = scales[arch]
            gamma = f"log-normal, stream × {stream:g}, each stage × {stage:g}: {which}"
        else:
            model, gamma = published_vgg(), "keeps the published counts"
        ours = reductions(model, ratio)
        rows.append([arch, f"{ratio:.0%}", gamma, f"{ours[0]:.1%} ({params:.1%})", f"{ours[1]:.1%} ({flops:.1%})"])
    made = table(["network", "channels", "γ", "parameters removed (paper)", "FLOPs removed (paper)"], rows)
    print(made)
    title = "# The paper's reductions, from γ of a similar spread"
    write("paper_reductions", f"{title}\n\n{ran_on()}\n\n{made}\n")


if __name__ == "__main__":
    main()
