"""Images that stay in their files, and the worker processes that decode them."""

import os
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from slim.errors import SlimError
from slim.images import read_image
from slim.workbench.malloc import give_back_freed_memory

PREFETCHED = 4  # batches that each worker has ready or in work
TIDY_EVERY = 16  # batches
CHUNK = 64  # images that a worker decodes at a time, where all are wanted
WORTHWHILE = 512  # images: below that, starting processes takes longer than decoding


@dataclass(frozen=True)
class ImageFiles:
    """RGB images in files, as the images of a `Split`: uint8 [N, 3, H, W], decoded when they are asked for.

    `names` are the files, as bytes relative to `root`, in one array: worker processes share its memory, which they
    would copy page by page if it were a list. Images of another size are scaled to `image_size` = (H, W) if `resize`,
    and else an error.
    """

    root: str
    names: np.ndarray  # of bytes, [N]
    image_size: tuple[int, int]
    resize: bool
    workers: int

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return len(self.names), 3, *self.image_size

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: Tensor | slice) -> "ImageFiles":
        names = self.names[index.cpu().numpy() if isinstance(index, Tensor) else index]
        return ImageFiles(self.root, names, self.image_size, self.resize, self.workers)

    def to(self, device: torch.device | str) -> "ImageFiles":
        """Files stay where they are."""
        return self

    def stream(self, indices: Iterable[Tensor | slice], device: torch.device | str) -> Iterator[Tensor]:
        """For each index of a batch its images, uint8 [B, 3, H, W], on `device`. The next are decoded meanwhile."""
        device = torch.device(device)
        loader = self._loader([self._numbers(index) for index in indices], pinned=device.type == "cuda")
        for number, images in enumerate(loader, 1):
            if number % TIDY_EVERY == 0:
                give_back_freed_memory()
            if isinstance(images, str):
                raise SlimError(images)
            yield images.to(device, non_blocking=True)

    def decoded(self) -> Tensor:
        """All images in memory, uint8 [N, 3, H, W]."""
        from rich.console import Console
        from rich.progress import Progress

        images = torch.empty(len(self), *self.image_size, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
        chunks = [slice(start, start + CHUNK) for start in range(0, len(self), CHUNK)]
        with Progress(console=Console(stderr=True), transient=True, disable=len(self) < 2 * WORTHWHILE) as bar:
            task = bar.add_task("decoding images", total=len(self))
            for chunk, part in zip(chunks, self.stream(chunks, "cpu")):
                images[chunk] = part
                bar.update(task, advance=len(part))
        return images.contiguous()

    def _numbers(self, index: Tensor | slice) -> np.ndarray:
        return index.cpu().numpy() if isinstance(index, Tensor) else np.arange(len(self))[index]

    def _loader(self, batches: Sequence[np.ndarray], pinned: bool) -> DataLoader:
        images = sum(map(len, batches))
        workers = min(self.workers, len(batches)) if images >= WORTHWHILE else 0
        return DataLoader(
            _Decoder(self),  # type: ignore[arg-type]  # a batch of numbers in, a batch of images out
            batch_size=None,
            sampler=batches,
            num_workers=workers,
            prefetch_factor=PREFETCHED if workers else None,
            pin_memory=pinned,
            generator=torch.Generator(),  # else it draws from torch's global one, and training would differ
            worker_init_fn=_heed_the_main_process_alone,
        )


def _heed_the_main_process_alone(_: int) -> None:
    """In a worker: signals to end come to all processes of a group alike (from a terminal, torchrun, SLURM). The main
    process then finishes its step, for which it may need this worker; only what it sends itself counts."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):  # macOS, Windows: nothing tells who sent a signal
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    threading.Thread(target=_end_when_the_main_process_says_so, daemon=True).start()


def _end_when_the_main_process_says_so() -> None:
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != os.getppid():
        pass
    os._exit(0)


@dataclass(frozen=True)
class _Decoder:
    """Decodes batches, in a worker. A mistake is handed over as text: an exception would bring its traceback."""

    files: ImageFiles

    def __getitem__(self, numbers: np.ndarray) -> Tensor | str:
        height, width = self.files.image_size
        images = np.empty((len(numbers), height, width, 3), np.uint8)
        for image, name in zip(images, self.files.names[numbers]):
            path = Path(self.files.root, os.fsdecode(name))
            try:
                pixels = read_image(path, (height, width) if self.files.resize else None)
                if pixels.shape != image.shape:
                    first = Path(self.files.root, os.fsdecode(self.files.names[0]))
                    return (
                        f"{str(path)!r} is {in_pixels(pixels.shape)}, but {str(first)!r} is {in_pixels(image.shape)}: "
                        "images of different sizes need data.image_size"
                    )
            except SlimError as error:
                return str(error)
            image[:] = pixels
        return torch.from_numpy(images).permute(0, 3, 1, 2)


def in_pixels(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}×{shape[0]} pixels"
