"""A short run of all stages, its settings, and copies of it to take apart."""

import base64
import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console

from slim.workbench import config
from slim.workbench.config import RunConfig

QUIET = Console(quiet=True)

SHORT = {
    "data": {"batch_size": 32},
    "model": {"arch": "slim:vgg7"},
    "train": {"epochs": 2, "lr": 0.05},
    "finetune": {"epochs": 1, "lr": 0.02},
    "prune": {"ratio": 0.4, "round_to": 1},  # one threshold for all, which the page draws
    "bench": {"runs": 3, "warmup": 1},
    "report": {"sweep_seconds": 2},
}


def settings(**changes: Any) -> RunConfig:
    """The short run's settings, with changes."""
    return config.updated(config.updated(RunConfig(), SHORT), changes)


def copied(whole: Path, to: Path, without: tuple[str, ...] = ()) -> Path:
    """A copy of a run without some of its files."""
    shutil.copytree(whole, to, ignore=lambda _, names: [n for n in names if n in without])
    return to


def pixels(url: str) -> np.ndarray:
    """The pixels of an image that a page holds as a data URL."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))))
