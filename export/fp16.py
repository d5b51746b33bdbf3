"""A graph in half precision, where that does no harm: IEEE binary16, 11 bits of precision, up to 65504.

What makes the network's input of pixels, what makes labels of its logits, and what adds up many values stays in
float32; so do the graph's own input and output. Names and operators stay, Casts come between.

The Casts are placed here, and not by the converter that ONNX Runtime brings: between two nodes that stay in float32
that one rounds to half and back, so that a 16-bit picture's 65535 becomes infinite, and it leaves nodes unsorted and
types stale.
"""

from collections.abc import Callable
from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from segship.export.trunk import inferred, trunk_of, with_named_nodes
from segship.runtime.errors import ExportError

HALF_OPERATORS: Final = frozenset(
    {"Add", "BatchNormalization", "Clip", "Concat", "Conv", "ConvTranspose", "DepthToSpace", "Div", "Elu", "Flatten"}
    | {"Gemm", "HardSigmoid", "HardSwish", "LeakyRelu", "MatMul", "MaxPool", "Mul", "PRelu", "Pad", "Relu", "Reshape"}
    | {"Resize", "Shape", "Sigmoid", "Slice", "Split", "Squeeze", "Sub", "Tanh", "Transpose", "Unsqueeze"}
)
"""Those that half precision is enough for. Of the others some add up more than it holds (ReduceMean, the average
pools, Softmax), some compare what it rounds to the same (ArgMax), and some are not known."""
MAX_WEIGHT_ERROR: Final = 1e-3
"""Largest relative error of a tensor of weights, by its Euclidean norm; mere rounding makes 3e-4."""


def to_fp16(model: onnx.ModelProto, tell: Callable[[str], None] = lambda _: None) -> onnx.ModelProto:
    """Return a graph that computes in half precision what ``model`` computes in single precision.

    Args:
        model: float32; left as it is.
        tell: called with a line for each layer that stays in float32 because half cannot hold its weights: values
            that overflow, or so small that most of their digits are lost.

    Raises:
        ExportError: if nothing can be computed in half precision.
    """
    half = with_named_nodes(model)
    graph = half.graph
    body = trunk_of(graph).body
    layers = {node.name for node in graph.node if node.name in body and node.op_type in HALF_OPERATORS}
    for layer, error in _unfit_weights(graph).items():
        if layer in layers:
            layers.remove(layer)
            tell(f"{layer} stays in float32: half precision changes its weights by {100 * error:.3g} %")
    if not layers:
        raise ExportError("no layer can be computed in half precision; export with --precision fp32")
    _convert(graph, layers, _float_tensors(inferred(half)))
    return inferred(half)


def _unfit_weights(graph: onnx.GraphProto) -> dict[str, float]:
    """Return the relative error of the weights that half precision cannot hold, by the node that takes them."""
    errors = {
        tensor.name: _relative_error(numpy_helper.to_array(tensor))
        for tensor in graph.initializer
        if tensor.data_type == TensorProto.FLOAT
    }
    unfit = {node.name: max((errors.get(name, 0.0) for name in node.input), default=0.0) for node in graph.node}
    return {name: error for name, error in unfit.items() if error > MAX_WEIGHT_ERROR}


def _relative_error(weights: NDArray[np.float32]) -> float:
    size = float(np.linalg.norm(weights.astype(np.float64)))
    with np.errstate(over="ignore"):  # what overflows is infinite, and so is its error
        rounded = weights.astype(np.float16)
    return float(np.linalg.norm(weights.astype(np.float64) - rounded)) / size if size else 0.0


def _float_tensors(model: onnx.ModelProto) -> set[str]:
    """Return the names of all float32 tensors of a graph whose types are inferred."""
    graph = model.graph
    values = (*graph.input, *graph.output, *graph.value_info)
    names = {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT}
    return names | {tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT}


def _convert(graph: onnx.GraphProto, layers: set[str], floats: set[str]) -> None:
    """Let ``layers`` compute in half, with a Cast where a tensor goes from one precision to the other."""
    outputs = {value.name for value in graph.output}
    halves: set[str] = set()  # tensors that are half precision under their own name
    casts: dict[tuple[str, int], str] = {}  # what a tensor is called in the other precision
    nodes: list[onnx.NodeProto] = []

    def in_type(name: str, wanted: int) -> str:
        if name not in floats or (name in halves) == (wanted == TensorProto.FLOAT16):
            return name
        if (name, wanted) not in casts:
            casts[name, wanted] = f"{name}_{'float16' if wanted == TensorProto.FLOAT16 else 'float32'}"
            nodes.append(_cast(name, casts[name, wanted], wanted))
        return casts[name, wanted]

    _convert_weights(graph, layers, floats, halves)
    for node in graph.node:
        is_half = node.name in layers
        for position, name in enumerate(node.input):
            # Of a Resize the sizes and scales are float32, whatever the picture is.
            wants_half = is_half and (position == 0 or node.op_type != "Resize")
            node.input[position] = in_type(name, TensorProto.FLOAT16 if wants_half else TensorProto.FLOAT)
        nodes.append(node)
        for position, name in enumerate(node.output):
            if is_half and name in floats and name in outputs:
                node.output[position] = f"{name}_float16"
                nodes.append(_cast(node.output[position], name, TensorProto.FLOAT))
            elif is_half and name in floats:
                halves.add(name)
    del graph.node[:]
    graph.node.extend(nodes)


def _convert_weights(graph: onnx.GraphProto, layers: set[str], floats: set[str], halves: set[str]) -> None:
    """Store in half the weights that only ``layers`` take; what others take too gets a Cast like any tensor."""
    kept = {
        name
        for node in graph.node
        for position, name in enumerate(node.input)
        if node.name not in layers or (node.op_type == "Resize" and position > 0)
    }
    for tensor in graph.initializer:
        if tensor.name in floats and tensor.name not in kept:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
            halves.add(tensor.name)


def _cast(name: str, result: str, wanted: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [name], [result], name=f"{result}/Cast", to=wanted)
