"""Images that stay in their files, and the worker processes that decode them."""

import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from slim.errors import SlimError
from slim.images import MOST_PIXELS, read_image
from slim.progress import progress
from slim.workbench.data.workers import Workers, watched
from slim.workbench.malloc import give_back_freed_memory

TIDY_EVERY = 16  # batches
CHUNK = 64  # images that a worker decodes at a time, where all are wanted
WORTHWHILE = 512  # images: below that, starting processes takes longer than decoding


@dataclass(frozen=True)
class ImageFiles:
    """RGB images in files, as the images of a `Split`: uint8 [N, 3, H, W], decoded when they are asked for.

    `names` are the files, as bytes relative to `root`, in one array: worker processes share its memory, which they
    would copy page by page if it were a list. Images of another size are scaled to `image_size` = (H, W) if `resize`,
    and else an error, as are those of more than `max_pixels` before that. `timeout` is how many seconds a batch may
    take; 0: any.
    """

    root: str
    names: np.ndarray  # of bytes, [N]
    image_size: tuple[int, int]
    resize: bool
    workers: int
    max_pixels: int = MOST_PIXELS
    timeout: float = 60.0

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return len(self.names), 3, *self.image_size

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: Tensor | slice) -> "ImageFiles":
        names = self.names[index.cpu().numpy() if isinstance(index, Tensor) else index]
        return replace(self, names=names)

    def to(self, device: torch.device | str) -> "ImageFiles":
        """Files stay where they are."""
        return self

    def stream(self, indices: Iterable[Tensor | slice], device: torch.device | str) -> Iterator[Tensor]:
        """For each index of a batch its images, uint8 [B, 3, H, W], on `device`. The next are decoded meanwhile."""
        device = torch.device(device)
        batches = [self._numbers(index) for index in indices]
        shape = max(map(len, batches), default=0), *self.image_size, 3
        wanted = min(self.workers, len(batches)) if sum(map(len, batches)) >= WORTHWHILE else 0
        workers = Workers.fitting(wanted, math.prod(shape))
        decoder = _Decoder(self, workers.shared(shape))
        loader = workers.loader(decoder, list(enumerate(batches)), self.timeout)
        for number, answer in enumerate(watched(loader, self.root)):
            if number % TIDY_EVERY == 0:
                give_back_freed_memory()
            if isinstance(answer, str):
                raise SlimError(answer)
            images = decoder.place(number, len(batches[number])).copy() if answer is None else answer
            found = torch.from_numpy(images).permute(0, 3, 1, 2)
            yield found.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else found.to(device)

    def decoded(self) -> Tensor:
        """Return all images in memory, uint8 [N, 3, H, W]."""
        images = torch.empty(len(self), *self.image_size, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
        chunks = [slice(start, start + CHUNK) for start in range(0, len(self), CHUNK)]
        with progress("decoding images", len(self)) as advance:
            for chunk, part in zip(chunks, self.stream(chunks, "cpu")):
                images[chunk] = part
                advance(len(part))
        return images.contiguous()

    def _numbers(self, index: Tensor | slice) -> np.ndarray:
        return index.cpu().numpy() if isinstance(index, Tensor) else np.arange(len(self))[index]


@dataclass(frozen=True)
class _Decoder:
    """Decodes batches, in a worker: into `slots`, memory that it shares with the main process, where there is some. A
    mistake is handed over as text: an exception would bring its traceback."""

    files: ImageFiles
    slots: np.ndarray | None  # uint8 [slots, B, H, W, 3], used in turn

    def place(self, number: int, count: int) -> np.ndarray:
        """Return where the images of a batch are decoded to."""
        if self.slots is None:
            return np.empty((count, *self.files.image_size, 3), np.uint8)
        place: np.ndarray = self.slots[number % len(self.slots), :count]
        return place

    def __getitem__(self, batch: tuple[int, np.ndarray]) -> np.ndarray | str | None:
        number, names = batch
        images = self.place(number, len(names))
        for image, name in zip(images, self.files.names[names]):
            path = Path(self.files.root, os.fsdecode(name))
            try:
                size = self.files.image_size if self.files.resize else None
                pixels = read_image(path, size, max_pixels=self.files.max_pixels)
                if pixels.shape != image.shape:
                    first = Path(self.files.root, os.fsdecode(self.files.names[0]))
                    return (
                        f"{str(path)!r} is {in_pixels(pixels.shape)}, but {str(first)!r} is {in_pixels(image.shape)}: "
                        "images of different sizes need data.image_size"
                    )
            except SlimError as error:
                return str(error)
            image[:] = pixels
        return images if self.slots is None else None


def in_pixels(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}×{shape[0]} pixels"
