"""Every operator that the reader knows, against onnxruntime, on graphs of one node."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from slim.deploy.onnx.reader.node import READERS
from slim.deploy.onnx.reader.read import read_onnx
from slim.errors import SlimError

X = (2, 6, 8, 7)  # the input of most
ELEMENT = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64, "bool": TensorProto.BOOL}
random = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return random.standard_normal(shape).astype(np.float32)


def positive(*shape: int) -> np.ndarray:
    return random.uniform(0.3, 2.0, shape).astype(np.float32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def number(value: float) -> np.ndarray:
    return np.array(value, np.float32)


# operator, inputs, attributes, operator set. An input is a shape (of what the network is given), an array of what it is
# given, or ["constant", array].
Case = tuple[str, list[Any], dict[str, Any], int]


def const(array: np.ndarray) -> list[Any]:
    return ["constant", array]


POINTWISE: list[Case] = [
    *(
        (op, [X], {}, 17)
        for op in (
            *("Abs", "Ceil", "Cos", "Erf", "Exp", "Floor", "HardSwish", "Neg", "Relu", "Round", "Sigmoid", "Sign"),
            *("Sin", "Softplus", "Softsign", "Tanh", "Selu", "Identity", "Elu", "LeakyRelu", "HardSigmoid", "Celu"),
        )
    ),
    *((op, [positive(*X)], {}, 17) for op in ("Log", "Sqrt", "Reciprocal")),
    ("Mish", [X], {}, 18),
    ("Gelu", [X], {}, 20),
    ("Gelu", [X], {"approximate": "tanh"}, 20),
    ("Elu", [X], {"alpha": 0.7}, 11),
    ("Celu", [X], {"alpha": 0.7}, 12),
    ("LeakyRelu", [X], {"alpha": 0.3}, 11),
    ("ThresholdedRelu", [X], {"alpha": 0.3}, 11),
    ("HardSigmoid", [X], {"alpha": 1 / 6, "beta": 0.5}, 11),
    ("HardSigmoid", [X], {"alpha": 0.3, "beta": 0.4}, 11),
    *((op, [X, X], {}, 17) for op in ("Add", "Sub", "Mul", "Div", "Greater", "Less", "GreaterOrEqual", "LessOrEqual")),
    *((op, [X, const(normal(1, 6, 1, 1))], {}, 17) for op in ("Add", "Sub", "Mul", "Div")),
    *((op, [const(number(0.7)), X], {}, 17) for op in ("Add", "Sub", "Mul", "Div")),
    *((op, [X, const(np.array([0.3], np.float32))], {}, 11) for op in ("Add", "Mul", "Greater", "Less")),
    ("Pow", [positive(*X), const(number(1.7))], {}, 13),
    ("Div", [ints(7, -7, 9, 4), const(ints(2, 2, -2, 3))], {}, 14),
    ("Equal", [ints(1, 2, 3), const(ints(1, 5, 3))], {}, 13),
    *((op, [X, (2, 1, 8, 7), (6, 1, 1)], {}, 13) for op in ("Max", "Min", "Sum", "Mean")),
    ("Max", [X, const(number(0.2))], {}, 13),
    ("Clip", [X, const(number(-0.5)), const(number(0.7))], {}, 11),
    ("Clip", [X, const(number(0.0)), const(number(6.0))], {}, 13),
    ("Clip", [X, "", const(number(0.7))], {}, 13),
    ("Clip", [X], {"min": -0.2, "max": 0.4}, 10),
    ("Where", [random.random(X) > 0.5, X, X], {}, 16),
    ("Where", [random.random(X) > 0.5, X, const(number(-1.0))], {}, 16),
    ("And", [random.random(X) > 0.5, random.random(X) > 0.5], {}, 13),
    ("Or", [random.random(X) > 0.5, random.random(X) > 0.5], {}, 13),
    ("Not", [random.random(X) > 0.5], {}, 13),
    ("Softmax", [X], {"axis": 1}, 13),
    ("Softmax", [X], {"axis": 2}, 11),
    ("Softmax", [X], {}, 11),
    ("LogSoftmax", [X], {"axis": -1}, 13),
    ("Dropout", [X], {}, 13),
    ("Cast", [X], {"to": TensorProto.INT64}, 13),
    ("Cast", [ints(1, 2, 3)], {"to": TensorProto.FLOAT}, 13),
    ("CastLike", [ints(1, 2, 3), (3,)], {}, 15),
    ("PRelu", [X, const(normal(6, 1, 1))], {}, 16),
    ("PRelu", [X, const(normal(1))], {}, 16),
    ("PRelu", [X, (6, 1, 1)], {}, 16),
]
LAYERS: list[Case] = [
    ("Conv", [X, const(normal(4, 6, 3, 3)), const(normal(4))], {"pads": [1, 1, 1, 1]}, 11),
    ("Conv", [X, const(normal(4, 6, 3, 2))], {"strides": [2, 1], "dilations": [1, 2]}, 11),
    ("Conv", [X, const(normal(6, 1, 3, 3)), const(normal(6))], {"group": 6, "pads": [0, 1, 2, 1]}, 13),
    ("Conv", [X, const(normal(4, 3, 3, 3)), const(normal(4))], {"group": 2, "auto_pad": "SAME_UPPER"}, 13),
    ("Conv", [X, const(normal(4, 6, 2, 2))], {"auto_pad": "SAME_LOWER", "strides": [2, 2]}, 13),
    ("Conv", [X, const(normal(4, 6, 2, 2))], {"auto_pad": "VALID"}, 13),
    ("Conv", [(2, 6, 9), const(normal(4, 6, 3)), const(normal(4))], {"pads": [2, 0]}, 13),
    ("Conv", [(1, 3, 5, 6, 7), const(normal(4, 3, 3, 3, 3))], {"pads": [1, 1, 1, 1, 1, 1]}, 13),
    ("ConvTranspose", [X, const(normal(6, 4, 2, 2)), const(normal(4))], {"strides": [2, 2]}, 11),
    (
        "ConvTranspose",
        [X, const(normal(6, 2, 3, 3))],
        {"strides": [2, 2], "group": 2, "pads": [1, 1, 1, 1], "output_padding": [1, 0], "dilations": [1, 2]},
        11,
    ),
    ("Gemm", [(3, 6), const(normal(4, 6)), const(normal(4))], {"transB": 1}, 11),
    ("Gemm", [(3, 6), const(normal(6, 4)), const(normal(1, 4))], {"alpha": 0.5, "beta": 2.0}, 13),
    ("Gemm", [(3, 6), const(normal(6, 4)), const(number(0.7))], {}, 13),
    ("Gemm", [(3, 6), const(normal(6, 4)), const(normal(3, 4))], {"beta": 0.3}, 13),
    ("Gemm", [(6, 3), (4, 6), (4,)], {"transA": 1, "transB": 1, "alpha": 0.5}, 13),
    ("Gemm", [(3, 6), const(normal(4, 6))], {"transB": 1}, 13),
    ("Einsum", [(2, 5, 6), (2, 4, 6)], {"equation": "bik,bjk->bij"}, 13),
    ("Einsum", [(2, 5, 6), const(normal(6, 4))], {"equation": "...k,kj->...j"}, 13),
    ("MatMul", [(2, 5, 6), const(normal(6, 4))], {}, 13),
    ("MatMul", [(2, 5, 6), (2, 6, 3)], {}, 13),
    ("MatMul", [const(normal(3, 5)), (2, 5, 6)], {}, 13),
    *(
        (
            "BatchNormalization",
            [shape, *(const(each(6)) for each in (normal, normal, normal, positive))],
            {"epsilon": e},
            15,
        )
        for shape, e in ((X, 1e-5), ((2, 6), 1e-3), ((2, 6, 9), 1e-3), ((2, 6, 3, 4, 5), 1e-3))
    ),
    ("InstanceNormalization", [X, const(normal(6)), const(normal(6))], {"epsilon": 1e-3}, 13),
    ("LayerNormalization", [X, const(normal(7)), const(normal(7))], {"epsilon": 1e-3}, 17),
    ("LayerNormalization", [X, const(normal(8, 7))], {"axis": -2}, 17),
    ("GroupNormalization", [X, const(normal(6)), const(normal(6))], {"num_groups": 3}, 21),
]
MOVING: list[Case] = [
    ("Reshape", [X, const(ints(0, -1, 7))], {}, 13),
    ("Reshape", [X, const(ints(2, 2, 3, 56))], {}, 13),
    ("Flatten", [X], {}, 13),
    ("Flatten", [X], {"axis": 2}, 13),
    ("Flatten", [X], {"axis": 0}, 13),
    ("Transpose", [X], {"perm": [0, 2, 3, 1]}, 13),
    ("Transpose", [X], {}, 13),
    ("Squeeze", [(2, 1, 3, 1)], {"axes": [1]}, 11),
    ("Squeeze", [(2, 1, 3, 1), const(ints(-1))], {}, 13),
    ("Squeeze", [(2, 1, 3, 1)], {}, 13),
    ("Unsqueeze", [X], {"axes": [0, 3]}, 11),
    ("Unsqueeze", [X, const(ints(-1, 1))], {}, 13),
    ("Concat", [X, (2, 3, 8, 7), const(normal(2, 1, 8, 7))], {"axis": 1}, 13),
    ("Split", [X], {"axis": 1, "split": [1, 5]}, 11),
    ("Split", [X, const(ints(2, 4))], {"axis": 1}, 13),
    ("Split", [X], {"axis": -2, "num_outputs": 2}, 18),
    ("Slice", [X, const(ints(1, 2)), const(ints(5, 2**63 - 1)), const(ints(1, 3)), const(ints(2, 1))], {}, 11),
    ("Slice", [X, const(ints(-3)), const(ints(-1)), const(ints(2))], {}, 13),
    ("Slice", [X, const(ints(-1)), const(ints(-(2**63))), const(ints(3)), const(ints(-2))], {}, 13),
    ("Slice", [X], {"starts": [1, 2], "ends": [2, 9999999999], "axes": [0, 2]}, 9),
    ("Gather", [X, const(np.array(-2, np.int64))], {"axis": 1}, 13),
    ("Gather", [X, const(ints(3, 0, -1))], {"axis": 1}, 13),
    ("Gather", [X, const(np.array([[0, 1], [2, 3]], np.int64))], {"axis": 2}, 13),
    ("GatherElements", [X, const(random.integers(-6, 6, (2, 3, 8, 7)))], {"axis": 1}, 13),
    ("Expand", [(2, 1, 4), const(ints(3, 1, 5, 1))], {}, 13),
    ("Expand", [(2, 3, 4), const(ints(3, 1))], {}, 13),
    ("Tile", [(2, 3), const(ints(2, 3))], {}, 13),
    ("Pad", [X, const(ints(0, 0, 1, 2, 0, 0, 3, 0))], {}, 13),
    ("Pad", [X, const(ints(0, 1, 1, 2, 0, 0, 3, 0)), const(number(1.5))], {}, 13),
    ("Pad", [X, const(ints(0, 0, 1, 2, 0, 0, 3, 0))], {"mode": "reflect"}, 13),
    ("Pad", [X, const(ints(0, 0, 1, 2, 0, 0, 3, 0))], {"mode": "edge"}, 13),
    ("Pad", [X, const(ints(0, 2, 1, 0, 0, 1, 0, 2))], {"mode": "reflect"}, 13),
    ("Pad", [(2, 9, 1), const(ints(0, 3, 0, 0, 4, 0))], {"mode": "reflect"}, 13),
    ("Pad", [(3, 4), const(ints(1, 0, 1, 2))], {"mode": "edge"}, 13),
    ("Pad", [X], {"pads": [0, 0, 1, 2, 0, 0, 3, 0], "value": 0.5}, 10),
    ("Trilu", [(2, 4, 5)], {}, 14),
    ("Trilu", [(4, 5), const(np.array(-1, np.int64))], {"upper": 0}, 14),
    ("Pad", [X, const(ints(1, 2)), "", const(ints(-1))], {}, 18),
    ("DepthToSpace", [(2, 8, 3, 4)], {"blocksize": 2}, 13),
    ("DepthToSpace", [(2, 8, 3, 4)], {"blocksize": 2, "mode": "CRD"}, 13),
    ("SpaceToDepth", [(2, 3, 4, 6)], {"blocksize": 2}, 13),
]
FOLDING: list[Case] = [
    ("MaxPool", [X], {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 1, 0]}, 12),
    ("MaxPool", [X], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0, 1, 1, 0], "dilations": [1, 2]}, 12),
    ("MaxPool", [X], {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}, 12),
    ("MaxPool", [X], {"kernel_shape": [2, 2], "strides": [2, 2], "auto_pad": "SAME_UPPER"}, 12),
    ("MaxPool", [(2, 6, 9)], {"kernel_shape": [3]}, 12),
    ("AveragePool", [X], {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 1, 0]}, 11),
    ("AveragePool", [X], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}, 11),
    ("AveragePool", [X], {"kernel_shape": [2, 2], "pads": [0, 0, 1, 1], "count_include_pad": 1}, 11),
    ("GlobalAveragePool", [X], {}, 13),
    ("GlobalMaxPool", [X], {}, 13),
    *((op, [X], {"axes": [1, -1]}, 13) for op in ("ReduceMean", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2")),
    *((op, [X, const(ints(2, 3))], {"keepdims": 0}, 18) for op in ("ReduceMean", "ReduceSum", "ReduceMax")),
    *((op, [X], {}, 13) for op in ("ReduceMean", "ReduceSum", "ReduceLogSumExp", "ReduceSumSquare")),
    *(("ReduceProd", [X], more, 13) for more in ({"axes": [1, -1]}, {"axes": [2], "keepdims": 0}, {})),
    *(("LpNormalization", [X], more, 13) for more in ({"axis": 1}, {"p": 1})),
    ("CumSum", [X, const(np.array(1, np.int64))], {}, 14),
    ("ArgMax", [X], {"axis": 1}, 13),
    ("ArgMin", [X], {"axis": -1, "keepdims": 0}, 13),
    ("TopK", [X, const(ints(3))], {"axis": 1}, 11),
    ("LRN", [X], {"size": 3, "alpha": 0.1, "beta": 0.6, "bias": 1.5}, 13),
    *(
        ("Resize", [X, "", const(np.array([1, 1, *scale], np.float32))], attributes, 13)
        for scale in ((2, 2), (1.5, 2))
        for attributes in (
            {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
            {"mode": "linear", "coordinate_transformation_mode": "half_pixel"},
            {"mode": "cubic", "coordinate_transformation_mode": "half_pixel"},
        )
    ),
    (
        "Resize",
        [X, "", "", const(ints(2, 6, 13, 11))],
        {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
        13,
    ),
    ("Resize", [X, const(normal(0)), const(np.array([1, 1, 3, 3], np.float32))], {"mode": "nearest"}, 11),
    ("Resize", [(2, 3, 5), "", "", const(ints(2, 3, 8))], {"mode": "linear"}, 13),
    ("Upsample", [X, const(np.array([1, 1, 2, 3], np.float32))], {"mode": "nearest"}, 9),
]
SEQUENCE = (5, 2, 3)  # time, batch, features; 4 hidden ones below
RECURRENT: list[Case] = [
    *(
        (op, [SEQUENCE, *(const(normal(d, g * 4, n)) for n in (3, 4)), *bias(d, g), *start], {**by, **more}, 14)
        for op, g, more in (("LSTM", 4, {}), ("GRU", 3, {"linear_before_reset": 1}), ("RNN", 1, {}))
        for d, by, bias, start in (
            (1, {"hidden_size": 4}, lambda d, g: [const(normal(d, 8 * g))], []),
            (1, {"hidden_size": 4, "direction": "reverse"}, lambda d, g: [], []),
            (2, {"hidden_size": 4, "direction": "bidirectional"}, lambda d, g: [const(normal(d, 8 * g))], []),
            (1, {"hidden_size": 4}, lambda d, g: [""], ["", *[(1, 2, 4)] * (1 + (op == "LSTM"))]),
            (1, {"hidden_size": 4}, lambda d, g: [""], ["", const(np.zeros((1, 2, 4), np.float32))]),
        )
    ),
    (
        "RNN",
        [SEQUENCE, const(normal(1, 4, 3)), const(normal(1, 4, 4))],
        {"hidden_size": 4, "activations": ["Relu"]},
        14,
    ),
]
CASES = POINTWISE + LAYERS + MOVING + FOLDING + RECURRENT
OUTPUTS = {"Split": 2, "TopK": 2, "LSTM": 3, "GRU": 2, "RNN": 2}
ELSEWHERE = {"ConstantOfShape", "Range", "Swish"}  # in the chains below; Swish is newer than onnxruntime's kernels


def one_node(case: Case, path: Path) -> dict[str, np.ndarray]:
    """Write a file of one node, and return what it is to be given."""
    op, inputs, attributes, opset = case
    names, entries, constants, feed = [], [], [], {}
    for i, given in enumerate(inputs):
        if isinstance(given, str):
            names.append("")
            continue
        names.append(f"x{i}")
        if isinstance(given, list):
            constants.append(numpy_helper.from_array(given[1], names[-1]))
            continue
        array = given if isinstance(given, np.ndarray) else normal(*given)
        feed[names[-1]] = array
        entries.append(helper.make_tensor_value_info(names[-1], ELEMENT[array.dtype.name], array.shape))
    outputs = [f"y{i}" for i in range(OUTPUTS.get(op, 1))]
    node = helper.make_node(op, names, outputs, name="/block/block.0/node", **attributes)
    made = [onnx.ValueInfoProto(name=name) for name in outputs]
    save(helper.make_graph([node], "one", entries, made, constants), path, opset)
    return feed


def save(graph: onnx.GraphProto, path: Path, opset: int) -> None:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    inferred = onnx.shape_inference.infer_shapes(model)  # for the types of the outputs
    onnx.save(inferred, path)


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def assert_same(path: Path, feed: dict[str, np.ndarray], tolerance: float = 1e-5) -> None:
    net = read_onnx(path)
    expected = session(path).run(None, feed)
    made = net(*(torch.from_numpy(feed[name]) for name in net.inputs))
    for a, b in zip(expected, made if isinstance(made, tuple) else (made,), strict=True):
        assert tuple(b.shape) == a.shape
        assert b.numpy(force=True).dtype == a.dtype
        scale = max(1.0, np.abs(a).max()) if a.dtype.kind == "f" else 1
        assert np.abs(a.astype(float) - b.numpy(force=True).astype(float)).max() <= tolerance * scale


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[3]}")
def test_an_operator_gives_what_onnxruntime_gives(case: Case, tmp_path: Path) -> None:
    feed = one_node(case, tmp_path / "one.onnx")
    assert_same(tmp_path / "one.onnx", feed)


def test_every_operator_that_is_read_has_a_case() -> None:
    assert READERS.keys() - {case[0] for case in CASES} == ELSEWHERE


REFUSED: list[tuple[Case, str]] = [
    (("Resize", [X, "", const(np.array([1, 1, 2, 2], np.float32))], {"mode": "linear",
      "coordinate_transformation_mode": "asymmetric"}, 13), "Resize .* linear with asymmetric"),
    (("Conv", [X, (4, 6, 3, 3)], {}, 13), "Conv .* is computed by the network"),
    (("NonZero", [X], {}, 13), "can't read operator NonZero"),
    (("GRU", [SEQUENCE, const(normal(1, 12, 3)), const(normal(1, 12, 4))], {"hidden_size": 4}, 14), "resets the state"),
    (("LSTM", [SEQUENCE, const(normal(1, 16, 3)), const(normal(1, 16, 4)), "", (2,)], {"hidden_size": 4}, 14),
     "it is given lengths of sequences"),
    (("RNN", [SEQUENCE, const(normal(1, 4, 3)), const(normal(1, 4, 4))],
      {"hidden_size": 4, "activations": ["Sigmoid"]}, 14), "activations are Sigmoid: expected Tanh"),
    (("QuantizeLinear", [X, const(number(0.1))], {}, 13), "QuantizeLinear: expected the float network"),
    (("CumSum", [X, const(np.array(1, np.int64))], {"reverse": 1}, 14), "expected sums from the first on"),
    (("ConvTranspose", [X, const(normal(6, 4, 2, 2))], {"pads": [0, 0, 1, 1]}, 13), "the same padding on both sides"),
]  # fmt: skip


@pytest.mark.parametrize(("case", "message"), REFUSED, ids=lambda each: each[0] if isinstance(each, tuple) else "")
def test_what_cannot_be_read_is_named(case: Case, message: str, tmp_path: Path) -> None:
    op, inputs, attributes, opset = case
    names = [f"x{i}" if not isinstance(given, str) else "" for i, given in enumerate(inputs)]
    constants = [numpy_helper.from_array(g[1], n) for n, g in zip(names, inputs) if isinstance(g, list)]
    entries = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, g) for n, g in zip(names, inputs) if isinstance(g, tuple)
    ]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([helper.make_node(op, names, ["y"], **attributes)], "one", entries, [output], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.save(model, tmp_path / "one.onnx")
    with pytest.raises(SlimError, match=message) as error:
        read_onnx(tmp_path / "one.onnx")
    assert "\n" not in str(error.value) and "one.onnx" in str(error.value)


def test_a_chain_of_sizes_follows_the_input(tmp_path: Path) -> None:
    """Shape arithmetic with an open batch and size: computed anew for each input, in numbers."""

    def node(op: str, takes: str, makes: str, **attributes: Any) -> onnx.NodeProto:
        return helper.make_node(op, takes.split(), makes.split(), **attributes)

    nodes = [
        node("Shape", "x", "shape"),
        node("Gather", "shape zero", "n"), node("Gather", "shape two", "h"), node("Gather", "shape three", "w"),
        node("Unsqueeze", "n axis", "n1"), node("Mul", "h w", "hw"), node("Unsqueeze", "hw axis", "hw1"),
        node("Concat", "n1 minus hw1", "target", axis=0), node("Reshape", "x target", "flat"),
        node("Range", "zero hw one", "row"), node("Cast", "row", "floats", to=TensorProto.FLOAT),
        node("Shape", "target", "rank"),
        node("ConstantOfShape", "rank", "ones", value=numpy_helper.from_array(ints(1))),
        node("Equal", "target minus", "open"), node("Where", "open ones target", "wide"),
        node("Expand", "floats wide", "rows"), node("Add", "flat rows", "y"),
    ]  # fmt: skip
    constants = {"zero": 0, "one": 1, "two": 2, "three": 3}
    initializers = [numpy_helper.from_array(np.array(value, np.int64), name) for name, value in constants.items()]
    initializers += [numpy_helper.from_array(ints(value), name) for name, value in {"axis": 0, "minus": -1}.items()]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, "h", "w"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "chain", [x], [y], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, tmp_path / "chain.onnx")
    for shape in ((2, 3, 4, 5), (1, 3, 6, 2)):
        assert_same(tmp_path / "chain.onnx", {"x": normal(*shape)})
