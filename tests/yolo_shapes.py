"""Rendered shapes as Ultralytics' data sets: images and labels in files, truth by construction."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

KINDS = ("ellipse", "rectangle")


def detection(folder: Path, train: int, val: int, size: int, *, outlines: bool = False) -> str:
    """Write images of one to three shapes with their boxes (`outlines`: as polygons), and return the data's YAML."""
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
                corners = [v / size for v in (x, y, x + w, y, x + w, y + h, x, y + h)]
                lines.append(" ".join(map(str, [kind, *(corners if outlines else box)])))
            image.save(folder / "images" / split / f"{number}.png")
            (folder / "labels" / split / f"{number}.txt").write_text("\n".join(lines))
    described = folder / "data.yaml"
    described.write_text(f"path: {folder}\ntrain: images/train\nval: images/val\nnames: {{0: ellipse, 1: rectangle}}\n")
    return str(described)
