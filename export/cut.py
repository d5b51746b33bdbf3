"""A graph cut behind a node, in a form that every engine's backend takes for a model of its own.

What a backend loads has a card, and returns what this card promises. So the value behind which the graph is cut comes
as logits of a made-up model with as many classes as the value fills, the rest being zeros.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from segship.export.node_by_node import names_taken
from segship.runtime.card import ModelCard

_PREFIX: Final = "segship/cut/"


@dataclass(frozen=True)
class Cut:
    """A place behind which a graph is cut.

    Attributes:
        node: the last one.
        value: name of that output of it which is wanted.
        dtype: of this value.
        shape: of this value.
    """

    node: onnx.NodeProto
    value: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


def cut_card(card: ModelCard, cut: Cut, batch: NDArray[Any]) -> ModelCard:
    """Return the card of a graph that is cut, for pictures of the size that ``batch`` has."""
    sides = batch.shape[1:3] if card.input_form == "pixels" else batch.shape[2:4]
    height, width = card.frame or sides
    planes = -(-int(np.prod(cut.shape)) // (height * width))
    return dataclasses.replace(
        card,
        class_names=tuple(map(str, range(planes))),
        palette=((0, 0, 0),) * planes,
        ignore_index=planes,
        preprocess=card.preprocess if card.frame else dataclasses.replace(card.preprocess, size=(sides[0], sides[1])),
        task="multiclass",
        head="logits",
        tile_overlap=None,
        dynamic=(),
    )


def cut_graph(source: onnx.ModelProto, card: ModelCard, cut: Cut, also: Sequence[Cut] = ()) -> onnx.ModelProto:
    """Cut a graph behind a node.

    Args:
        source: the whole model.
        card: that of :func:`cut_card`; if ``cut`` is the output of the whole, that of the whole.
        cut: where.
        also: places of which the values become outputs, too, under their own names.
    """
    nodes, needed = _leading_to({cut.value, *(one.value for one in also)}, source.graph)
    weights = [tensor for tensor in source.graph.initializer if tensor.name in needed]
    if cut.value == card.output_name:
        inputs = list(source.graph.input)
        outputs = [value for value in source.graph.output if value.name == card.output_name]
    else:
        packing, constants = _packed(cut, card)
        nodes, weights = nodes + packing, weights + constants
        pixels = next(value for value in source.graph.input if value.name == card.input_name)
        inputs = [helper.make_tensor_value_info(card.input_name, pixels.type.tensor_type.elem_type, card.input_shape)]
        outputs = [helper.make_tensor_value_info(card.output_name, onnx.TensorProto.FLOAT, card.output_shape)]
    for one in also:
        shape = [None if card.dynamic else side for side in one.shape]
        outputs.append(helper.make_tensor_value_info(one.value, helper.np_dtype_to_tensor_dtype(one.dtype), shape))
    model = onnx.ModelProto(ir_version=source.ir_version, opset_import=source.opset_import, functions=source.functions)
    model.graph.CopyFrom(helper.make_graph(nodes, source.graph.name, inputs, outputs, weights))
    return model


def _leading_to(values: set[str], graph: onnx.GraphProto) -> tuple[list[onnx.NodeProto], set[str]]:
    """Return the nodes that values depend on, and the names of all that these take."""
    needed, nodes = set(values), []
    for node in reversed(graph.node):
        if not needed.isdisjoint(node.output):
            needed.update(names_taken(node))
            nodes.append(node)
    return nodes[::-1], needed


def _packed(cut: Cut, card: ModelCard) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Return the nodes that bring a value into the shape of the card's output, and their constants."""
    size, room = int(np.prod(cut.shape)), int(np.prod([side or 1 for side in card.output_shape]))
    row, shape = np.array([1, size]), np.array([side or 1 for side in card.output_shape])
    zeros = np.zeros((1, room - size), np.float32)
    constants = [numpy_helper.from_array(row, f"{_PREFIX}row"), numpy_helper.from_array(shape, f"{_PREFIX}shape")]
    nodes = [helper.make_node("Reshape", [cut.value, f"{_PREFIX}row"], [f"{_PREFIX}flat"])]
    if cut.dtype != np.float32:
        nodes.append(helper.make_node("Cast", [nodes[-1].output[0]], [f"{_PREFIX}wide"], to=onnx.TensorProto.FLOAT))
    if zeros.size:
        constants.append(numpy_helper.from_array(zeros, f"{_PREFIX}zeros"))
        nodes.append(helper.make_node("Concat", [nodes[-1].output[0], f"{_PREFIX}zeros"], [f"{_PREFIX}filled"], axis=1))
    nodes.append(helper.make_node("Reshape", [nodes[-1].output[0], f"{_PREFIX}shape"], [card.output_name]))
    return nodes, constants
