"""TensorBoard's view of a run: its scalars, the distribution of γ by layer, and the pruning plan as text."""

from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from slim.extras import named_if_missing

SCALARS = ("lr", "strength", "channels", "zero", "near_zero", "images_per_second")


class TensorBoard:
    """Writes under `folder` until `close`. Raises `SlimError` where the tensorboard package is missing."""

    def __init__(self, folder: Path) -> None:
        with named_if_missing():
            from torch.utils.tensorboard import SummaryWriter
        self._writer = SummaryWriter(str(folder))

    def epoch(self, record: dict[str, Any], model: nn.Module) -> None:
        """Write a record of `fit`, and |γ| of every BatchNorm of the model."""
        for key, value in record.items():
            if value is not None and (key in SCALARS or key.startswith(("train_", "val_"))):
                self._writer.add_scalar(key, value, record["epoch"])
        for name, module in model.named_modules():
            if isinstance(module, _BatchNorm) and module.affine:
                self._writer.add_histogram(f"gamma/{name}", module.weight.detach().abs(), record["epoch"])
        self._writer.flush()

    def text(self, tag: str, text: str) -> None:
        """Write preformatted text, such as a table."""
        self._writer.add_text(tag, "\n".join(f"    {line}" for line in text.splitlines()))

    def close(self) -> None:
        """Close the files."""
        self._writer.close()
