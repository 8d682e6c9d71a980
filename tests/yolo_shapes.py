"""Rendered shapes as Ultralytics' data sets: images and labels in files, truth by construction."""

from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw

KINDS = ("ellipse", "rectangle")


def detection(folder: Path, train: int, val: int, size: int, *, corners: Literal["", "outline", "points"] = "") -> str:
    """Write images of one to three shapes with their boxes, and return the data's YAML. `corners`: those of the boxes,
    as outlines in the place of boxes, or as key points beside them."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for part in ("images", "labels"):
            (folder / part / split).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            image = Image.fromarray(rng.integers(0, 90, (size, size, 3), np.uint8))
            draw, lines = ImageDraw.Draw(image), []
            for _ in range(rng.integers(1, 4)):
                kind, (w, h) = int(rng.integers(2)), rng.integers(size // 6, size // 2, 2)
                x, y = (int(rng.integers(0, size - side)) for side in (w, h))
                colour = tuple(rng.integers(120, 256, 3).tolist())
                getattr(draw, KINDS[kind])((x, y, x + int(w), y + int(h)), fill=colour)
                box = [(x + w / 2) / size, (y + h / 2) / size, w / size, h / size]
                points = [(a / size, b / size) for a, b in ((x, y), (x + w, y), (x + w, y + h), (x, y + h))]
                told = [] if corners == "outline" else box
                told += [v for a, b in points if corners for v in ((a, b, 2) if corners == "points" else (a, b))]
                lines.append(" ".join(map(str, [kind, *told])))
            image.save(folder / "images" / split / f"{number}.png")
            (folder / "labels" / split / f"{number}.txt").write_text("\n".join(lines))
    described = folder / "data.yaml"
    described.write_text(
        f"path: {folder}\ntrain: images/train\nval: images/val\nnames: {{0: ellipse, 1: rectangle}}\n"
        + ("kpt_shape: [4, 3]\nflip_idx: [1, 0, 3, 2]\n" if corners == "points" else "")
    )
    return str(described)


def classification(folder: Path, train: int, val: int, size: int) -> str:
    """Write images of one shape in folders by class, and return the folder."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for number in range(count):
            kind = KINDS[number % 2]
            (folder / split / kind).mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(rng.integers(0, 90, (size, size, 3), np.uint8))
            x, y, w, h = (int(v) for v in rng.integers(size // 6, size // 2, 4))
            getattr(ImageDraw.Draw(image), kind)((x, y, x + w, y + h), fill=tuple(rng.integers(120, 256, 3).tolist()))
            image.save(folder / split / kind / f"{number}.png")
    return str(folder)
