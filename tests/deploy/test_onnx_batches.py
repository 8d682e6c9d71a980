"""Networks that don't take every batch, forwards with open arguments, and exports side by side."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from deploy.onnx_networks import run_raw
from torch import nn

import slim
from slim.deploy.onnx.predict import OnnxModel
from slim.deploy.target import BatchUnit
from slim.errors import SlimError


class TemporalShift(nn.Module):
    """Clips of 4 frames, whose channels move on by a frame (Lin et al., TSM, ICCV 2019)."""

    def __init__(self, frames: int = 4) -> None:
        super().__init__()
        self.frames = frames
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        clips = self.norm(self.conv(x)).view(-1, self.frames, 8, *x.shape[2:])
        later = torch.cat([clips[:, 1:, :4], torch.zeros_like(clips[:, :1, :4])], 1)
        mixed = torch.cat([later, clips[:, :, 4:]], 2).relu().mean((3, 4))
        return self.head(mixed).mean(1)


@pytest.fixture(scope="module")
def video() -> nn.Module:
    torch.manual_seed(0)
    return TemporalShift().eval()


FRAMES = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "setting, taken, refused", [("4n", (4, 8, 12, 40), 6), ("8n", (8, 16), 12), (8, (8,), 4), ("4", (4,), 8)]
)
def test_video_networks(
    video: nn.Module, setting: int | str, taken: tuple[int, ...], refused: int, tmp_path: Path
) -> None:
    report = slim.export_onnx(video, FRAMES, tmp_path / "video.onnx", batch=setting)
    assert report.max_relative_error < 1e-5
    for size in taken:
        frames = torch.randn(size, 3, 6, 6)
        with torch.no_grad():
            assert np.allclose(run_raw(report.path, frames.numpy()), video(frames).numpy(), atol=1e-5)
    runner = slim.benchmark({"v": report.path}, runs=1, warmup=0, memory=False)
    assert [row.batch_size for row in runner.rows] == [BatchUnit.of(setting).unit]
    assert runner.notes == [f"batch sizes are those that files have fixed (v: {setting})"]
    with pytest.raises(
        SlimError, match=rf"batch size {refused}: 'v' .*: expected batch_sizes \[{BatchUnit.of(setting).unit}\]"
    ):
        slim.benchmark({"v": report.path}, batch_sizes=[refused])


def test_without_the_setting_the_message_says_what_to_do(video: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(SlimError, match=r"can't run a batch of 2 like the example: .*; batch='8n' is for networks"):
        slim.export_onnx(video, FRAMES, tmp_path / "video.onnx")


class Anchors(nn.Module):
    """Places that are kept until images of another shape come, as heads of Ultralytics keep theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.shape, self.places = nn.Conv2d(3, 4, 3), torch.Size(), torch.empty(0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        if x.shape != self.shape:
            self.shape, self.places = x.shape, torch.arange(x.shape[2] * x.shape[3]).to(x)
        return x.flatten(2) + self.places


@pytest.mark.parametrize("seen", [1, 2, 5])
def test_what_forward_keeps_for_one_size_of_batch_is_made_anew_for_others(seen: int, tmp_path: Path) -> None:
    net = Anchors().eval()
    net(torch.randn(seen, 3, 8, 8))
    path = slim.export_onnx(net, torch.randn(seen, 3, 8, 8), tmp_path / "anchors.onnx", dynamic_size=True).path
    images = torch.randn(3, 3, 12, 10)
    assert np.allclose(run_raw(path, images.numpy()), net(images).detach().numpy(), atol=1e-5)


@pytest.mark.parametrize("count", [3, 4, 9])
def test_a_file_of_a_fixed_batch_takes_any_number_of_images(count: int, tmp_path: Path) -> None:
    """Batch by batch, the last one filled up."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 5)).eval()
    metadata: Any = {"mean": [0.5] * 3, "std": [0.25] * 3}
    for name, batch in (("fixed", 4), ("any", "any")):
        slim.export_onnx(net, torch.zeros(1, 3, 6, 6), tmp_path / f"{name}.onnx", batch=batch, metadata=metadata)
    fixed, free = OnnxModel(tmp_path / "fixed.onnx"), OnnxModel(tmp_path / "any.onnx")
    images = torch.randn(count, 3, 6, 6)
    assert fixed(images).shape == (count, 5) and np.allclose(fixed(images), free(images), atol=1e-6)
    pixels = list(np.random.default_rng(0).integers(0, 256, (count, 6, 6, 3), dtype=np.uint8))
    for ours, theirs in zip(fixed.predict(pixels), free.predict(pixels), strict=True):
        assert [label for label, _ in ours] == [label for label, _ in theirs]


def test_frames_that_fill_no_clip_are_refused(video: nn.Module, tmp_path: Path) -> None:
    slim.export_onnx(video, FRAMES, tmp_path / "video.onnx", batch="4n")
    assert OnnxModel(tmp_path / "video.onnx")(FRAMES).shape == (2, 5)
    with pytest.raises(SlimError, match=r"^6 images: video.onnx takes multiples of 4$"):
        OnnxModel(tmp_path / "video.onnx")(FRAMES[:6])


class Open(nn.Module):
    """Forwards that take what comes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, *images: torch.Tensor, **more: torch.Tensor) -> torch.Tensor:
        total = sum(self.conv(image).mean((2, 3)) for image in (*images, *more.values()))
        assert isinstance(total, torch.Tensor)
        return total


@pytest.mark.parametrize(
    "inputs",
    [FRAMES, (FRAMES, FRAMES[:, :, :4, :4]), {"one": FRAMES, "other": FRAMES[:, :, :5]}],
    ids=["one", "several", "by name"],
)
@pytest.mark.parametrize("wrap", [lambda net: net, nn.DataParallel], ids=["itself", "DataParallel"])
def test_forwards_with_open_arguments(inputs: Any, wrap: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    report = slim.export_onnx(wrap(Open()), inputs, tmp_path / "net.onnx")
    assert report.max_relative_error < 1e-5


def test_exports_in_several_threads(tmp_path: Path) -> None:
    torch.manual_seed(0)
    nets = [nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Flatten()).eval() for width in (2, 3, 4, 5)]

    def export(index: int) -> float:
        return slim.export_onnx(nets[index], FRAMES, tmp_path / f"{index}.onnx").max_relative_error

    with ThreadPoolExecutor(4) as pool:
        assert all(error < 1e-5 for error in pool.map(export, range(4)))
    for index, net in enumerate(nets):
        with torch.no_grad():
            assert np.allclose(run_raw(tmp_path / f"{index}.onnx", FRAMES.numpy()), net(FRAMES).numpy(), atol=1e-5)
