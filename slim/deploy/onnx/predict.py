"""Running an exported file: on normalised arrays, or on images just as they are."""

import glob
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from slim.deploy.onnx.session import brief, open_session
from slim.deploy.target import BatchUnit
from slim.errors import SlimError
from slim.images import IMAGE_FILES, MODES, decoders, read_image

LARGEST_SIZE = 2**16  # of an input, in metadata
LARGEST_NUMBER = 1e6
SHOWN = 80  # characters of metadata in an error

CLASSIFICATION, MULTILABEL = "classification", "multilabel"  # tasks whose outputs are classes


class OnnxModel:
    """An ONNX file with one input and one output, ready to run.

    `provider` is auto (CUDA where onnxruntime has it, else CPU), cpu, cuda, or an onnxruntime provider name;
    `threads` is the number of CPU threads, 0 for all cores. Afterwards `.provider` says which one runs, and
    `.classes`, `.mean`, `.std`, `.input_shape` (C, H, W) hold what the file's metadata says, None where it
    doesn't. `.raw` says whether the file takes raw images and normalises them itself (`export_onnx(preprocess=True)`).

    Raises SlimError for a file that is missing, isn't ONNX, needs a newer onnxruntime, or has unreadable metadata,
    and for a provider that isn't there.

    >>> net = slim.OnnxModel("thin.onnx", provider="cpu", threads=1)
    >>> net(images).shape
    (64, 4)
    """

    def __init__(self, path: str | Path, provider: str = "auto", threads: int = 0) -> None:
        self.path = Path(path)
        self._session = open_session(path, provider, threads)
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if len(inputs) != 1 or len(outputs) != 1 or inputs[0].type not in ("tensor(float)", "tensor(uint8)"):
            raise SlimError(
                f"{self.path.name} takes {[each.type for each in inputs]} and gives {len(outputs)} outputs: "
                "expected ['tensor(float)'] or ['tensor(uint8)'] and one output"
            )
        self._input = inputs[0]
        self.raw: bool = self._input.type == "tensor(uint8)"
        self.provider: str = self._session.get_providers()[0]
        self.metadata: dict[str, str] = self._session.get_modelmeta().custom_metadata_map
        self.batch = BatchUnit.of_dimension(self._input.shape[0] if self._input.shape else None)
        self.classes: list[str] | None = self._read("slim.classes", "names", _is_text)
        self.mean: list[float] | None = self._read("slim.mean", "numbers", _is_number)
        self.std: list[float] | None = self._read("slim.std", "numbers above 0", lambda v: _is_number(v) and v > 0)
        self.task: str = self.metadata.get("slim.task", CLASSIFICATION)
        self.input_shape: list[int] | None = self._read("slim.input_shape", "sizes", _is_size)

    def __call__(self, images: Any) -> np.ndarray:
        """Return logits [N, K], float32, for normalised `images` [N, C, H, W]: a float array (numpy or torch) of any
        N. A file with preprocessing takes uint8 [N, H, W, C], and gives probabilities. A file with a fixed batch runs
        as often as it takes, the last time on copies of the last image where images are missing.

        Raises SlimError for another shape or dtype, where the file leaves open a size that one of its nodes can't
        take, and where it takes multiples of a number of images and N is none.
        """
        given = self.checked(images)
        return np.concatenate([self._run(part) for part in self.parts(given)])[: len(given)]

    def parts(self, images: np.ndarray) -> list[np.ndarray]:
        """Return checked `images` in batches that the file takes."""
        if self.batch.holds(len(images)):
            return [images]
        if self.batch.multiples or not len(images):
            raise SlimError(f"{len(images)} images: {self.path.name} takes multiples of {self.batch.unit}")
        missing = -len(images) % self.batch.unit
        whole = np.concatenate([images, np.repeat(images[-1:], missing, 0)])
        return np.split(whole, len(whole) // self.batch.unit)

    def _run(self, images: np.ndarray) -> np.ndarray:
        quiet = onnxruntime.RunOptions()
        quiet.log_severity_level = 4  # the error says it
        try:
            outputs: np.ndarray = self._session.run(None, {self._input.name: images}, quiet)[0]
        except Exception as error:  # onnxruntime's own errors share no base class
            shape = list(images.shape)
            raise SlimError(f"{self.path.name} can't run on images of shape {shape}: {brief(error)}") from error
        return outputs

    def checked(self, images: Any) -> np.ndarray:
        """Return `images` as the file takes them. Raises SlimError for another shape or dtype."""
        if hasattr(images, "detach"):  # a torch tensor
            images = images.detach().cpu()
            images = images.float() if images.is_floating_point() else images
        images = np.asarray(images)
        if self.raw and images.dtype != np.uint8:
            raise SlimError(f"images of dtype {images.dtype}: {self.path.name} normalises by itself; expected uint8")
        if not self.raw and not np.issubdtype(images.dtype, np.floating):
            raise SlimError(f"images of dtype {images.dtype}: expected normalised floats; predict() takes raw images")
        wanted = [
            None,
            *(size if isinstance(size, int) else None for size in (self._input.shape or [])[1:]),
        ]  # None: any
        if images.ndim != len(wanted) or any(w not in (None, size) for size, w in zip(images.shape, wanted)):
            shown = ", ".join("N" if size is None else str(size) for size in wanted)
            raise SlimError(f"images of shape {list(images.shape)}: expected [{shown}]")
        return images.astype(np.uint8 if self.raw else np.float32, copy=False)

    def feeds(self, images: Any) -> list[dict[str, np.ndarray]]:
        """Return `images`, checked, as onnxruntime takes them: batch by batch."""
        return [{self._input.name: part} for part in self.parts(self.checked(images))]

    def predict(self, images: Any, top: int = 5, batch_size: int = 64) -> list[list[tuple[str, float]]]:
        """Return the `top` most probable (label, probability) of each image, best first.

        An image is a path, a PIL image or a uint8 array [H, W] or [H, W, 3]; a folder, a glob pattern such as
        "photos/*.jpg" and an array [N, H, W, C] stand for the images in them; `images` is one of these or a list of
        them (see `find_images`). An image is turned upright where its EXIF orientation asks for that, made grey or RGB
        as the network takes it, resized to the network's input size (bilinear; the aspect ratio is not kept), scaled
        to 0..1 and normalised with the file's mean and std. Labels are the file's class names, or the class index
        where it has none. Images go through the network `batch_size` at a time.

        A file for the task multilabel gives the probability of each class for itself.

        Raises SlimError for an image that can't be read or isn't 8-bit, an array of another shape or dtype,
        a file without the metadata that this needs, and one for another task.
        """
        return [best for _, best in self.stream(find_images(images), top, batch_size)]

    def stream(
        self,
        images: list[Any],
        top: int = 5,
        batch_size: int = 64,
        on_error: Callable[[Any, SlimError], None] | None = None,
    ) -> Iterator[tuple[Any, list[tuple[str, float]]]]:
        """Yield each image with what `predict` says of it, as soon as its batch is done. `images` are single ones.

        With `on_error`, an image that can't be read is given to it and left out; without, it raises SlimError.
        """
        for name, value in (("top", top), ("batch_size", batch_size)):
            if not isinstance(value, (int, np.integer)) or value < 1:
                raise SlimError(f"{name} {value!r}: expected a whole number of at least 1")
        if self.task not in (CLASSIFICATION, MULTILABEL):
            raise SlimError(
                f"{self.path.name} is for task {self.task!r}, and gives no classes to predict: expected one for "
                f"{CLASSIFICATION} or {MULTILABEL}; call the model itself on normalised arrays"
            )
        (channels, height, width), mean, std = self._preprocessing()
        most = decoders(2 * (os.cpu_count() or 1))
        with ThreadPoolExecutor(most) as pool:  # Pillow decodes outside the interpreter lock
            for start in range(0, len(images), batch_size):
                batch = images[start : start + batch_size]
                kept, arrays = [], []
                for image, loading in [
                    (image, pool.submit(read_image, image, (height, width), channels)) for image in batch
                ]:
                    try:
                        arrays.append(loading.result())
                        kept.append(image)
                    except SlimError as error:
                        if on_error is None:
                            raise
                        on_error(image, error)
                if kept:
                    pixels = np.stack(arrays)
                    if self.raw:
                        rows = self(pixels)
                    else:
                        normalised = (pixels.transpose(0, 3, 1, 2).astype(np.float32) / 255 - mean) / std
                        rows = self(normalised)
                    yield from zip(kept, [self._best(row, top) for row in rows], strict=True)

    def _read(self, key: str, of_what: str, fits: Callable[[Any], bool]) -> Any:
        """Return a list from the metadata, of entries that are as they should be; None where it has none."""
        if key not in self.metadata:
            return None
        text = self.metadata[key]
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, list) or not found or not all(map(fits, found)):
            shown = text if len(text) <= SHOWN else text[:SHOWN] + "…"
            raise SlimError(f"{self.path.name} has metadata {key} = {shown!r}: expected a JSON list of {of_what}")
        return found

    def _preprocessing(self) -> tuple[list[int], np.ndarray, np.ndarray]:
        """Return input shape [C, H, W], mean and std [C, 1, 1] (of which a file that normalises by itself has no
        need)."""
        needed: dict[str, Any] = {"slim.input_shape": self.input_shape}
        if not self.raw:
            needed |= {"slim.mean": self.mean, "slim.std": self.std}
        missing = [key for key, value in needed.items() if value is None]
        if missing:
            raise SlimError(
                f"{self.path.name} has no {', '.join(missing)} in its metadata: predict expects a file that "
                "slim.export_onnx wrote with mean and std; call the model itself on normalised arrays"
            )
        assert self.input_shape is not None
        if len(self.input_shape) != 3 or self.input_shape[0] not in MODES:
            raise SlimError(f"{self.path.name} takes inputs of shape {self.input_shape}: expected grey or RGB images")
        for key, values in (("slim.mean", self.mean), ("slim.std", self.std)):
            if not self.raw and values is not None and len(values) != self.input_shape[0]:
                raise SlimError(
                    f"{self.path.name} has metadata {key} of {len(values)} numbers: expected one for each of the "
                    f"{self.input_shape[0]} channels"
                )
        mean, std = (np.array(values or [], np.float32).reshape(-1, 1, 1) for values in (self.mean, self.std))
        return self.input_shape, mean, std

    def _best(self, outputs: np.ndarray, top: int) -> list[tuple[str, float]]:
        if outputs.ndim != 1 or (self.classes is not None and len(self.classes) != len(outputs)):
            raise SlimError(
                f"{self.path.name} gives {list(outputs.shape)} numbers for an image: expected one for each "
                + ("class" if self.classes is None else f"of its {len(self.classes)} classes")
            )
        if not np.isfinite(outputs).all():
            raise SlimError(f"{self.path.name} gives values that aren't finite: expected numbers for each class")
        probabilities = outputs if self.raw else _sigmoid(outputs) if self.task == MULTILABEL else _softmax(outputs)
        best = np.argsort(-probabilities, kind="stable")[:top]
        return [(self.classes[i] if self.classes else str(i), float(probabilities[i])) for i in best]


