"""Convolutions with as many channels as ONNX Runtime's 8-bit kernel wants: sixteens, or it takes a slow way.

U²-NetP's side outputs have 11 channels, one a class. In 8 bits that of full resolution takes 19 ms with 11 channels,
4 ms with 16 of which 5 are thrown away, and 12 ms in float32.
"""

from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from segship.export.trunk import drop_unused_weights

CHANNELS: Final = 16


def widened(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy in which convolutions have a multiple of 16 output channels; those without a use are cut off.

    They are cut off behind the ReLU that follows, which is one with its convolution. Convolutions in groups stay as
    they are, and those of single pixels, which take another way.

    Args:
        model: its nodes have names; left as it is.
    """
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    graph = wide.graph
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    cuts = {}
    for node in graph.node:
        if _gains(node, weights):
            channels = len(weights[node.input[1]])
            cuts[_with_activation(node, graph).name] = channels
            for position, name in enumerate(node.input[1:], 1):
                node.input[position] = f"{name}/wide"
                _add(graph, node.input[position], _padded(weights[name]))
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        nodes.append(node)
        if node.name in cuts:
            result = node.output[0]
            node.output[0] = f"{result}/wide"
            slices = {"first": [0], "end": [cuts[node.name]], "axis": [1]}
            for name, value in slices.items():
                _add(graph, f"{result}/{name}", np.array(value))
            inputs = [node.output[0], *(f"{result}/{name}" for name in slices)]
            nodes.append(helper.make_node("Slice", inputs, [result], f"{node.name}/cut"))
    del graph.node[:]
    graph.node.extend(nodes)
    drop_unused_weights(graph)
    return wide


def _gains(node: onnx.NodeProto, weights: dict[str, NDArray[np.float32]]) -> bool:
    if node.op_type != "Conv" or any(name not in weights for name in node.input[1:]):
        return False
    kernel = weights[node.input[1]]
    groups = next((entry.i for entry in node.attribute if entry.name == "group"), 1)
    return groups == 1 and kernel.shape[2:] != (1, 1) and len(kernel) % CHANNELS > 0


def _with_activation(node: onnx.NodeProto, graph: onnx.GraphProto) -> onnx.NodeProto:
    """Return the ReLU that alone takes what a node makes, otherwise the node."""
    takers = [taker for taker in graph.node if node.output[0] in taker.input]
    return takers[0] if len(takers) == 1 and takers[0].op_type == "Relu" else node


def _padded(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.pad(values, [(0, -len(values) % CHANNELS)] + [(0, 0)] * (values.ndim - 1))


def _add(graph: onnx.GraphProto, name: str, value: NDArray[np.generic]) -> None:
    if all(tensor.name != name for tensor in graph.initializer):  # two layers may share their weights
        graph.initializer.append(numpy_helper.from_array(value, name))
