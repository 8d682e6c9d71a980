"""Images as networks take them: whole, upright, in the colours and the size asked for; and what is said of them.

This is the only reader of images."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from slim.errors import SlimError
from slim.files import check_regular
from slim.memory import free_memory

IMAGE_FILES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".gif")
MOST_PIXELS = 2**26  # of an image: 200 MB in colour, once for each that is decoded at the same time
BYTES_OF_A_PIXEL = 7  # while it is decoded: four as the file has it, three as it becomes
SHARE_OF_MEMORY = 0.5  # of what is free, that the largest images may take which are decoded at the same time
MODES = {1: "L", 3: "RGB"}  # channels -> Pillow's name for such an image
EIGHT_BIT_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV")  # others would be clipped

# The values of the EXIF tag Orientation (EXIF 2.32, section 4.6.4 A) that ask for something; 1 is upright.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(
    image: Any, size: tuple[int, int] | None = None, channels: int = 3, max_pixels: int = MOST_PIXELS
) -> np.ndarray:
    """Return an image as uint8 [H, W, C], upright by its EXIF orientation.

    image: a path, a PIL image, or a uint8 array [H, W], [H, W, 1] or [H, W, 3].
    size: (H, W) to scale to, bilinear, not keeping the aspect ratio; None leaves it.
    channels: 3 for RGB, 1 for grey.
    max_pixels: the most that an image in a file may have, before it is scaled: a small file can hold a huge one.

    Raises SlimError for a file that is missing, cut short or no image, too large an image, and for anything but 8-bit
    grey or colour.
    """
    picture = _opened(image, max_pixels)
    if picture.mode not in EIGHT_BIT_MODES:
        raise SlimError(f"{_describe(image)} has mode {picture.mode}: expected 8-bit grey or colour")
    picture = resized(upright(picture).convert(MODES[channels]), size)
    return np.asarray(picture).reshape(picture.height, picture.width, channels)


def decoders(most: int, max_pixels: int = MOST_PIXELS) -> int:
    """Return how many images may be decoded at the same time: at least one, at most `most`, and no more than memory
    holds if all of them have `max_pixels`."""
    return max(1, min(most, int(SHARE_OF_MEMORY * free_memory() / (BYTES_OF_A_PIXEL * max_pixels))))


def resized(image: Image.Image, size: tuple[int, int] | None) -> Image.Image:
    """Scale to `size` = (H, W) pixels, bilinear, not keeping the aspect ratio."""
    if size is None or image.size == size[::-1]:
        return image
    return image.resize(size[::-1], Image.Resampling.BILINEAR)


def upright(image: Image.Image) -> Image.Image:
    """Turn the image as its EXIF orientation says; leave it where it says nothing, or nothing that can be read.

    ImageOps.exif_transpose does the same, but writes the tags anew, and fails on broken ones.
    """
    image.load()  # Pillow turns a TIFF by itself then
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # Pillow's readers of tags raise errors of many kinds
        return image
    return image.transpose(TURNS[orientation]) if orientation in TURNS else image


def _opened(image: Any, max_pixels: int) -> Image.Image:
    if isinstance(image, np.ndarray):
        return _from_array(image)
    if not isinstance(image, (Image.Image, str, os.PathLike)):
        raise SlimError(f"{_describe(image)}: expected a path, a PIL image or a uint8 array")
    if not isinstance(image, Image.Image):
        check_regular("image", os.fspath(image))
    try:
        if isinstance(image, Image.Image):
            image.load()  # it may have been opened only
            return image
        with Image.open(image) as picture:
            if picture.width * picture.height > max_pixels:
                raise SlimError(
                    f"{_describe(image)} has {picture.width}×{picture.height} pixels: expected at most {max_pixels:,} "
                    "(max_pixels)"
                )
            picture.load()
            return picture
    except (SlimError, MemoryError):
        raise
    except Exception as error:  # Pillow's readers of formats raise errors of many kinds
        raise SlimError(f"{_describe(image)}: not an image that Pillow can read whole") from error


def _from_array(image: np.ndarray) -> Image.Image:
    if image.dtype != np.uint8 or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] in MODES)):
        raise SlimError(f"{_describe(image)}: expected uint8 [H, W] or [H, W, 3]")
    if image.size == 0:
        raise SlimError(f"{_describe(image)}: expected at least one pixel")
    return Image.fromarray(image[..., 0] if image.shape[2:] == (1,) else image)


def _describe(image: Any) -> str:
    if isinstance(image, (str, os.PathLike)):
        return f"image {os.fspath(image)!r}"
    if isinstance(image, np.ndarray):
        return f"array of dtype {image.dtype} and shape {list(image.shape)}"
    if getattr(image, "filename", ""):  # Pillow's, of a file
        return f"image {image.filename!r}"
    return f"image of type {type(image).__name__}"


@dataclass(frozen=True)
class ImageSpec:
    """What the images of a network are, for those who put it to use: the same in data, checkpoints and ONNX files.

    shape: [C, H, W] of one image, as the network takes it
    classes: what the outputs stand for, in their order
    mean, std: per channel, where black is 0 and white is 1, that images were normalised by
    Each may be None: nothing is known of it.

    >>> ImageSpec((3, 32, 32), ("cat", "dog")).to_dict()["input_shape"]
    [3, 32, 32]
    """

    shape: tuple[int, ...] | None = None
    classes: tuple[str, ...] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return it as it is written into files: `input_shape`, `classes`, `mean`, `std`."""
        named = {"input_shape": self.shape, "classes": self.classes, "mean": self.mean, "std": self.std}
        return {key: None if value is None else list(value) for key, value in named.items()}

    @classmethod
    def of(cls, about: Mapping[str, Any]) -> "ImageSpec":
        """Read what a file says."""
        values = [about.get(key) for key in ("input_shape", "classes", "mean", "std")]
        return cls(*(None if value is None else tuple(value) for value in values))
