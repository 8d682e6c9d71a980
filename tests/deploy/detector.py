"""A small detector as others export them: slices in front, split and concat, pooling, resizing, and a head that decodes
boxes with shape arithmetic."""

import torch
from torch import Tensor, nn


class Block(nn.Sequential):
    def __init__(self, reads: int, makes: int, size: int = 3, stride: int = 1) -> None:
        conv = nn.Conv2d(reads, makes, size, stride, size // 2, bias=False)
        super().__init__(conv, nn.BatchNorm2d(makes), nn.SiLU())


class Partial(nn.Module):
    """Half of the channels goes through a residual block."""

    def __init__(self, reads: int, makes: int) -> None:
        super().__init__()
        self.part = makes // 2
        self.first, self.last = Block(reads, makes, 1), Block(3 * self.part, makes, 1)
        self.one, self.two = Block(self.part, self.part), Block(self.part, self.part)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.first(x).split((self.part, self.part), 1)
        return self.last(torch.cat([left, right, right + self.two(self.one(right))], 1))


class Detector(nn.Module):
    def __init__(self, width: int = 8, classes: int = 3, boxes: int = 2) -> None:
        super().__init__()
        self.boxes, self.numbers = boxes, classes + 5
        self.stem, self.down = Block(12, width), Block(width, 2 * width, stride=2)
        self.near, self.deeper = Partial(2 * width, 2 * width), Block(2 * width, 4 * width, stride=2)
        self.far, self.pool = Partial(4 * width, 4 * width), nn.MaxPool2d(5, 1, 2)
        self.mixed, self.up = Block(8 * width, 4 * width, 1), nn.Upsample(scale_factor=2.0)
        self.joined = Partial(6 * width, 2 * width)
        self.head = nn.Conv2d(2 * width, boxes * self.numbers, 1)
        self.register_buffer("anchors", torch.tensor([[1.0, 2.0], [3.0, 1.5]])[:boxes].view(1, boxes, 1, 1, 2))

    def forward(self, x: Tensor) -> Tensor:
        corners = [x[..., i::2, j::2] for j in (0, 1) for i in (0, 1)]
        near = self.near(self.down(self.stem(torch.cat(corners, 1))))
        far = self.far(self.deeper(near))
        far = self.mixed(torch.cat([far, self.pool(far)], 1))
        found = self.head(self.joined(torch.cat([self.up(far), near], 1)))
        n, _, height, width = found.shape
        found = found.view(n, self.boxes, self.numbers, height, width).permute(0, 1, 3, 4, 2).sigmoid()
        rows, columns = (torch.arange(size, device=x.device) for size in (height, width))
        grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), 2).to(found.dtype)
        centre = (found[..., :2] * 2 - 0.5 + grid) * 4
        size = (found[..., 2:4] * 2) ** 2 * self.get_buffer("anchors")
        return torch.cat([centre, size, found[..., 4:]], -1).view(n, -1, self.numbers)
