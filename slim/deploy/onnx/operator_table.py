"""torch's table of what each operator becomes in ONNX: made once, instead of at every export."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

try:
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    table: Any = functools.cache(ONNXRegistry.from_torchlib)  # by opset
except (ImportError, AttributeError):  # another version of torch keeps it elsewhere: each export makes its own
    table = None


@contextmanager
def made_once() -> Iterator[None]:
    """Let torch's exporter take the table that an earlier export made: making it is two fifths of a small export.

    Exports without a translation table of their own only read it. One thread at a time.
    """
    if table is None:
        yield
        return
    before = ONNXRegistry.__dict__["from_torchlib"]
    ONNXRegistry.from_torchlib = staticmethod(table)  # type: ignore[method-assign]
    try:
        yield
    finally:
        ONNXRegistry.from_torchlib = before  # type: ignore[method-assign]
