"""The shapes and types of all that a graph computes, for pictures of one size, found without computing any of it."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from segship.runtime.errors import ModelError, one_line, require
from segship.runtime.graph_form import taken_form
from segship.runtime.model_file import read_onnx_header

if TYPE_CHECKING:
    import onnx

_MOST_VALUES: Final = 1 << 16
"""A tensor of more elements than this is nothing that shapes are made of."""

_NAMED_BITS: Final = {"FLOAT": 32, "DOUBLE": 64, "BOOL": 8}  # the other types have the number in their names
_SAME_AS_INPUT: Final = frozenset({"GroupNormalization"})  # which ONNX infers no shape for


@dataclass(frozen=True)
class Tensor:
    """What is known of a tensor.

    Attributes:
        shape: of it.
        bits: of each element, as it is stored.
        is_constant: whether it is the same for all pictures: a weight, or computed from weights and shapes alone.
    """

    shape: tuple[int, ...]
    bits: int
    is_constant: bool

    @property
    def elements(self) -> int:
        """How many there are."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Bytes that it takes."""
        return -(-self.elements * self.bits // 8)


@dataclass(frozen=True)
class Node:
    """A node of a graph; optional inputs and outputs that it lacks have an empty name.

    Attributes:
        kind: its operator: ``Conv``.
        inputs: names of tensors.
        outputs: names of tensors.
        attributes: as Python values, by name.
    """

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]


@dataclass(frozen=True)
class SizedGraph:
    """A graph, for pictures of one size.

    Attributes:
        nodes: each after those that it takes something from.
        tensors: all of them, by name.
        outputs: names of those that the graph returns.
    """

    nodes: tuple[Node, ...]
    tensors: dict[str, Tensor]
    outputs: tuple[str, ...]


def sized_graph(model: Path, size: tuple[int, int], batch: int) -> SizedGraph:
    """Find the shapes and types of all tensors of an ONNX file.

    Node after node, ONNX's own inference says what it returns; what depends on nothing but shapes and small constants
    is computed by ONNX's reference, so that the shapes that graphs compute are known too. Weights are not looked at,
    and those in other files not loaded.

    Args:
        model: the file; what its graph takes need not have a card.
        size: (height, width) of the pictures where the graph leaves them open.
        batch: pictures, where it leaves their number open.

    Raises:
        ModelError: if it is no ONNX file, takes another number of pictures, or a shape depends on what pictures show.
        CardError: if it takes no pictures.
        MissingExtraError: if the package onnx is not installed.
    """
    onnx = require("onnx", extra="bench", purpose="counting what a graph computes")
    shape = _picture_shape(model, size, batch)  # which also sees whether it is an ONNX file
    try:
        proto = onnx.load(model, load_external_data=False)
        import onnx.inliner

        proto = onnx.inliner.inline_local_functions(proto) if proto.functions else proto
    except Exception as error:  # of protobuf, of ONNX's own parser or of the file system
        raise ModelError(f"{model}: its graph cannot be read ({one_line(error)})") from error
    return _Walk(onnx, model, proto).over(shape)


def _picture_shape(model: Path, size: tuple[int, int], batch: int) -> tuple[str, tuple[int, ...]]:
    """Return name and shape of the input that takes pictures, the first one."""
    header = read_onnx_header(model)
    name, shape = next(iter(header.inputs.items()), ("", ()))
    taken = taken_form(name, shape, header.types.get(name))
    channels = taken.channels or 3
    asked = (batch, *size, channels) if taken.layout == "NHWC" else (batch, channels, *size)
    shape = shape or (None,) * len(asked)
    if shape[0] not in (None, batch):
        raise ModelError(f"{model} takes {shape[0]} picture at a time, not {batch}; export it with --dynamic batch")
    return name, tuple(wanted if side is None else side for side, wanted in zip(shape, asked, strict=True))


