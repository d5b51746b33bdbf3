from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from segship.export.widen import widened

Run = Callable[[onnx.ModelProto, NDArray[Any]], NDArray[Any]]


def convolution(outputs: int, kernel: int, *, group: int = 1, activated: bool = False) -> onnx.ModelProto:
    """Return a graph of one convolution of 6 channels, with or without a ReLU."""
    rng = np.random.default_rng(outputs)
    shape = (outputs, 6 // group, kernel, kernel)
    made = "made" if activated else "logits"
    nodes = [
        helper.make_node("Conv", ["image", "weight", "bias"], [made], "layer", pads=[kernel // 2] * 4, group=group)
    ]
    if activated:
        nodes.append(helper.make_node("Relu", [made], ["logits"], "relu"))
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 6, 8, 9])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, outputs, 8, 9])],
        [
            numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), "weight"),
            numpy_helper.from_array(rng.normal(size=outputs).astype(np.float32), "bias"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


@pytest.mark.parametrize("activated", [False, True])
@pytest.mark.parametrize("outputs", [1, 11, 18])
def test_channels_become_sixteens_and_the_result_stays(outputs: int, activated: bool, run_graph: Run) -> None:
    model = convolution(outputs, 3, activated=activated)
    wide = widened(model)
    onnx.checker.check_model(wide, full_check=True)
    assert [len(numpy_helper.to_array(t)) % 16 for t in wide.graph.initializer if t.name.endswith("wide")] == [0, 0]
    assert [node.op_type for node in wide.graph.node] == ["Conv", *(["Relu"] if activated else []), "Slice"]
    assert {tensor.name for tensor in wide.graph.initializer}.isdisjoint({"weight", "bias"})
    image = np.random.default_rng(1).normal(size=(1, 6, 8, 9)).astype(np.float32)
    np.testing.assert_allclose(run_graph(wide, image), run_graph(model, image), atol=1e-5)


@pytest.mark.parametrize(("outputs", "kernel", "group"), [(32, 3, 1), (11, 1, 1), (6, 3, 6)])
def test_what_has_no_slow_way_stays_as_it_is(outputs: int, kernel: int, group: int) -> None:
    model = convolution(outputs, kernel, group=group)
    assert widened(model) == model
