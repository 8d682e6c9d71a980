"""Running an exported file: on normalised arrays, or on images just as they are."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from slim.errors import SlimError
from slim.export.session import open_session

PIL_MODES = {1: "L", 3: "RGB"}  # channels -> how Pillow calls such an image
EIGHT_BIT_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV")


class OnnxModel:
    """An ONNX file with one input and one output, ready to run.

    `provider` is auto (CUDA where onnxruntime has it, else CPU), cpu, cuda, or an onnxruntime provider name;
    `threads` is the number of CPU threads, 0 for all cores. Afterwards `.provider` says which one runs, and
    `.classes`, `.mean`, `.std`, `.input_shape` (C, H, W) hold what the file's metadata says, None where it
    doesn't.

    Raises SlimError for a file that is missing, isn't ONNX, or has unreadable metadata, and for a provider
    that isn't there.
    """

    def __init__(self, path: str | Path, provider: str = "auto", threads: int = 0) -> None:
        self.path = Path(path)
        self._session = open_session(path, provider, threads)
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if len(inputs) != 1 or len(outputs) != 1 or inputs[0].type != "tensor(float)":
            raise SlimError(
                f"{self.path.name} takes {[each.type for each in inputs]} and gives {len(outputs)} outputs: "
                "expected ['tensor(float)'] and one output"
            )
        self._input = inputs[0]
        self.provider: str = self._session.get_providers()[0]
        self.metadata: dict[str, str] = self._session.get_modelmeta().custom_metadata_map
        self.classes: list[str] | None = self._read("slim.classes")
        self.mean: list[float] | None = self._read("slim.mean")
        self.std: list[float] | None = self._read("slim.std")
        self.input_shape: list[int] | None = self._read("slim.input_shape")

    def __call__(self, images: Any) -> np.ndarray:
        """Logits [N, K], float32, for normalised `images` [N, C, H, W]: a float array (numpy or torch) of any
        N.

        Raises SlimError for another shape or an integer dtype.
        """
        if hasattr(images, "detach"):  # a torch tensor
            images = images.detach().cpu()
            images = images.float() if images.is_floating_point() else images
        images = np.asarray(images)
        if not np.issubdtype(images.dtype, np.floating):
            raise SlimError(f"images of dtype {images.dtype}: expected normalised floats; predict() takes raw images")
        wanted = [size if isinstance(size, int) else None for size in self._input.shape]  # None: any
        if images.ndim != len(wanted) or any(w not in (None, size) for size, w in zip(images.shape, wanted)):
            shown = ", ".join("N" if size is None else str(size) for size in wanted)
            raise SlimError(f"images of shape {list(images.shape)}: expected [{shown}]")
        return self._session.run(None, {self._input.name: images.astype(np.float32, copy=False)})[0]

    def predict(self, images: list[Any], top: int = 5, batch_size: int = 64) -> list[list[tuple[str, float]]]:
        """The `top` most probable (label, probability) of each image, best first.

        An image is a path, a PIL image or a uint8 array [H, W] or [H, W, 3]. It is turned grey or RGB as the
        network takes it, resized to the network's input size (bilinear; the aspect ratio is not kept), scaled
        to 0..1 and normalised with the file's mean and std. Labels are the file's class names, or the class
        index where it has none. Images go through the network `batch_size` at a time.

        Raises SlimError for an image that can't be read or isn't 8-bit, an array of another shape or dtype,
        and a file without the metadata that this needs.
        """
        if not isinstance(images, (list, tuple)):
            raise SlimError(f"predict got {type(images).__name__}: expected a list of images")
        if top < 1:
            raise SlimError(f"top {top}: expected at least 1")
        shape, mean, std = self._preprocessing()
        results = []
        for start in range(0, len(images), batch_size):
            arrays = [self._load(image, shape) for image in images[start : start + batch_size]]
            pixels = np.stack(arrays).astype(np.float32) / 255
            logits = self((pixels - mean) / std)
            results += [self._best(row, top) for row in logits]
        return results

    def _read(self, key: str) -> Any:
        if key not in self.metadata:
            return None
        try:
            return json.loads(self.metadata[key])
        except ValueError:
            raise SlimError(f"{self.path.name} has metadata {key} = {self.metadata[key]!r}: expected JSON") from None

    def _preprocessing(self) -> tuple[list[int], np.ndarray, np.ndarray]:
        """Input shape [C, H, W], mean and std [C, 1, 1]."""
        needed = {"slim.input_shape": self.input_shape, "slim.mean": self.mean, "slim.std": self.std}
        missing = [key for key, value in needed.items() if value is None]
        if missing:
            raise SlimError(
                f"{self.path.name} has no {', '.join(missing)} in its metadata: predict expects a file that "
                "slim.export_onnx wrote with mean and std; call the model itself on normalised arrays"
            )
        for key, value in needed.items():
            if not isinstance(value, list) or not all(isinstance(v, (int, float)) for v in value):
                raise SlimError(f"{self.path.name} has metadata {key} = {value!r}: expected a list of numbers")
        assert self.input_shape is not None
        if len(self.input_shape) != 3 or self.input_shape[0] not in PIL_MODES:
            raise SlimError(f"{self.path.name} takes inputs of shape {self.input_shape}: expected grey or RGB images")
        mean, std = (np.array(values, np.float32).reshape(-1, 1, 1) for values in (self.mean, self.std))
        return self.input_shape, mean, std

    def _load(self, image: Any, shape: list[int]) -> np.ndarray:
        """One image as uint8 [C, H, W]."""
        channels, height, width = shape
        picture = _open(image)
        if picture.mode not in EIGHT_BIT_MODES:
            raise SlimError(f"{_describe(image)} has mode {picture.mode}: expected 8-bit grey or colour")
        picture = picture.convert(PIL_MODES[channels])
        if picture.size != (width, height):
            picture = picture.resize((width, height), Image.Resampling.BILINEAR)
        return np.asarray(picture).reshape(height, width, channels).transpose(2, 0, 1)

    def _best(self, logits: np.ndarray, top: int) -> list[tuple[str, float]]:
        if logits.ndim != 1 or (self.classes is not None and len(self.classes) != len(logits)):
            raise SlimError(
                f"{self.path.name} gives {list(logits.shape)} numbers for an image: expected one for each "
                + ("class" if self.classes is None else f"of its {len(self.classes)} classes")
            )
        powers = np.exp(logits - logits.max(), dtype=np.float64)
        probabilities = powers / powers.sum()
        best = np.argsort(-probabilities, kind="stable")[:top]
        return [(self.classes[i] if self.classes else str(i), float(probabilities[i])) for i in best]


def _open(image: Any) -> Image.Image:
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, (str, os.PathLike)):
        try:
            with Image.open(image) as picture:
                picture.load()
                return picture
        except (
            OSError,
            ValueError,
            SyntaxError,
            Image.DecompressionBombError,
        ) as error:  # Pillow raises all of these
            reason = "no such file" if isinstance(error, FileNotFoundError) else "not an image that Pillow can read"
            raise SlimError(f"{_describe(image)}: {reason}") from error
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (1, 3))):
            raise SlimError(f"{_describe(image)}: expected uint8 [H, W] or [H, W, 3]")
        if image.size == 0:
            raise SlimError(f"{_describe(image)}: expected at least one pixel")
        return Image.fromarray(image[..., 0] if image.shape[2:] == (1,) else image)
    raise SlimError(f"{_describe(image)}: expected a path, a PIL image or a uint8 array")


def _describe(image: Any) -> str:
    if isinstance(image, (str, os.PathLike)):
        return f"image {os.fspath(image)!r}"
    if isinstance(image, np.ndarray):
        return f"array of dtype {image.dtype} and shape {list(image.shape)}"
    return f"image of type {type(image).__name__}"