class _Walk:
    """Goes over the nodes of a graph in their order and notes what they return."""

    def __init__(self, onnx: Any, model: Path, proto: "onnx.ModelProto") -> None:
        self._onnx, self._model, self._proto = onnx, model, proto
        self._types: dict[str, tuple[int, tuple[int, ...]]] = {}  # element type and shape
        self._constants: set[str] = set()
        self._known: dict[str, Any] = {}  # values of small constants

    def over(self, picture: tuple[str, tuple[int, ...]]) -> SizedGraph:
        graph = self._proto.graph
        for weights in graph.initializer:
            self._add_constant(weights.name, weights)
        for value in graph.input:
            if value.name not in self._constants:  # where old files list their weights too
                shape = picture[1] if value.name == picture[0] else None
                self._types[value.name] = self._type_of(value, "the input", shape)
        nodes = tuple(self._visited(node) for node in graph.node)
        tensors = {
            name: Tensor(shape, self._bits(element), name in self._constants)
            for name, (element, shape) in self._types.items()
        }
        return SizedGraph(nodes, tensors, tuple(output.name for output in graph.output))

    def _visited(self, node: "onnx.NodeProto") -> Node:
        attributes = {each.name: self._onnx.helper.get_attribute_value(each) for each in node.attribute}
        if node.domain not in ("", "ai.onnx") or any(each.type == each.GRAPH for each in node.attribute):
            raise ModelError(f"{self._model}: what {node.domain or 'ONNX'}'s {node.op_type} returns is not known here")
        inputs = [name for name in node.input if name]
        alone = self._alone(node, inputs)
        self._types.update(self._inferred(node, alone))
        outputs = [name for name in node.output if name]
        if all(name in self._constants for name in inputs):
            self._constants.update(outputs)
        is_small = all(math.prod(self._types[name][1]) <= _MOST_VALUES for name in outputs)
        if is_small and (node.op_type in ("Shape", "Size") or all(name in self._known for name in inputs)):
            self._evaluate(alone, outputs)
        return Node(node.op_type, tuple(node.input), tuple(node.output), attributes)

    def _alone(self, node: "onnx.NodeProto", inputs: list[str]) -> "onnx.ModelProto":
        """Return a model of this node alone, which has the known ones of its inputs inside."""
        helper = self._onnx.helper
        names = dict.fromkeys(inputs)
        graph = helper.make_graph(
            [node],
            "node",
            [helper.make_tensor_value_info(name, *self._types[name]) for name in names if name not in self._known],
            [helper.make_empty_tensor_value_info(name) for name in node.output if name],
            [self._onnx.numpy_helper.from_array(self._known[name], name) for name in names if name in self._known],
        )
        alone: onnx.ModelProto = helper.make_model(
            graph, opset_imports=self._proto.opset_import, ir_version=self._proto.ir_version
        )
        return alone

    def _inferred(
        self, node: "onnx.NodeProto", alone: "onnx.ModelProto"
    ) -> Iterator[tuple[str, tuple[int, tuple[int, ...]]]]:
        try:
            outputs = self._onnx.shape_inference.infer_shapes(alone, strict_mode=True).graph.output
        except Exception as error:  # InferenceError, or what a part of it that is written in Python raises
            raise ModelError(f"{self._model}: {node.op_type} does not fit its input ({one_line(error)})") from error
        for output in outputs:
            if node.op_type in _SAME_AS_INPUT:
                yield output.name, self._types[node.input[0]]
            else:
                yield output.name, self._type_of(output, f"what {node.op_type} returns")

    def _type_of(
        self, value: "onnx.ValueInfoProto", what: str, shape: tuple[int, ...] | None = None
    ) -> tuple[int, tuple[int, ...]]:
        kind = value.type.tensor_type
        if shape is None and kind.HasField("shape"):
            shape = tuple(side.dim_value if side.HasField("dim_value") else -1 for side in kind.shape.dim)
        if shape is None or any(side < 0 for side in shape):
            raise ModelError(
                f"{self._model}: the shape of {value.name!r}, {what}, depends on more than the pictures' size; "
                "what it costs cannot be told"
            )
        return kind.elem_type, shape

    def _evaluate(self, alone: "onnx.ModelProto", outputs: list[str]) -> None:
        from onnx.reference import ReferenceEvaluator

        shapes = {value.name: self._types[value.name][1] for value in alone.graph.input}  # of which alone is asked
        blank = {name: np.broadcast_to(np.zeros((), bool), shape) for name, shape in shapes.items()}
        self._constants.update(outputs)
        try:
            values = ReferenceEvaluator(alone).run(None, blank)
        except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError):
            return  # it lacks old versions of some operators; where a shape depends on them, that is told
        self._known.update(zip(outputs, map(np.asarray, values), strict=True))

    def _add_constant(self, name: str, values: "onnx.TensorProto") -> None:
        self._constants.add(name)
        self._types[name] = (values.data_type, tuple(values.dims))
        is_here = values.data_location != values.EXTERNAL
        if is_here and math.prod(values.dims) <= _MOST_VALUES:
            self._known[name] = self._onnx.numpy_helper.to_array(values)

    def _bits(self, element: int) -> int:
        name = self._onnx.TensorProto.DataType.Name(element)
        digits = re.search(r"\d+", name)
        return int(digits[0]) if digits else _NAMED_BITS.get(name, 8)
