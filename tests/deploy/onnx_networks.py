"""Networks and truths that the tests of ONNX files share."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn

from slim.deploy.onnx.write import Metadata

CLASSES = ["zero", "one", "two", "drei", "quatre", "пять", "six", "seven", "eight", "nine"]
METADATA: Metadata = {"classes": CLASSES, "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}


class ConvNet(nn.Module):
    """Every kind of layer that a BatchNorm can be folded into, and one BatchNorm that can't
    (pre-activation)."""

    def __init__(self, preactivation: bool = False) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.depthwise = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1, groups=8), nn.BatchNorm2d(16, eps=0.01))
        self.grouped = nn.Sequential(nn.Conv2d(16, 16, 1, groups=2), nn.BatchNorm2d(16), nn.ReLU())
        self.shortcut = nn.Sequential(nn.Conv2d(8, 16, 1, bias=False), nn.BatchNorm2d(16))
        self.up = nn.Sequential(nn.ConvTranspose2d(16, 8, 2, stride=2, groups=2), nn.BatchNorm2d(8))
        self.pre = nn.BatchNorm2d(8) if preactivation else nn.Identity()
        self.head = nn.Sequential(
            nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 12), nn.BatchNorm1d(12),
            nn.Dropout(0.5), nn.Linear(12, 10),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = self.up(self.grouped(self.depthwise(x)) + self.shortcut(x))
        return self.head(self.pre(torch.relu(x)))


class Words(nn.Module):
    """Lines of text as others read them: convolutions, a recurrent layer in both directions, a class for each place."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 12, 3, stride=2, padding=1), nn.BatchNorm2d(12), nn.ReLU(),
            nn.Conv2d(12, 16, 3, stride=(2, 1), padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        )  # fmt: skip
        self.sequence = nn.LSTM(32, 10, bidirectional=True, batch_first=True)
        self.head = nn.Linear(20, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.sequence(self.features(x).flatten(1, 2).transpose(1, 2))[0])


class Weighted(nn.Module):
    def forward(self, left: torch.Tensor, right: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"sum": left + 2 * right, "product": left.flatten(1) * right.flatten(1)}


def shake(net: nn.Module) -> nn.Module:
    """Statistics and scales that a wrongly folded BatchNorm would show."""
    generator = torch.Generator().manual_seed(3)
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor, low, high in (
                (module.weight, -1.5, 1.5), (module.bias, -1, 1), (module.get_buffer("running_mean"), -1, 1),
                (module.get_buffer("running_var"), 0.2, 3),
            ):  # fmt: skip
                tensor.data.uniform_(low, high, generator=generator)
    return net


def ops(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


def run_raw(path: Path, images: np.ndarray) -> np.ndarray:
    """onnxruntime without any of slim."""
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"images": images})[0]


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()
