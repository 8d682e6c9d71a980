"""An ONNX file that is to be pruned: the network that was read from it, images for it, plans and thin files."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn

from slim.deploy.cost.runtime import Runtimes, usual_runtimes
from slim.deploy.guard import Compared, Guarded, compare_files, fastest_planned
from slim.deploy.onnx.file import OnnxFile
from slim.deploy.onnx.inputs import Inputs, parted_images
from slim.deploy.onnx.reader.network import OnnxNetwork
from slim.deploy.onnx.reader.read import load, opset_of, read_onnx
from slim.deploy.onnx.translate import OPSETS
from slim.deploy.onnx.write import Draft
from slim.prune.budgets import Budget
from slim.prune.plan import PruningPlan
from slim.prune.planner import plan
from slim.prune.residual import Residual
from slim.prune.scores import Magnitude


@dataclass(frozen=True)
class OnnxSource:
    """A file, the network in it, and images: those to calibrate on, or None, and those held out."""

    file: Path
    net: OnnxNetwork
    opened: OnnxFile
    images: Inputs | None
    held_out: Inputs

    @classmethod
    def of(cls, file: Path, batches: Iterable[Any] | None) -> "OnnxSource":
        """Read a file. Raises SlimError where it can't be read, and for images that don't fit it."""
        net, opened = read_onnx(file), OnnxFile(file, "cpu", 0)
        return cls(file, net, opened, *parted_images(opened, batches))

    @property
    def example(self) -> Inputs:
        """Return what the thin network is proved and exported with."""
        return self._batch(self.opened.batch.example)

    def _batch(self, size: int) -> Inputs:
        return tuple(tensor[:size] for tensor in self.held_out)

    @property
    def open_size(self) -> bool:
        """Say whether height and width of the images are open."""
        shapes = [entry.shape for entry in self.opened.inputs]
        return all(len(shape) >= 4 and not any(isinstance(size, int) for size in shape[-2:]) for shape in shapes)

    @property
    def image_size(self) -> int | None:
        """Return the pixels to time it with, where it leaves one of height and width open."""
        sizes = [size for entry in self.opened.inputs for size in entry.shape[-2:] if len(entry.shape) > 3]
        return None if all(isinstance(size, int) for size in sizes) else int(self.held_out[0].shape[-1])

    def planned(self, budget: Budget | None, bench: Mapping[str, Any], **rules: Any) -> Guarded:
        """Return the plan by the rules of `slim.plan`, with a score that needs no BatchNorm by default.

        `round_to` "auto", the default, is the runtime in the settings of `bench` that the file takes: then the file
        that a plan makes is timed against the original in each of them, and a plan by which it is slower revised.
        """
        given = {"score": Residual(self.images) if self.images else Magnitude(), "round_to": "auto"} | rules
        round_to = given.pop("round_to")
        wanted = partial(plan, self.net, self._batch(self.opened.batch.unit), budget, **given)  # FLOPs of one image
        if budget is not None and budget.by_time:
            return Guarded(wanted(), [])
        if round_to == "auto":
            named = {name: bench[name] for name in ("provider", "threads", "batch_sizes") if name in bench}
            round_to = self.runtime(**named)
        if round_to is None or isinstance(round_to, int):
            return Guarded(wanted(round_to=round_to), [])
        return fastest_planned(
            lambda step: wanted(round_to=step), round_to, lambda plan: self._compared(plan, round_to)
        )

    def runtime(self, threads: Any = (0, 1), batch_sizes: Any = (1, 32), provider: str = "auto") -> Runtimes:
        """Return these settings as far as the file takes their batches, or its own batch."""
        held = [size for size in batch_sizes if self.opened.batch.holds(size)] or [self.opened.batch.unit]
        return usual_runtimes(provider, [threads] if isinstance(threads, int) else threads, held)

    def _compared(self, made: PruningPlan, runtime: Any) -> list[Compared]:
        with TemporaryDirectory() as folder:
            thin = Path(folder, "thin.onnx")
            thin.write_bytes(self.draft(made.apply(self.net), made).content)
            return compare_files(self.file, thin, runtime, self.image_size)

    def draft(self, thin: nn.Module, made: PruningPlan) -> Draft:
        """Return the thin file, not written yet, with the original's names, open sizes, descriptions and metadata."""
        model = load(self.file)
        draft = Draft(
            thin,
            self.example,
            batch="any" if self.opened.batch.multiples else self.opened.batch.unit,
            opset=min(max(opset_of(model), OPSETS[0]), OPSETS[-1]),
            dynamic_size=self.open_size,
            inputs=[entry.name for entry in self.opened.inputs],
            outputs=[entry.name for entry in model.graph.output],
            original=model,
        )
        draft.properties |= {**self.opened.metadata, "slim.plan": made.digest}
        return draft

    def closed(self) -> list[str]:
        """Return a line for each open size that the thin file doesn't leave open."""
        lines = []
        for entry, tensor in zip(self.opened.inputs, self.example):
            for i in range(1, len(entry.shape) - 2 * self.open_size):
                if not isinstance(entry.shape[i], int):
                    size = tensor.shape[i]
                    lines.append(f"input {entry.name!r}: dimension {i} was open, and is {size} in the thin file")
        return lines
