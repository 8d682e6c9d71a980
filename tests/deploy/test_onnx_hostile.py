"""ONNX graphs at odds with themselves, or that ask for more memory than any network: refused in one line."""

import re
import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper

import slim
from slim.deploy.onnx.reader.read import read_onnx
from slim.errors import SlimError

TERABYTE = 10**12 // 4  # numbers in float32


def written(path: Path, nodes: Sequence[NodeProto], constants: dict[str, np.ndarray], width: int | str = 8) -> Path:
    """A file whose network takes x, of four dimensions, and returns y."""
    entries = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 8, width]) for name in ("x", "y")]
    weights = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(list(nodes), "g", entries[:1], entries[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
    return path


def node(op: str, *inputs: str, makes: str = "y", **attributes: Any) -> NodeProto:
    return helper.make_node(op, list(inputs), [makes], f"{op} here", **attributes)


UNSOUND = {
    "a weight of two dimensions": [node("Conv", "x", "table")],
    "no weight": [node("Conv", "x")],
    "a value that nothing makes": [node("Add", "x", "nowhere")],
    "no attribute to say which type": [node("Cast", "x")],
    "an attribute of another type": [node("Softmax", "x", axis="a")],
    "an order of other dimensions": [node("Transpose", "table", perm=[0, 7], makes="t"), node("Add", "x", "t")],
    "no inputs": [node("Relu")],
    "more outputs than there are": [helper.make_node("Relu", ["table"], ["t", "u"]), node("Add", "x", "u")],
}


@pytest.mark.parametrize("case", UNSOUND)
def test_a_graph_at_odds_with_itself_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    file = written(tmp_path / "odd.onnx", UNSOUND[case], {"table": np.ones((3, 4), np.float32)})
    with pytest.raises(SlimError, match=r"^(odd\.onnx: |the model can't be run)") as caught:
        slim.plan(read_onnx(file), torch.ones(1, 3, 8, 8), ratio=0.5)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "odd, said",
    [
        (node("Conv", "x", "kernel", pads=[1]), "pads is [1]: expected 4 numbers"),
        (node("Conv", "x", "kernel", dilations=2), "dilations is 2: expected 2 numbers"),
        (node("MaxPool", "x", kernel_shape=[2, 2], strides=[1, 1, 1]), "strides is [1, 1, 1]: expected 2 numbers"),
    ],
)
def test_a_window_has_a_number_for_each_dimension(odd: NodeProto, said: str, tmp_path: Path) -> None:
    """Else the run without data fails, and one with data may take gigabytes before it does."""
    file = written(tmp_path / "odd.onnx", [odd], {"kernel": np.ones((3, 3, 3, 3), np.float32)})
    with pytest.raises(SlimError, match=re.escape(f"can't be read: {said}")):
        read_onnx(file)


LARGE = {
    "filled": ([node("ConstantOfShape", "sizes", makes="t")], {"sizes": np.array([TERABYTE])}),
    "filled, of several gigabytes": ([node("ConstantOfShape", "sizes", makes="t")], {"sizes": np.array([10**9])}),
    "counted": (
        [node("Range", "from", "to", "by", makes="t")],
        {"from": np.array(0), "to": np.array(TERABYTE), "by": np.array(1)},
    ),
    "repeated": (
        [node("Tile", "one", "sizes", makes="t")],
        {"one": np.ones(1, np.float32), "sizes": np.array([10**9])},
    ),
    "spread": (
        [node("Expand", "one", "sizes", makes="t")],
        {"one": np.ones(1, np.float32), "sizes": np.array([10**9])},
    ),
}


def test_a_file_in_half_precision_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = written(tmp_path / "half.onnx", [node("Conv", "x", "w")], {"w": np.ones((4, 3, 1, 1), np.float16)})
    with pytest.raises(SlimError, match=r"is float16: expected float32 \(export it in that, and convert the thin"):
        slim.prune_onnx(path, None, slim.Flops(0.5), out=tmp_path / "thin.onnx")


@pytest.mark.parametrize("case", LARGE)
def test_a_constant_beyond_measure_takes_no_memory(case: str, tmp_path: Path) -> None:
    nodes, constants = LARGE[case]
    file = written(tmp_path / "large.onnx", [*nodes, node("Add", "x", "t")], constants)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(SlimError, match=r"makes a constant of [\d,]{11,} bytes: expected at most 268,435,456"):
        read_onnx(file)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KiB


GROWING = {
    "by squaring": [node("Mul", f"s{i}", f"s{i}", makes=f"s{i + 1}") for i in range(60)],
    "by a power": [node("Pow", "s0", "power", makes="s60")],
}


@pytest.mark.parametrize("case", GROWING)
def test_a_size_that_grows_without_end_is_refused(case: str, tmp_path: Path) -> None:
    """Whole numbers of Python's know no end: of 2⁶⁰ bits none comes back."""
    file = written(
        tmp_path / "growing.onnx",
        [
            node("Shape", "x", makes="sizes"),
            node("Gather", "sizes", "last", makes="s0"),
            *GROWING[case],
            node("Unsqueeze", "s60", "first", makes="side"),
            node("Concat", "side", "side", makes="shape", axis=0),
            node("Reshape", "x", "shape"),
        ],
        {"last": np.array(3), "first": np.array([0]), "power": np.array(10**15)},
        width="width",
    )
    with pytest.raises(SlimError, match=r"size of .* expected at most 63"):
        slim.plan(read_onnx(file), torch.ones(1, 3, 8, 8), ratio=0.5)
