"""The runtimes that there are, by the suffix of their files."""

from pathlib import Path

from slim.deploy.onnx.target import OnnxRuntime
from slim.deploy.target import Target
from slim.errors import SlimError

TARGETS = {target.suffix: target for target in (OnnxRuntime,)}


def target_of(path: str | Path, provider: str, threads: int) -> Target:
    """Return the runtime that runs the file at `path`. Raises SlimError for a file that none runs."""
    suffix = Path(path).suffix
    if suffix not in TARGETS:
        raise SlimError(f"{str(path)!r}: expected a file that ends in {' or '.join(TARGETS)}")
    return TARGETS[suffix](provider, threads)
