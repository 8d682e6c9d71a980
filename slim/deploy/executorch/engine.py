"""All that slim asks of the package executorch."""

import os
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

import onnx
import torch

from slim.deploy.onnx.session import silence
from slim.errors import SlimError

Call = Callable[[Sequence[torch.Tensor]], Sequence[Any]]


def check_installed() -> None:
    """Raise ModuleNotFoundError where the package is missing."""
    import_module("executorch.exir")


def lowered(programs: Mapping[str, torch.export.ExportedProgram], constants: Mapping[str, str]) -> bytes:
    """Return the content of a file whose methods run these programs, as far as can be in XNNPACK, and others that give
    constants. Raises SlimError for what ExecuTorch can't take."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    try:
        with silence():
            edge = to_edge_transform_and_lower(
                dict(programs), partitioner=[XnnpackPartitioner()], constant_methods=dict(constants) or None
            )
            return bytes(edge.to_executorch().buffer)
    except Exception as error:  # of many kinds
        raise SlimError(f"ExecuTorch can't take the network: {brief(error)}") from error


def loaded(content: bytes, threads: int) -> dict[str, Call]:
    """Return the methods of a file as functions of their inputs, on so many threads (0: all cores)."""
    from executorch.extension.pybindings import portable_lib
    from executorch.runtime import Runtime

    program, wanted = Runtime.get().load_program(content), threads or os.cpu_count() or 1

    def method(name: str) -> Call:
        loaded = program.load_method(name)

        def call(inputs: Sequence[torch.Tensor]) -> Sequence[Any]:
            if portable_lib._threadpool_get_thread_count() != wanted:  # one pool for the whole process
                portable_lib._unsafe_reset_threadpool(wanted)
            made: Sequence[Any] = loaded.execute(list(inputs))
            return made

        return call

    return {name: method(name) for name in program.method_names}


def shapes_of(graph: bytes) -> list[tuple[int, ...]]:
    """Return the shapes of the inputs of an ONNX graph of fixed sizes."""
    entries = onnx.load_from_string(graph).graph.input
    return [tuple(size.dim_value for size in entry.type.tensor_type.shape.dim) for entry in entries]


def brief(error: Exception) -> str:
    """Return a message on one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__
