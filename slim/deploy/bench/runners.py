"""What a benchmark times: an ONNX file in onnxruntime, or a checkpoint in PyTorch.

A runner makes, for a batch size, a call without arguments: one batch of random input through the network, from
memory where it lies ready to memory where it stays (the GPU's, for a provider on the GPU).
"""

import contextlib
import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from slim.deploy.onnx.session import ON_GPU, SESSION_SETTINGS, open_session, ready_call, start_provider
from slim.errors import SlimError

DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(uint8)": np.uint8,
}

Call = Callable[[], Any]


class Runner(Protocol):
    path: Path
    threads: int
    provider: str  # what it runs on, by onnxruntime's name
    mode: str  # "onnx", "eager" or "compiled"
    fixed_batch: int | None  # the only batch size that it takes

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Of one image at each input: channels, height, width, however they lie in memory."""
        ...

    def prepare(self, batch_size: int) -> Call: ...

    @property
    def file_size(self) -> int | None: ...


def is_checkpoint(path: str | Path) -> bool:
    return str(path).endswith(".safetensors")


def open_runners(
    name: str,
    path: str | Path,
    provider: str,
    threads: int,
    image_size: int | None = None,
    compiled: bool = True,
    allow_code: str | Collection[str] = (),
) -> "dict[str, Runner]":
    """The runners of a file by their names: one of an ONNX file, one or two of a checkpoint."""
    if not is_checkpoint(path):
        return {name: OnnxRunner(name, path, provider, threads, image_size)}
    modes = ["eager", "compiled"] if compiled else ["eager"]
    return {f"{name} ({mode})": TorchRunner(path, provider, threads, mode, allow_code, image_size) for mode in modes}


def shapes_in_words(shapes: list[tuple[int, ...]]) -> str:
    """Such as "3×32×32"; with several inputs "3×32×32 and 10"."""
    return " and ".join("×".join(map(str, shape)) for shape in shapes)


def _refuse_other_size(name: str, shapes: list[tuple[int, ...]], image_size: int | None) -> None:
    if image_size and all(shape[-2:] != (image_size, image_size) for shape in shapes):
        raise SlimError(
            f"image_size {image_size}: {name!r} takes {shapes_in_words(shapes)} alone: expected no --image_size, or "
            "files that leave height and width open"
        )


class OnnxRunner:
    mode = "onnx"

    def __init__(self, name: str, path: str | Path, provider: str, threads: int, image_size: int | None = None) -> None:
        self.name, self.path, self.threads, self.image_size = name, Path(path), threads, image_size
        self.session = open_session(path, provider, threads, SESSION_SETTINGS)
        self.provider: str = self.session.get_providers()[0]
        batches = [entry.shape[0] for entry in self.session.get_inputs() if entry.shape]
        self.fixed_batch: int | None = next((batch for batch in batches if isinstance(batch, int)), None)
        if image_size:
            _refuse_other_size(name, self.shapes, image_size)

    @property
    def file_size(self) -> int | None:
        return self.path.stat().st_size

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        found = []
        for entry in self.session.get_inputs():
            sizes = self._sizes(entry)
            if entry.type == "tensor(uint8)" and len(sizes) == 3:
                sizes = [sizes[2], *sizes[:2]]
            found.append(tuple(sizes))
        return found

    def check_batch(self, batch_size: int) -> None:
        """Raises SlimError for a batch size that the file can't take."""
        if self.fixed_batch not in (None, batch_size):
            raise SlimError(
                f"batch size {batch_size}: {self.name!r} has the fixed batch size {self.fixed_batch}: expected "
                f"--batch_sizes [{self.fixed_batch}]"
            )

    def prepare(self, batch_size: int) -> Call:
        return ready_call(self.session, self.feed(batch_size), repr(self.name))

    def feed(self, batch_size: int) -> dict[str, np.ndarray]:
        """Random inputs: standard normal, or any pixel where the file takes bytes."""
        self.check_batch(batch_size)
        random = np.random.default_rng(0)
        feed = {}
        for entry in self.session.get_inputs():
            if entry.type not in DTYPES:
                raise SlimError(
                    f"input {entry.name!r} of {self.name!r} is {entry.type}: expected one of {', '.join(DTYPES)}"
                )
            if not entry.shape:
                raise SlimError(
                    f"input {entry.name!r} of {self.name!r} is a scalar, or its number of dimensions is open: expected "
                    "the batch as its first dimension"
                )
            shape = (batch_size, *self._sizes(entry))
            if entry.type == "tensor(uint8)":
                feed[entry.name] = random.integers(0, 256, shape, dtype=np.uint8)
            else:
                feed[entry.name] = random.standard_normal(shape).astype(DTYPES[entry.type])
        return feed

    def _sizes(self, entry: Any) -> list[int]:
        """The shape of an input after the batch; what it leaves open is the image size asked for, or the one that
        slim.export_onnx noted."""
        sizes = list(entry.shape[1:])
        if all(isinstance(size, int) for size in sizes):
            return sizes
        noted: list[int] = []
        with contextlib.suppress(ValueError, KeyError):
            noted = json.loads(self.session.get_modelmeta().custom_metadata_map["slim.input_shape"])[-2:]
        image = [self.image_size] * 2 if self.image_size else noted
        first = 0 if entry.type == "tensor(uint8)" else len(sizes) - 2  # [N, H, W, C] or [N, C, …, H, W]
        if len(image) == 2 and len(sizes) >= 2:
            sizes[first : first + 2] = [
                size if isinstance(size, int) else wanted for size, wanted in zip(sizes[first : first + 2], image)
            ]
        if not all(isinstance(size, int) for size in sizes):
            raise SlimError(
                f"input {entry.name!r} of {self.name!r} has shape {entry.shape}: expected only the batch open, or an "
                "image size (--image_size) for height and width"
            )
        return sizes


