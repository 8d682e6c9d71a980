"""Small images for the page, as PNG in data URLs."""

import base64
import io

import numpy as np
from PIL import Image


def data_url(pixels: np.ndarray, largest: int | None = None) -> str:
    """Return an image, uint8 [H, W] or [H, W, 3 or 4], as a data URL; one over `largest` pixels is made smaller."""
    image = Image.fromarray(pixels)
    if largest:
        image.thumbnail((largest, largest))
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
