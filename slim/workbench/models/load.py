"""A network from its file alone: built from the name in the file, where that may be."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from slim import checkpoint
from slim.workbench.code import Allowed
from slim.workbench.models.build import build
from slim.workbench.models.hub import from_hub
from slim.workbench.models.libraries import HUB


def load(path: str | Path, model: nn.Module | None = None, *, allow_code: Allowed = ()) -> nn.Module:
    """Return the network that `path` holds, on the CPU, in evaluation mode, bit for bit and with the dtypes it had.

    path: a file; or "hf-hub:owner/name", what `slim.push_to_hub` uploaded, through the Hub's own cache.
    model: the unpruned network, for a class of your own; it stays as it is. Without it, the network is built
    from the name in the file.
    allow_code: the name `package.module:factory`, or several, that the file may lead to, which runs that package's
    code. No file decides by itself what is imported.
    Raises SlimError where the file is missing, truncated, altered or of another format, or doesn't fit, and where it
    names other code than that.

    >>> thin = slim.load("thin.safetensors", model)  # the unpruned network, for one of your own
    >>> thin = slim.load("checkpoints/digits/finetuned.safetensors")  # doctest: +SKIP
    >>> thin = slim.load("thin.safetensors", allow_code="mynet:Net")  # doctest: +SKIP
    """

    def unpruned(arch: str, kwargs: Mapping[str, Any]) -> nn.Module:
        return build(arch, allow_code=allow_code, **kwargs)

    file = from_hub(str(path)) if str(path).startswith(HUB) else path
    return checkpoint.load(file, unpruned if model is None else model)
