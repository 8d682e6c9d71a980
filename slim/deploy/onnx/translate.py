"""torch's ONNX exporter, and what is wrong where it can't."""

import inspect
import itertools
import os
import traceback
from dataclasses import dataclass

import torch
from onnxscript import ir
from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.utils._pytree import tree_map

from slim.deploy.onnx import operator_table
from slim.deploy.onnx.arguments import Arguments, bottom_of, root_cause
from slim.deploy.onnx.dimensions import OpenSizes
from slim.deploy.onnx.idle import drop_idle
from slim.deploy.onnx.session import silence
from slim.errors import SlimError
from slim.progress import progress
from slim.version import __version__

OPSETS = range(18, 26)  # below, the exporter has no operators; above, its version converter gives up
MAX_BYTES = 2**31 - 2**24  # protobuf's limit for one file, less room for the graph


@dataclass(frozen=True)
class Graph:
    """What a file is to hold: a network, called with these arguments, and the names of its inputs and outputs."""

    net: nn.Module
    arguments: Arguments
    open_sizes: OpenSizes
    inputs: list[str] | None
    outputs: list[str] | None
    opset: int

    def translated(self, net: nn.Module, *, optimize: bool) -> torch.onnx.ONNXProgram:
        """Return `net`, which is the graph's or the same in float64, as an ONNX program.

        Raises SlimError where torch can't export it, and for weights that don't fit in one file.
        """
        size = sum(tensor.nbytes for tensor in itertools.chain(net.parameters(), net.buffers()))
        if size > MAX_BYTES:
            raise SlimError(
                f"the network's weights take {size / 2**30:.1f} GB: expected less than 2 GB, for one ONNX file"
            )
        example = self.arguments.batch(self.open_sizes.batch.example).in_dtype_of(net)
        bound = inspect.signature(net.forward).bind(*example.args, **example.kwargs)  # *args are one argument
        try:
            with progress("exporting the network", 1), silence(), operator_table.made_once(), torch.no_grad():
                program = torch.onnx.export(
                    net,
                    example.args,
                    kwargs=example.kwargs,
                    dynamo=True,
                    optimize=optimize,
                    verbose=False,
                    opset_version=self.opset,
                    input_names=self.inputs,
                    output_names=self.outputs,
                    dynamic_shapes=self.open_sizes.named(dict(bound.arguments)),
                )
        except Exception as error:  # the exporter lets through errors of many kinds
            why = _place_of_choice(error) or root_cause(error)
            raise SlimError(f"torch's ONNX exporter can't export the network: {why}") from error
        assert program is not None
        if optimize:
            drop_idle(program.model)
        # The exporter notes stack traces with local paths on every node
        ir.passes.common.ClearMetadataAndDocStringPass()(program.model)
        program.model.producer_name, program.model.producer_version = "slim", __version__
        return program

    def exported(self, most: int) -> torch.export.ExportedProgram:
        """Return the network as a program of torch's that takes up to `most` images. Raises SlimError where torch can't
        export it."""
        example = self.arguments.batch(self.open_sizes.batch.example)
        bound = inspect.signature(self.net.forward).bind(*example.args, **example.kwargs)
        batch = torch.export.Dim("batch", min=1, max=most)
        shapes = tree_map(lambda leaf: {0: batch} if isinstance(leaf, Tensor) else None, dict(bound.arguments))
        try:
            with silence(), torch.no_grad():
                return torch.export.export(self.net, example.args, example.kwargs, dynamic_shapes=shapes)
        except Exception as error:
            raise SlimError(
                f"torch can't export the network: {_place_of_choice(error) or root_cause(error)}"
            ) from error


def _place_of_choice(error: BaseException) -> str | None:
    """Return where the network's code makes its way depend on values, if that is what is wrong: torch says no more than
    that it "could not guard on" u0."""
    error = bottom_of(error)
    if not isinstance(error, GuardOnDataDependentSymNode):
        return None
    said = "what forward does depends on values that it computes"
    own = (os.path.dirname(torch.__file__) + os.sep, __file__, "<")  # torch, this file, code made on the way
    places = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(own)]
    return f"{said}, in {places[-1].filename}, line {places[-1].lineno}: {places[-1].line}" if places else said
