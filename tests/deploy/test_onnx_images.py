"""OnnxModel on images, against a separate numpy implementation."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deploy.onnx_networks import CLASSES, run_raw, softmax
from PIL import ExifTags, Image, ImageOps

from slim.deploy.onnx.predict import OnnxModel, find_images
from slim.errors import SlimError
from slim.images import read_image


def resize_matrix(old: int, new: int) -> np.ndarray:
    """[new, old]: triangle filter, widened by the scale when shrinking (bilinear with antialiasing)."""
    scale = old / new
    centres = (np.arange(new) + 0.5) * scale - 0.5
    weights = np.maximum(0, 1 - np.abs(np.arange(old) - centres[:, None]) / max(scale, 1))
    return weights / weights.sum(1, keepdims=True)


def reference(image: np.ndarray, channels: int) -> np.ndarray:
    """What predict should say of a uint8 [H, W, 3] or [H, W] image for the pixels networks, in plain
    numpy."""
    values = image.astype(np.float64)
    if channels == 1 and image.ndim == 3:
        values = values @ [0.299, 0.587, 0.114]
    if channels == 3 and image.ndim == 2:
        values = np.stack([values] * 3, axis=-1)
    values = values.reshape(*values.shape[:2], channels)
    values = np.einsum("ah,bw,hwc->cab", resize_matrix(len(image), 4), resize_matrix(image.shape[1], 5), values)
    mean, std = ([0.3], [0.5]) if channels == 1 else ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    normalised = (values / 255 - np.reshape(mean, (-1, 1, 1))) / np.reshape(std, (-1, 1, 1))
    return softmax(normalised.ravel())


def predicted(model: OnnxModel, image: object) -> np.ndarray:
    """All probabilities in the order of the classes."""
    (result,) = model.predict([image], top=1000)
    assert [p for _, p in result] == sorted((p for _, p in result), reverse=True)
    by_label = {int(label): probability for label, probability in result}
    return np.array([by_label[i] for i in range(len(by_label))])


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 3), (13, 17), (13, 17, 3), (2, 3), (40, 3, 3)])
def test_preprocessing_against_numpy(shape: tuple[int, ...], pixels: Path, grey_pixels: Path, tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "image.png")
    for path, channels in ((pixels, 3), (grey_pixels, 1)):
        model = OnnxModel(path)
        expected = reference(image, channels)
        # Pillow rounds to whole grey levels after each of at most three steps: 1.5 levels of 255, by the
        # smallest std
        rounded = shape[:2] != (4, 5) or (channels == 1 and len(shape) == 3)
        tolerance = 2 * 1.5 / 255 / 0.4 if rounded else 1e-6
        for given in (image, Image.fromarray(image), tmp_path / "image.png", str(tmp_path / "image.png")):
            assert predicted(model, given) == pytest.approx(expected, rel=tolerance)


def test_labels_and_batches(exported: tuple[Path, float]) -> None:
    model = OnnxModel(exported[0])
    images = list(np.random.default_rng(1).integers(0, 256, (9, 8, 8, 3), dtype=np.uint8))
    floats = np.stack(images).transpose(0, 3, 1, 2) / 255
    normalised = (floats - np.reshape([0.1, 0.2, 0.3], (3, 1, 1))) / np.reshape([0.4, 0.5, 0.6], (3, 1, 1))
    logits = run_raw(exported[0], normalised.astype(np.float32))
    for batch_size in (4, 64):
        results = model.predict(images, top=3, batch_size=batch_size)
        for row, result in zip(logits, results, strict=True):
            best = np.argsort(row)[::-1][:3]
            assert [label for label, _ in result] == [CLASSES[i] for i in best]
            assert [p for _, p in result] == pytest.approx(softmax(row.astype(np.float64))[best], rel=1e-4)
    assert model.predict([]) == []


def test_other_modes_of_image(pixels: Path) -> None:
    model = OnnxModel(pixels)
    colours = np.random.default_rng(2).integers(0, 256, (4, 5, 4), dtype=np.uint8)
    expected = reference(colours[..., :3], 3)
    assert predicted(model, Image.fromarray(colours)) == pytest.approx(expected, rel=1e-6)
    palette = Image.fromarray(colours[..., :3]).quantize(64)
    assert predicted(model, palette) == pytest.approx(reference(np.asarray(palette.convert("RGB")), 3), rel=1e-6)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_turned_as_their_orientation_says(orientation: int, pixels: Path, tmp_path: Path) -> None:
    photograph = Image.fromarray(np.random.default_rng(3).integers(0, 256, (4, 5, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    for name in ("photograph.png", "photograph.tif"):
        photograph.save(tmp_path / name, exif=exif)
        seen = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / name)))
        assert seen.shape == ((5, 4, 3) if orientation > 4 else (4, 5, 3))
        for given in (tmp_path / name, Image.open(tmp_path / name)):
            assert np.array_equal(predicted(OnnxModel(pixels), given), predicted(OnnxModel(pixels), seen))
        assert np.array_equal(read_image(tmp_path / name, None), seen)  # for training


def test_orientation_that_can_not_be_read_is_none(pixels: Path, tmp_path: Path) -> None:
    photograph = np.random.default_rng(3).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    Image.fromarray(photograph).save(tmp_path / "broken.png", exif=b"Exif\0\0broken tags")
    assert np.array_equal(read_image(tmp_path / "broken.png", None), photograph)
    whole, broken = OnnxModel(pixels).predict([photograph, tmp_path / "broken.png"])
    assert whole == broken


def odd_tiff() -> bytes:
    """Return a TIFF of one pixel that says in a fraction where its pixels begin, at which Pillow raises TypeError."""
    short, rational = 3, 5
    tags = [(256, 1), (257, 1), (258, 8), (259, 1), (262, 1), (277, 1), (278, 1), (279, 1)]
    end = 8 + 2 + 12 * (len(tags) + 1) + 4
    entries = [struct.pack("<HHII", tag, short, 1, value) for tag, value in tags]
    entries.insert(5, struct.pack("<HHII", 273, rational, 1, end))
    body = struct.pack("<H", len(entries)) + b"".join(entries) + struct.pack("<III", 0, 2 * end + 16, 2)
    return b"II*\0" + struct.pack("<I", 8) + body + bytes(64)


def bad_images(folder: Path) -> dict[str, object]:
    (folder / "text.png").write_text("not an image")
    whole = folder / "whole.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(whole)
    (folder / "cut.png").write_bytes(whole.read_bytes()[:2000])
    (folder / "odd.tif").write_bytes(odd_tiff())
    return {
        "odd.tif': not an image": folder / "odd.tif",
        "absent.png' can't be read: No such file": folder / "absent.png",
        "text.png': not an image": folder / "text.png",
        "cut.png': not an image": folder / "cut.png",
        "not an image": folder,
        "dtype float32": np.zeros((4, 5), np.float32),
        r"shape \[4, 5, 2\]": np.zeros((4, 5, 2), np.uint8),
        r"shape \[1, 1, 4, 5, 3\]": np.zeros((1, 1, 4, 5, 3), np.uint8),
        "at least one pixel": np.zeros((0, 5), np.uint8),
        "'.*cut.png': not an image": Image.open(folder / "cut.png"),
        "mode I;16": Image.fromarray(np.zeros((4, 5), np.uint16)),
        "image of type int": 7,
    }


def test_bad_images_get_one_line(pixels: Path, tmp_path: Path) -> None:
    model = OnnxModel(pixels)
    for message, image in bad_images(tmp_path).items():
        with pytest.raises(SlimError, match=message) as caught:
            model.predict([image])
        assert "\n" not in str(caught.value)
    settings: list[tuple[str, Any]] = [("top", 0), ("top", 2.5), ("top", "3"), ("batch_size", 0), ("batch_size", 1.5)]
    for name, value in settings:
        with pytest.raises(SlimError, match=f"^{name} {value!r}: expected a whole number"):
            model.predict([np.zeros((4, 5), np.uint8)], **{name: value})


def test_folders_patterns_and_arrays_stand_for_their_images(
    exported: tuple[Path, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = np.random.default_rng(1).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    (tmp_path / "more").mkdir()
    for name, image in zip(["b.png", "a.PNG", "more/d.bmp", "more/c.png", "[1].png"], images):
        Image.fromarray(image).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "more" / "folder.png").mkdir()
    model = OnnxModel(exported[0])
    singly = [model.predict([image])[0] for image in images]
    order = [4, 1, 0, 3, 2]  # by name: [1].png a.PNG b.png more/c.png more/d.bmp
    assert find_images(tmp_path) == [
        str(tmp_path / n) for n in ("[1].png", "a.PNG", "b.png", "more/c.png", "more/d.bmp")
    ]
    for given, expected in [
        (tmp_path, order),
        (str(tmp_path / "more"), [3, 2]),
        (str(tmp_path / "**" / "?.png"), [0, 3]),
        (tmp_path / "[1].png", [4]),  # a file of that name, not a pattern
        (Image.fromarray(images[2]), [2]),
        (images[3], [3]),
        (images, range(5)),
        ([tmp_path / "b.png", images[1:3]], [0, 1, 2]),
    ]:
        found = model.predict(given)
        assert [[label for label, _ in best] for best in found] == [[label for label, _ in singly[i]] for i in expected]
        assert [best[0][1] for best in found] == pytest.approx([singly[i][0][1] for i in expected], rel=1e-5)
    (tmp_path / "empty").mkdir()
    for nothing, message in [(tmp_path / "empty", "holds no image"), (str(tmp_path / "*.gif"), "no file matches")]:
        with pytest.raises(SlimError, match=message):
            model.predict(nothing)


def test_a_stream_can_leave_out_what_it_can_not_read(exported: tuple[Path, float], tmp_path: Path) -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    (tmp_path / "broken.png").write_text("no image")
    given = [image, tmp_path / "broken.png", image, np.zeros((8, 8), np.int64), image]
    left_out: list[tuple[object, str]] = []
    model = OnnxModel(exported[0])
    shown = [
        seen for seen, _ in model.stream(given, batch_size=2, on_error=lambda *e: left_out.append((e[0], str(e[1]))))
    ]
    assert [any(seen is one for one in (given[0], given[2], given[4])) for seen in shown] == [True] * 3
    assert left_out[0][0] == given[1] and "not an image" in left_out[0][1]
    assert left_out[1][0] is given[3] and "dtype int64" in left_out[1][1]
