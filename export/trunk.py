"""The part of a graph that reduced precision is for: what lies between its first weights and its last."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import onnx

from segship.runtime.errors import ExportError, one_line

WEIGHTED: Final = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


@dataclass(frozen=True)
class Trunk:
    """Where the network lies in a graph.

    Attributes:
        front: names of the nodes that come before any weights: a graph's normalisation of pixels.
        body: names of the nodes that lie between weights, those with weights included.
        last: of those, the ones that no weights follow: they make the logits.
        tail: names of the nodes that follow them: upscaling, softmax, argmax.
    """

    front: frozenset[str]
    body: frozenset[str]
    last: frozenset[str]
    tail: frozenset[str]


def trunk_of(graph: onnx.GraphProto) -> Trunk:
    """Find the network in a graph, whose nodes are sorted and named."""
    before = _reached(graph.node)
    after = _reached(
        onnx.NodeProto(name=node.name, op_type=node.op_type, input=node.output, output=node.input)
        for node in reversed(graph.node)
    )
    weighted = {node.name for node in graph.node if node.op_type in WEIGHTED}
    names = {node.name for node in graph.node}
    return Trunk(
        front=frozenset(names - before - weighted),
        body=frozenset((before & after) | weighted),
        last=frozenset(weighted - after),
        tail=frozenset(before - after - weighted),
    )


def with_named_nodes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy whose nodes all have a name; those without one are called after what they make."""
    named = onnx.ModelProto()
    named.CopyFrom(model)
    for node in named.graph.node:
        node.name = node.name or f"{node.op_type}:{node.output[0]}"
    return named


def drop_unused_weights(graph: onnx.GraphProto) -> None:
    """Take out of a graph the weights that no node takes any more."""
    taken = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in taken]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def inferred(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy with the types and shapes of all tensors, worked out anew.

    Raises:
        ExportError: if types or shapes contradict each other.
    """
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.graph.value_info[:]
    try:
        return onnx.shape_inference.infer_shapes(bare, check_type=True, strict_mode=True)
    except onnx.shape_inference.InferenceError as error:
        raise ExportError(f"the shapes of the graph contradict each other ({one_line(error)})") from error


def _reached(nodes: Iterable[onnx.NodeProto]) -> set[str]:
    """Return which nodes take something, directly or not, that a node with weights makes."""
    tensors: set[str] = set()
    reached: set[str] = set()
    for node in nodes:
        follows = not tensors.isdisjoint(node.input)
        if follows:
            reached.add(node.name)
        if follows or node.op_type in WEIGHTED:
            tensors.update(name for name in node.output if name)
    return reached
