"""An ONNX file in, a thin ONNX file out: pruning for those who have no source code."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from os.path import realpath
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from slim.deploy.bench.benchmark import benchmark
from slim.deploy.bench.result import BenchReport
from slim.deploy.guard import Compared, in_words
from slim.deploy.onnx.compare import explained_by_rounding, relative_difference
from slim.deploy.onnx.file import OnnxFile
from slim.deploy.onnx.inputs import Inputs
from slim.deploy.onnx.reader.network import OnnxNetwork
from slim.deploy.onnx.source import OnnxSource
from slim.deploy.onnx.write import TOLERANCE, ExportReport, write_checked
from slim.errors import SlimError
from slim.prune.budgets import Budget
from slim.prune.plan import PruningPlan
from slim.prune.recovery.recover import Recovery, recover
from slim.prune.verify import Proof, verify
from slim.tables import Shown
from slim.trace.copy import clone

FORWARD_BATCH = 32
CHECKED = 8  # images on which the network that was read is compared with its file


@dataclass(frozen=True, repr=False)
class OnnxPruning(Shown):
    """What `slim.prune_onnx` did, and how near the thin file is to the original."""

    path: Path
    plan: PruningPlan
    proof: Proof  # that the thin network equals the original without those channels
    recovery: Recovery | None  # None without images
    read_error: float  # largest relative difference between the network as it was read and the original file
    export: ExportReport
    squared_error: float | None  # of the thin file's outputs on held-out images, relative to the original's; or None
    agreement: float | None  # share of these images in whose largest output both agree, where outputs are [N, classes]
    bench: BenchReport | None
    compared: list[Compared] = field(default_factory=list)  # with the original's time in each setting, before recovery
    notes: tuple[str, ...] = ()

    def headline(self) -> str:
        """Return one line: the file, and what of the network is left in it."""
        return f"{self.path}: {self.plan.headline()}"

    def __str__(self) -> str:
        lines = [
            self.plan.summary(),
            f"read to {self.read_error:.0e} of the file's outputs; pruned with {self.proof}",
            *([str(self.recovery)] if self.recovery else ["no images: nothing was recovered"]),
        ]
        if self.squared_error is not None:
            same = "" if self.agreement is None else f"; the same class for {self.agreement:.1%} of them"
            lines.append(
                f"outputs on held-out images differ by {self.squared_error:.3g} (relative squared error){same}"
            )
        return "\n".join([*lines, *self.notes, *([str(self.bench)] if self.bench else [])])


def prune_onnx(
    file: str | Path,
    batches: Iterable[Any] | None,
    budget: Budget | None = None,
    *,
    out: str | Path,
    refit: bool = True,
    bench: Mapping[str, Any] | None = None,
    **rules: Any,
) -> OnnxPruning:
    """Prune the network in an ONNX file, and write what is left as an ONNX file to `out`.

        slim.prune_onnx("model.onnx", batches, slim.Flops(0.5), out="thin.onnx")

    The graph is read into PyTorch (`slim.read_onnx`) and compared with the file in onnxruntime, planned, rebuilt,
    proved (`slim.verify`), recovered on the images (`slim.recover`), exported, checked, and compared and timed against
    the original. Names of inputs and outputs, open sizes and metadata stay. Operator sets below 18 become 18.

    `batches`: calibration images without labels, a few hundred: batches of what the file takes (an array or tensor
    [N, …]; a tuple in the order of the inputs, or a dict by their names, where there are several), normalised as in
    training. A fifth of them is held out for the comparison. None: channels go by the size of their filters alone, and
    nothing is recovered, which costs far more accuracy.
    `budget`, `rules`: as in `slim.plan`. The default score is `slim.Residual` of the images, which needs no BatchNorm:
    in most exported networks those are folded into convolutions. Without images it is `slim.Magnitude`. The default
    `round_to` is "auto": widths that suit onnxruntime in the settings of `bench` (default: one image and 32, on one
    thread and on all); where a thin file is slower than the original in one of them, one with wider steps is made in
    its place. Where all are, the notes say in which setting, and which node.
    `refit`: whether to recover. `bench`: settings of `slim.benchmark`, such as {"batch_sizes": [1]}.

    Raises SlimError for a file that can't be read, naming the operators; for images that don't fit it; for a budget
    that can't be met; and where any of the checks fails. Then nothing is written.
    """
    file, out = Path(file), Path(out)
    if out.suffix != ".onnx" or out.is_dir() or realpath(out) == realpath(file):
        raise SlimError(f"out {str(out)!r}: expected the name of another file that ends in .onnx")
    source = OnnxSource.of(file, batches)
    net, original, images, example = source.net, source.opened, source.images, source.example
    read_error = _check_reading(net, original, file.name, source.held_out)
    guarded = source.planned(budget, bench or {}, **rules)
    made = guarded.plan
    thin = made.apply(net)
    proof = verify(net, thin, made, example)
    recovery = recover(net, thin, made, images) if refit and images else None
    export = write_checked(source.draft(recovery.model if recovery else thin, made), out, TOLERANCE)
    squared, agree = _compared(original, OnnxFile(out, "cpu", 0), source.held_out) if images else (None, None)
    timed, more = _timed(source, out, bench or {})
    notes = (*guarded.notes, *source.closed(), *in_words(guarded.compared), *more)
    return OnnxPruning(out, made, proof, recovery, read_error, export, squared, agree, timed, guarded.compared, notes)


def _run(opened: OnnxFile, inputs: Inputs) -> list[Tensor]:
    """Return what a file gives, in batches that it takes; where their size is fixed, what is left over is left out."""
    size = FORWARD_BATCH // opened.batch.unit * opened.batch.unit if opened.batch.multiples else opened.batch.unit
    parts = []
    for i in range(0, len(inputs[0]), max(size, 1)):
        part = [tensor[i : i + size].numpy() for tensor in inputs]
        if opened.batch.holds(len(part[0])):
            parts.append(opened.run({entry.name: array for entry, array in zip(opened.inputs, part)}))
    return [torch.from_numpy(np.concatenate(column)) for column in zip(*parts)]


def _check_reading(net: OnnxNetwork, original: OnnxFile, name: str, inputs: Inputs) -> float:
    """Return the largest relative difference between the network and its file, `name`. SlimError where it isn't
    rounding."""
    size, worst = original.batch.example, 0.0
    for i in range(0, min(len(inputs[0]), max(CHECKED, size)) - size + 1, size):
        part = tuple(tensor[i : i + size] for tensor in inputs)
        made, given = _outputs(net, part), _run(original, part)
        apart = max(relative_difference(a, b) for a, b in zip(given, made, strict=True))
        if apart > TOLERANCE and not explained_by_rounding(_outputs(clone(net).double(), part), made, given):
            raise SlimError(
                f"{name}: the network that was read gives outputs that differ by {apart:.1e} (relative): expected at "
                f"most {TOLERANCE:.0e}; nothing was written"
            )
        worst = max(worst, apart)
    return worst


@torch.no_grad()
def _outputs(net: nn.Module, inputs: Inputs) -> list[Tensor]:
    """Return what the network gives, in the numbers that its weights have."""
    kind = next((weight.dtype for weight in net.parameters()), torch.float32)
    made = net(*(tensor.to(kind) if tensor.is_floating_point() else tensor for tensor in inputs))
    return list(made) if isinstance(made, tuple) else [made]


def _compared(original: OnnxFile, thin: OnnxFile, inputs: Inputs) -> tuple[float, float | None]:
    """Relative squared error over all outputs, and how often the largest of [N, classes] is the same."""
    pairs = list(zip(_run(original, inputs), _run(thin, inputs)))
    missed = sum(float((a.double() - b.double()).square().sum()) for a, b in pairs)
    whole = sum(float(a.double().square().sum()) for a, _ in pairs)
    first, second = pairs[0]
    classes = len(pairs) == 1 and first.dim() == 2 and first.shape[1] > 1
    return missed / max(whole, 1e-30), float((first.argmax(1) == second.argmax(1)).double().mean()) if classes else None


def _timed(source: OnnxSource, out: Path, bench: Mapping[str, Any]) -> tuple[BenchReport | None, list[str]]:
    """Return the times of both files."""
    settings = {"memory": False, "image_size": source.image_size} | dict(bench)
    try:
        return benchmark({"original": source.file, "thin": out}, **settings), []
    except SlimError as error:
        return None, [f"not timed: {error}"]
