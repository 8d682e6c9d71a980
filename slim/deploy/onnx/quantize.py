"""A float ONNX file as an INT8 one: quantised statically, and kept only if it predicts as well."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx

from slim.batches import in_batches
from slim.deploy.onnx.predict import OnnxModel
from slim.deploy.onnx.session import brief, silence
from slim.deploy.processor import saturates
from slim.errors import SlimError
from slim.files import replacing
from slim.progress import progress


@dataclass(frozen=True)
class Int8Report:
    """What `slim.quantize_onnx` wrote, and how well it predicts."""

    path: Path
    file_size: int  # bytes
    accuracy: float  # of the INT8 file, 0 to 1; without labels, the share of images on which both files agree
    float_accuracy: float  # of the float file; 1 without labels
    images: int  # that both were compared on; 0 where a function told how good they are

    @property
    def loss(self) -> float:
        """Return what quantisation costs: below 0 where INT8 is the better one."""
        return self.float_accuracy - self.accuracy


def quantize_onnx(
    source: str | Path,
    path: str | Path,
    calibration: Any,
    test: Iterable[tuple[Any, Any]] | Callable[[OnnxModel], float],
    *,
    max_loss: float = 0.01,
    method: Literal["minmax", "entropy", "percentile"] = "minmax",
    reduce_range: bool | Literal["auto"] = "auto",
) -> Int8Report:
    """Quantise the classifier in `source` to INT8 and write it to `path`.

    The file holds QuantizeLinear and DequantizeLinear around each operator, which onnxruntime turns into integer
    kernels: weights int8 with a scale for each output channel, activations uint8 with ranges found on the
    calibration images (onnxruntime.quantization, QDQ format; Nagel et al., "A White Paper on Neural Network
    Quantization", arXiv:2106.08295, section 3). Metadata is kept.

    calibration: images as the file takes them (an array or tensor, such as float [N, C, H, W]), or batches of them,
        with targets or without (a DataLoader, a list).
    test: batches (images, labels [N]) to compare both files on; labels None: by how often they agree. Or how
        good a file is, a function of it: more where it is better.
    max_loss: share of the test images, 0 to 1, that INT8 may lose; or how much of what `test` returns.
    method: how a range follows from the values seen; entropy and percentile keep all of them in memory.
    reduce_range: weights in 7 bits, for x86 processors without VNNI, where sums of 8-bit products saturate. "auto":
        where this machine's is such.

    Raises SlimError where `source` can't be quantised, either set is empty, or INT8 loses more than `max_loss`: then
    what was at `path` stays.
    """
    before = OnnxModel(source)
    feeds = _Feeds(before, calibration)
    model = onnx.load(source)
    try:
        with replacing(path) as temporary:
            reduced = saturates() if reduce_range == "auto" else reduce_range
            _quantize(model, temporary, feeds, method, reduce_range=reduced)
            _keep_metadata(model, temporary)
            accuracy, float_accuracy, images = _compare(before, OnnxModel(temporary), test)
            if float_accuracy - accuracy > max_loss:
                raise SlimError(
                    f"INT8 {_told(accuracy, float_accuracy, images)}: expected a loss of at most {max_loss:.2%}; "
                    f"{Path(path).name} was not kept"
                )
            size = temporary.stat().st_size
    except SlimError:
        raise
    except Exception as error:  # onnxruntime.quantization raises errors of many kinds
        if not feeds.count:
            raise SlimError("no calibration images: expected at least one, to find the ranges of activations") from None
        raise SlimError(f"{str(source)!r} can't be quantised to INT8: {brief(error)}") from error
    return Int8Report(Path(path), size, accuracy, float_accuracy, images)


def _quantize(model: onnx.ModelProto, path: Path, feeds: "_Feeds", method: str, *, reduce_range: bool) -> None:
    from onnxruntime import quantization  # takes a second, and only this function needs it

    with progress("quantising to INT8", 1), silence():
        quantization.quantize_static(
            model,
            path,
            feeds,
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            reduce_range=reduce_range,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=_method(method),
            nodes_to_exclude=_in_float(model),
        )


class _Feeds:
    """Calibration batches as onnxruntime.quantization reads them, one by one."""

    def __init__(self, model: OnnxModel, batches: Any) -> None:
        self.count = 0
        self._feeds = self._all(model, batches)

    def _all(self, model: OnnxModel, batches: Any) -> Iterator[dict[str, np.ndarray]]:
        for images in in_batches(batches):
            self.count += len(images)
            yield from model.feeds(images)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._feeds, None)

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return self._feeds


def _method(name: str) -> Any:
    from onnxruntime.quantization import CalibrationMethod

    return {
        "minmax": CalibrationMethod.MinMax,
        "entropy": CalibrationMethod.Entropy,
        "percentile": CalibrationMethod.Percentile,
    }[name]


def _in_float(model: onnx.ModelProto) -> list[str]:
    """Return names of the nodes that stay: preprocessing up to the first Transpose, and Softmax, of a file with
    both."""
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    if "slim.preprocessing" not in metadata:
        return []
    kinds = [node.op_type for node in model.graph.node]
    first = kinds.index("Transpose") + 1
    return [node.name for i, node in enumerate(model.graph.node) if i < first or node.op_type == "Softmax"]


def _keep_metadata(source: onnx.ModelProto, path: Path) -> None:
    model = onnx.load(path)
    onnx.helper.set_model_props(model, {entry.key: entry.value for entry in source.metadata_props})
    model.producer_name, model.producer_version = source.producer_name, source.producer_version
    onnx.save(model, path)


def _compare(
    before: OnnxModel, after: OnnxModel, test: Iterable[tuple[Any, Any]] | Callable[[OnnxModel], float]
) -> tuple[float, float, int]:
    """Return how good `after` and `before` are, and on how many images that was counted here."""
    if callable(test):
        return test(after), test(before), 0
    right, right_before, count = 0, 0, 0
    for images, labels in test:
        expected = before(images).argmax(1)
        truth = expected if labels is None else np.asarray(labels)
        right += int((after(images).argmax(1) == truth).sum())
        right_before += int((expected == truth).sum())
        count += len(truth)
    if not count:
        raise SlimError("no test images: expected at least one, to compare INT8 with float")
    return right / count, right_before / count, count


def _told(accuracy: float, float_accuracy: float, images: int) -> str:
    if not images:
        return f"reaches {abs(accuracy):.4g} where float reaches {abs(float_accuracy):.4g}"
    return f"is right on {accuracy:.2%} where float is on {float_accuracy:.2%} on {images} images"