class TorchRunner:
    """A checkpoint in PyTorch; its threads are set for the whole process."""

    fixed_batch: int | None = None

    def __init__(
        self,
        path: str | Path,
        provider: str,
        threads: int,
        mode: str = "eager",
        allow_code: str | Collection[str] = (),
        image_size: int | None = None,
    ) -> None:
        import torch

        from slim import checkpoint, load

        self.path, self.threads, self.mode = Path(path), threads, mode
        self.provider = start_provider(provider)
        self.device = "cuda" if self.provider in ON_GPU else "cpu"
        if self.device == "cuda" and not torch.cuda.is_available():
            raise SlimError(f"provider {provider!r} has a GPU, which this PyTorch doesn't see: expected provider cpu")
        self.shape = checkpoint.read_metadata(path)["input_shape"]
        if self.shape is None:
            raise SlimError(f"{path} doesn't say how large its images are: expected input_shape in slim.save")
        _refuse_other_size(str(path), self.shapes, image_size)
        if threads:
            torch.set_num_threads(threads)
        model = load(path, allow_code=allow_code).to(self.device)
        self.eager: Callable[..., Any] = model
        self.model = torch.compile(model, dynamic=False) if mode == "compiled" else model

    @property
    def file_size(self) -> int | None:
        return self.path.stat().st_size

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        return [tuple(self.shape)]

    def prepare(self, batch_size: int) -> Call:
        import torch

        images = torch.randn(batch_size, *self.shape, generator=torch.Generator().manual_seed(0)).to(self.device)

        def call(run: Callable[..., Any] = self.model) -> None:
            with torch.inference_mode():
                run(images)
            if self.device == "cuda":
                torch.cuda.synchronize()

        try:
            call(self.eager)  # what fails here isn't the compiler's fault
        except Exception as error:
            raise SlimError(
                f"{self.path} doesn't run on images {list(images.shape)}: expected a batch and an input_shape that fit "
                f"it ({_first_line(error)})"
            ) from error
        if self.mode == "compiled":
            try:
                call()  # compiles
            except Exception as error:
                raise SlimError(
                    f"torch.compile can't compile {self.path} here ({_first_line(error)}); expected a C++ compiler, or "
                    "--compiled false"
                ) from error
        return call


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
