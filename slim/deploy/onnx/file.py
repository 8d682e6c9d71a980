"""An ONNX file, opened in onnxruntime."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnxruntime

from slim.deploy.onnx.profile import node_times
from slim.deploy.onnx.session import SESSION_SETTINGS, open_session, ready_call
from slim.deploy.target import BatchUnit, FileInput, InputArrays, NodeTime

DTYPES = {"float": "float32", "double": "float64"}  # where ONNX's names aren't numpy's


class OnnxFile:
    """An ONNX file in an onnxruntime session: an `Executable`."""

    def __init__(self, path: Path, provider: str, threads: int) -> None:
        self._path, self._threads = path, threads
        self.session = open_session(path, provider, threads, SESSION_SETTINGS)
        self.provider: str = self.session.get_providers()[0]
        self.metadata: dict[str, str] = self.session.get_modelmeta().custom_metadata_map
        self.inputs = [
            FileInput(entry.name, tuple(entry.shape or ()), _dtype(entry.type)) for entry in self.session.get_inputs()
        ]
        self.batch = next((BatchUnit.of_dimension(entry.shape[0]) for entry in self.inputs if entry.shape), BatchUnit())

    def run(self, feed: InputArrays) -> list[np.ndarray]:
        quiet = onnxruntime.RunOptions()
        quiet.log_severity_level = 4  # the error says it
        outputs: list[np.ndarray] = self.session.run(None, dict(feed), quiet)
        return outputs

    def timed_call(self, feed: InputArrays) -> Callable[[], None]:
        return ready_call(self.session, feed, repr(self._path.name))

    def profile(self, feed: InputArrays, runs: int, warmup: int) -> list[NodeTime]:
        """Return what each node takes; a session of its own runs them, because the profiler costs time."""
        with TemporaryDirectory() as folder:
            session = open_session(
                self._path, self.provider, self._threads, SESSION_SETTINGS, profile=Path(folder, "profile")
            )
            call = ready_call(session, feed, repr(self._path.name))
            for _ in range(warmup + runs):
                call()
            return node_times(session, warmup)


def _dtype(onnx_type: str) -> str:
    name = onnx_type.removeprefix("tensor(").removesuffix(")")
    return DTYPES.get(name, name)