def find_images(images: Any) -> list[Any]:
    """Return `images`, one or a list of them, as a list of single images.

    A folder stands for the image files in it, at any depth, and text with *, ? or [ that names no file for the files
    that it matches, both in order of their names; an array [N, H, W, C] stands for its N images.
    Raises SlimError for a folder or a pattern without images.
    """
    if not isinstance(images, (list, tuple)):
        images = [images]
    found: list[Any] = []
    for image in images:
        if isinstance(image, np.ndarray) and image.ndim == 4:
            found += list(image)
        elif isinstance(image, (str, os.PathLike)) and not os.path.isfile(image):
            found += _files(os.fspath(image))
        else:
            found.append(image)
    return found


def _files(path: str) -> list[str]:
    if os.path.isdir(path):
        files = [str(file) for file in sorted(Path(path).rglob("*")) if _is_image(file)]
        if not files:
            raise SlimError(f"folder {path!r} holds no image: expected {', '.join(IMAGE_FILES)} files")
        return files
    if glob.has_magic(path):
        files = sorted(file for file in glob.glob(path, recursive=True) if os.path.isfile(file))
        if not files:
            raise SlimError(f"no file matches {path!r}: expected a path or a pattern of image files")
        return files
    return [path]  # which isn't there: opening it says so


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_FILES and not path.is_dir()


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < LARGEST_NUMBER


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= LARGEST_SIZE


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    shares: np.ndarray = 0.5 + 0.5 * np.tanh(logits / 2)  # exp could overflow
    return shares


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers: np.ndarray = np.exp(logits - logits.max(), dtype=np.float64)
    return powers / powers.sum()
