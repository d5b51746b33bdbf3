from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from segship.export.subpixel import as_convolutions

Run = Callable[[onnx.ModelProto, NDArray[Any]], NDArray[Any]]


def transposed(kernel: int, *, bias: bool = True, **attributes: object) -> onnx.ModelProto:
    """Return a graph of one transposed convolution, 3 to 5 channels."""
    rng = np.random.default_rng(kernel)
    group = attributes.get("group", 1)
    shape = (3, 5, kernel, kernel) if group == 1 else (3, 1, kernel, kernel)
    weights = [numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), "weight")]
    if bias:
        weights.append(numpy_helper.from_array(rng.normal(size=5 if group == 1 else 3).astype(np.float32), "bias"))
    inputs = ["image", *(tensor.name for tensor in weights)]
    graph = helper.make_graph(
        [helper.make_node("ConvTranspose", inputs, ["logits"], "up", **attributes)],
        "network",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 6, 7])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, None, None, None])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


@pytest.mark.parametrize(
    ("kernel", "stride", "pads", "bias"),
    [(2, 2, [0, 0, 0, 0], True), (4, 2, [1, 1, 1, 1], True), (4, 2, [0, 1, 2, 0], False), (6, 3, [1, 2, 0, 1], True)],
)
def test_it_computes_the_same_sums(kernel: int, stride: int, pads: list[int], bias: bool, run_graph: Run) -> None:
    model = transposed(kernel, bias=bias, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=pads)
    rewritten = as_convolutions(model)
    onnx.checker.check_model(rewritten, full_check=True)
    assert {node.op_type for node in rewritten.graph.node} <= {"Conv", "DepthToSpace", "Slice"}
    assert rewritten.graph.node[0].name == "up"
    assert {tensor.name for tensor in rewritten.graph.initializer}.isdisjoint({"weight", "bias"})
    image = np.random.default_rng(1).normal(size=(1, 3, 6, 7)).astype(np.float32)
    np.testing.assert_allclose(run_graph(rewritten, image), run_graph(model, image), atol=1e-5)


@pytest.mark.parametrize(
    "attributes",
    [
        {"strides": [2, 2], "kernel_shape": [3, 3]},
        {"strides": [2, 1], "kernel_shape": [4, 4]},
        {"strides": [2, 2], "kernel_shape": [4, 4], "output_padding": [1, 1]},
        {"strides": [2, 2], "kernel_shape": [4, 4], "dilations": [2, 2]},
        {"strides": [2, 2], "kernel_shape": [4, 4], "group": 3},
        {"strides": [2, 2], "kernel_shape": [4, 4], "auto_pad": "SAME_UPPER"},
        {"strides": [1, 1], "kernel_shape": [3, 3]},
    ],
)
def test_what_is_no_such_convolution_stays_as_it_is(attributes: dict[str, object]) -> None:
    model = transposed(attributes["kernel_shape"][0], **attributes)  # type: ignore[index]
    assert as_convolutions(model) == model
