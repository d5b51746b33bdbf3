"""What one run of a graph costs: its arithmetic, and the bytes that it must move."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from segship.benchmarks.graph_shapes import Node, SizedGraph, Tensor, sized_graph
from segship.runtime.errors import ModelError

_VIEWS: Final = frozenset({"DequantizeLinear", "Dropout", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"})
_CONVERSIONS: Final = frozenset({"Cast", "CastLike", "QuantizeLinear", "DynamicQuantizeLinear"})
_COPIES: Final = frozenset(
    {
        *("CenterCropPad", "Compress", "Concat", "DepthToSpace", "Expand", "Gather", "GatherElements", "GatherND"),
        *("OneHot", "Pad", "ReverseSequence", "Scatter", "ScatterElements", "ScatterND", "Shape", "Size", "Slice"),
        *("SpaceToDepth", "Split", "Tile", "Transpose", "Trilu"),
    }
)
_ELEMENTWISE: Final = frozenset(
    {
        *("Abs", "Add", "And", "Ceil", "Celu", "Clip", "Cos", "Div", "Elu", "Equal", "Erf", "Exp", "Floor", "Gelu"),
        *("Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish", "LeakyRelu", "Less", "LessOrEqual", "Log", "Max"),
        *("Mean", "Min", "Mish", "Mod", "Mul", "Neg", "Not", "Or", "PRelu", "Pow", "Reciprocal", "Relu", "Round"),
        *("Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Softplus", "Softsign", "Sqrt", "Sub", "Sum", "Swish", "Tan"),
        *("Tanh", "ThresholdedRelu", "Where", "Xor"),
    }
)
_REDUCTIONS: Final = frozenset(
    {
        *("ArgMax", "ArgMin", "CumSum", "GlobalAveragePool", "GlobalMaxPool", "ReduceL1", "ReduceL2", "ReduceLogSum"),
        *("ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare"),
        "TopK",
    }
)
_PER_ELEMENT: Final = {
    "BatchNormalization": 2,
    **dict.fromkeys(("Softmax", "LogSoftmax"), 5),
    **dict.fromkeys(("InstanceNormalization", "LayerNormalization", "GroupNormalization", "RMSNormalization"), 7),
}
_TAPS: Final = {"nearest": 0, "linear": 2, "bilinear": 2, "cubic": 4}

_Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class GraphCost:
    """What one run of a graph costs; see :func:`graph_cost`.

    Attributes:
        gflop: arithmetic, in 10⁹ operations; of integers too.
        gbyte: least that is moved, in 10⁹ bytes.
    """

    gflop: float
    gbyte: float


def graph_cost(model: Path, size: tuple[int, int], batch: int = 1) -> GraphCost:
    """Count what one run of an ONNX file costs, from its graph alone.

    Arithmetic, in operations:

    - Convolutions, transposed ones and matrix products (``Einsum`` among them), of floats or integers: two for each
      multiply-add. Biases are not counted.
    - Elementwise nodes: one for each element of the result. Batch normalisation: two.
    - Reductions, global pooling, ``ArgMax``: one for each element that they take.
    - Pooling: one for each value under the window, padding included.
    - ``Resize``: two for each neighbour of each element of the result: 8 where it is linear in two directions, 32
      where cubic; nothing where it takes the nearest one.
    - ``Softmax``: five for each element (maximum, difference, exponential, sum, quotient). Normalisations that measure
      mean and deviation: seven (sum; difference, square, sum; difference, product, sum).
    - What only copies or converts, quantising and dequantising included: nothing.

    Bytes: each weight is read once; each tensor between nodes is written once and read once, by however many nodes;
    what the graph takes is read once, and what it returns is written once. All count in the type in which they are
    stored: int8 weights 1 byte each, float16 ones 2. Nothing is moved

    - by views: ``Reshape``, ``Identity`` and the like, and ``DequantizeLinear``, whose result is the stored integers;
    - between a node and the elementwise one (conversions and batch normalisation too) that alone takes its result
      and returns as many elements, since engines do the second while they write the first: of a sum's two terms, one;
    - by what depends on weights and shapes alone, which engines compute once and then read as a weight.

    Args:
        model: the file, made by segship or not.
        size: (height, width) that its graph gets, where it leaves them open; what is fixed in it stays so.
        batch: pictures in a run.

    Raises:
        ModelError: if it is no ONNX file, takes another number of pictures, or holds what cannot be counted: an
            operator that is not listed here, or a shape that depends on what pictures show.
        CardError: if it takes no pictures.
        MissingExtraError: if the package onnx is not installed.
    """
    graph = sized_graph(model, size, batch)
    working = [node for node in graph.nodes if not _is_constant(node, graph.tensors)]
    flop = sum(_operations(node, graph.tensors, model) for node in working)
    return GraphCost(flop / 1e9, _bytes_moved(graph, working) / 1e9)


def _is_constant(node: Node, tensors: _Tensors) -> bool:
    return all(tensors[name].is_constant for name in node.outputs if name)


def _operations(node: Node, tensors: _Tensors, model: Path) -> int:
    taken, result = tensors[node.inputs[0]], tensors[node.outputs[0]]
    if node.kind in _MULTIPLY_ADDS:
        return 2 * _MULTIPLY_ADDS[node.kind](node, tensors)
    if node.kind in _ELEMENTWISE:
        return result.elements
    if node.kind in _PER_ELEMENT:
        return _PER_ELEMENT[node.kind] * result.elements
    if node.kind in _REDUCTIONS:
        return taken.elements
    if node.kind in ("AveragePool", "MaxPool", "LpPool"):
        window: list[int] = node.attributes["kernel_shape"]
        return result.elements * math.prod(window)
    if node.kind in ("Resize", "Upsample"):
        directions = sum(before != after for before, after in zip(taken.shape, result.shape, strict=True))
        neighbours: int = _TAPS[node.attributes.get("mode", b"nearest").decode()] ** directions
        return 2 * result.elements * neighbours
    if node.kind in _VIEWS | _CONVERSIONS | _COPIES:
        return 0
    raise ModelError(f"{model}: how much {node.kind} computes is not known here; its graph cannot be counted")


def _of_convolution(node: Node, tensors: _Tensors) -> int:
    """Each value that comes out is one product of a filter with the input."""
    filters = tensors[node.inputs[3 if node.kind == "QLinearConv" else 1]]
    return tensors[node.outputs[0]].elements * math.prod(filters.shape[1:])


def _of_transposed(node: Node, tensors: _Tensors) -> int:
    """Each value that goes in meets the kernels of all channels that come out."""
    return tensors[node.inputs[0]].elements * math.prod(tensors[node.inputs[1]].shape[1:])


def _of_product(node: Node, tensors: _Tensors) -> int:
    shape = tensors[node.inputs[0]].shape
    return tensors[node.outputs[0]].elements * shape[0 if node.attributes.get("transA") else -1]


def _of_einsum(node: Node, tensors: _Tensors) -> int:
    """Each value that comes out is a sum over all letters that the result has no more."""
    terms, _, kept = node.attributes["equation"].decode().replace(" ", "").partition("->")
    sides: dict[str, int] = {}
    for term, name in zip(terms.split(","), node.inputs, strict=True):
        before, _, after = term.partition("...")
        shape = tensors[name].shape
        sides |= dict(zip(before, shape, strict=False)) | dict(zip(after[::-1], shape[::-1], strict=False))
    kept = kept or "".join(letter for letter in sides if terms.count(letter) == 1)
    summed = math.prod(side for letter, side in sides.items() if letter not in kept)
    return tensors[node.outputs[0]].elements * summed


_MULTIPLY_ADDS: Final[Mapping[str, Callable[[Node, _Tensors], int]]] = {
    **dict.fromkeys(("Conv", "ConvInteger", "QLinearConv"), _of_convolution),
    "ConvTranspose": _of_transposed,
    **dict.fromkeys(("Gemm", "MatMul", "MatMulInteger", "QLinearMatMul"), _of_product),
    "Einsum": _of_einsum,
}


def _bytes_moved(graph: SizedGraph, working: list[Node]) -> int:
    stored: dict[str, str] = {}  # what a view shows, by the view's name
    takers: dict[str, list[Node | None]] = defaultdict(list)  # None: whoever runs the graph
    made: set[str] = set()
    for node in graph.nodes:
        is_constant = _is_constant(node, graph.tensors)
        if node.kind in _VIEWS or (is_constant and node.kind == "Transpose"):
            stored[node.outputs[0]] = stored.get(node.inputs[0], node.inputs[0])
        elif not is_constant:
            made.update(node.outputs)
            for name in {stored.get(name, name) for name in node.inputs if name}:
                takers[name].append(node)
    for name in graph.outputs:
        takers[stored.get(name, name)].append(None)
    passed_on: set[str] = set()
    for node in working:
        passed_on |= _taken_at_once(node, graph.tensors, stored, takers, made)
    total = 0
    for name in takers.keys() - passed_on:
        # What is made is written, and read if a node takes it; what is not made is read.
        moves = (name in made) + any(taker is not None for taker in takers[name])
        total += moves * graph.tensors[name].bytes
    return total


def _taken_at_once(
    node: Node,
    tensors: _Tensors,
    stored: Mapping[str, str],
    takers: Mapping[str, list[Node | None]],
    made: set[str],
) -> set[str]:
    """Return the name of the largest input that a node takes while it is made, if there is one."""
    if node.kind not in _ELEMENTWISE | _CONVERSIONS | {"BatchNormalization"}:
        return set()
    elements = tensors[node.outputs[0]].elements
    sources = {stored.get(name, name) for name in node.inputs if name}
    at_once = [
        name for name in sources if name in made and len(takers[name]) == 1 and tensors[name].elements == elements
    ]
    return {max(at_once, key=lambda name: tensors[name].bytes)} if at_once else set()
