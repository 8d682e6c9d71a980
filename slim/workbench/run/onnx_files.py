"""ONNX files of other makers, pruned without a run: images from a folder, and a thin file beside the original."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from slim.deploy.guard import in_words
from slim.deploy.onnx.file import OnnxFile
from slim.deploy.onnx.predict import find_images
from slim.deploy.onnx.prune import OnnxPruning, prune_onnx
from slim.deploy.onnx.source import OnnxSource
from slim.errors import SlimError
from slim.images import MODES, read_image
from slim.prune.plan import PruningPlan
from slim.tables import render
from slim.workbench import data
from slim.workbench.config import RunConfig
from slim.workbench.run import asked
from slim.workbench.run.folder import Run
from slim.workbench.run.measuring import benchmark_rules

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
BATCH = 64

Normalisation = tuple[Sequence[float], Sequence[float]]  # mean and std of each channel, where white is 1


def prune_file(run: Run, file: Path, out: Path, normalisation: Normalisation | None) -> list[Path]:
    """Prune the network in an ONNX file as the settings say, on images of the data that the user named, and write the
    thin file to `out` and the plan beside it. Returns the paths."""
    settings, batches = run.settings, _batches(run, file, normalisation)
    given = _rules(settings)
    bench = benchmark_rules(settings.bench) | {"memory": False}
    made: OnnxPruning = prune_onnx(
        file, batches, asked.budget(settings), out=out, refit=settings.prune.recover, bench=bench, **given
    )
    made.plan.save(out.with_suffix(".json"))
    run.console.print(render(made.plan.table()))
    run.console.print(str(made))
    return [out, out.with_suffix(".json")]


def plan_file(run: Run, file: Path, normalisation: Normalisation | None) -> PruningPlan:
    """Print the plan that `prune_file` would follow, and write nothing."""
    source, bench = OnnxSource.of(file, _batches(run, file, normalisation)), benchmark_rules(run.settings.bench)
    guarded = source.planned(asked.budget(run.settings), bench, **_rules(run.settings))
    made = guarded.plan
    run.console.print(render(made.table()))
    for line in (made.summary(), *guarded.notes, *in_words(guarded.compared)):
        run.console.print(line)
    return made


def _rules(settings: RunConfig) -> dict[str, Any]:
    """Return the keywords of `slim.plan`. Scores of |γ| give way to the one for networks whose BatchNorms are
    folded."""
    score = settings.prune.score
    kept = score in ("magnitude", "random")
    rules = asked.rules(replace(settings, prune=replace(settings.prune, score=score if kept else "magnitude")))
    rules["round_to"] = settings.prune.round_to  # "auto" is what suits the file
    return rules if kept else {name: value for name, value in rules.items() if name != "score"}


def _batches(run: Run, file: Path, normalisation: Normalisation | None) -> list[Any] | None:
    """Calibration images: of the data set that the user named, or of the folder; None where neither is."""
    if not run.own_data:
        run.console.print("no images: data.root names none, so the size of filters decides, and nothing is recovered")
        return None
    count, opened = run.settings.prune.calibration_images, OnnxFile(file, "cpu", 0)
    if run.settings.data.name != RunConfig().data.name:
        return [data.sample_inputs(run.dataset(), count, run.settings.seed)]
    root = Path(run.settings.data.root).expanduser()
    if not root.exists():
        raise SlimError(f"no folder {str(root)!r}: expected one of images, at any depth")
    paths = find_images(str(root))
    order = np.random.default_rng(run.settings.seed).permutation(len(paths))[:count]
    entry = opened.inputs[0]
    axis = next((place for place in (1, 3) if len(entry.shape) == 4 and entry.shape[place] in MODES), None)
    if len(opened.inputs) > 1 or axis is None:
        raise SlimError(
            f"{file} takes {[list(each.shape) for each in opened.inputs]}: a folder of images serves one input "
            "[N, C, H, W] or [N, H, W, C] with 3 channels or 1; expected data.name package.module:factory for others"
        )
    raw, channels = entry.dtype == "uint8", int(entry.shape[axis] or 0)
    sizes = entry.shape[2:] if axis == 1 else entry.shape[1:3]
    height, width = (size if isinstance(size, int) else run.settings.data.image_size for size in sizes)
    if height is None or width is None:
        raise SlimError(f"{file} leaves the size of its images open: expected --data.image_size")
    pixels = np.stack([read_image(paths[i], (height, width), channels) for i in order])
    if raw:
        return _in_batches(pixels, axis)
    mean, std = (np.array(each, np.float32) for each in normalisation or _noted(run, opened, channels))
    if len(mean) != channels or len(std) != channels:
        raise SlimError(f"--mean and --std have {len(mean)} and {len(std)} numbers: expected {channels}, one a channel")
    return _in_batches((pixels.astype(np.float32) / 255 - mean) / std, axis)


def _in_batches(images: np.ndarray, axis: int) -> list[np.ndarray]:
    """Return images [N, H, W, C] in batches, with the channels along this axis."""
    return np.array_split(np.moveaxis(images, 3, axis), -(-len(images) // BATCH))


def _noted(run: Run, opened: OnnxFile, channels: int) -> Normalisation:
    """Return the normalisation that the file notes, or else ImageNet's; grey images are taken as they are."""
    if {"slim.mean", "slim.std"} <= opened.metadata.keys():
        return json.loads(opened.metadata["slim.mean"]), json.loads(opened.metadata["slim.std"])
    if channels == 1:
        return [0.0], [1.0]
    run.console.print("images are normalised as ImageNet's are: --mean 0,0,0 --std 1,1,1 leaves them in 0 to 1")
    return IMAGENET
