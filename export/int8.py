"""A graph in 8 bits: pairs of QuantizeLinear and DequantizeLinear (QDQ), with ranges taken from real pictures.

Ranges are the smallest and largest value seen: on three networks trained on CamVid, percentiles and entropy were no
better (−0.2…+0.1 points of mIoU), and took two to three times as long. Weights are symmetric, one scale a channel.

``cpu``: activations are unsigned with a zero point, so that a ReLU costs nothing, and what joins and pools stays in
8 bits too; ONNX Runtime then runs most of the network in integers. All 8 bits of a weight are used, which wants a CPU
with VNNI or its like: older ones saturate sums of two products.
``tensorrt``: activations are signed and symmetric, since TensorRT refuses zero points; only the inputs of layers with
weights are marked, so that it can fuse what follows them, and biases stay in float32, as it wants them.

Float32 stay: the normalisation of pixels, what follows the logits, and the last layer, since 256 levels of logits are
many ties. The first layer does not: in float32 it would cost U²-Net a fifth of its gain and save nothing. Three more
stay since another engine computes them wrongly in 8 bits, and there is little to gain: products of two tensors and
layers of a single pixel, after a pool over the plane (OpenCV 5), and what an AveragePool takes (OpenVINO pads it with
the least value in place of 0, and does so with a Pad before it). On BiSeNet V2 they change 2.4 % of OpenVINO's labels
and 13 % of OpenCV's.
"""

import tempfile
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from segship.export.calibration import Pictures
from segship.export.subpixel import as_convolutions
from segship.export.trunk import WEIGHTED, inferred, trunk_of, with_named_nodes
from segship.export.widen import widened
from segship.runtime.card import ModelCard
from segship.runtime.errors import ExportError, require
from segship.runtime.prepare import prepare

Target = Literal["cpu", "tensorrt"]

MIN_OPSET: Final = 13
"""The first with scales per channel."""


@dataclass(frozen=True)
class _Recipe:
    """What is marked as 8-bit for an engine.

    Attributes:
        layers: operators that compute; each can stay in float32 for itself.
        between: operators that hand on what layers make; they are 8-bit where it is.
        activations: type of the values, as ONNX Runtime names it.
        options: of ONNX Runtime's quantizer.
    """

    layers: frozenset[str]
    between: frozenset[str]
    activations: str
    options: dict[str, Any]


_RECIPES: Final[dict[Target, _Recipe]] = {
    # ONNX Runtime has no transposed convolution in 8 bits and resizes linearly in float32 whatever is marked.
    "cpu": _Recipe(
        WEIGHTED - {"ConvTranspose"} | {"Add"},
        frozenset({"Relu", "Clip", "MaxPool", "Concat", "DepthToSpace", "Slice", "Reshape", "Transpose"}),
        "QUInt8",
        {},
    ),
    "tensorrt": _Recipe(
        WEIGHTED,
        frozenset(),
        "QInt8",
        {
            "ActivationSymmetric": True,
            "QuantizeBias": False,
            "OpTypesToExcludeOutputQuantization": sorted(WEIGHTED),
        },
    ),
}


class Int8Graphs:
    """A graph with the ranges of its values, from which graphs with any choice of 8-bit layers are made quickly.

    Args:
        model: float32; left as it is.
        card: of the model.
        pictures: real ones, that the ranges are taken from.
        target: the engine that it is for.
        advance: called after each picture.

    Attributes:
        layers: names of the layers that can be in 8 bits, in the graph's order, with their operators.

    Raises:
        MissingExtraError: if ONNX Runtime is not installed.
        ExportError: if the opset is below 13, there are no pictures, or no layer can be in 8 bits.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        card: ModelCard,
        pictures: Pictures,
        target: Target,
        advance: Callable[[], None] = lambda: None,
    ) -> None:
        self._quantization: Any = require("onnxruntime.quantization", extra="cpu", purpose="--precision int8")
        self._quantizer: Any = require(
            "onnxruntime.quantization.qdq_quantizer", extra="cpu", purpose="--precision int8"
        )
        opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
        if opset < MIN_OPSET:
            raise ExportError(
                f"int8 has a scale for each channel, which opset {opset} cannot hold; export with --opset {MIN_OPSET} "
                "or above"
            )
        if not len(pictures):
            raise ExportError("int8 needs real pictures for its ranges, and there are none; name some with --calibrate")
        self._model = model
        self._recipe = _RECIPES[target]
        named = with_named_nodes(model)
        self._float = inferred(widened(as_convolutions(named)) if target == "cpu" else named)
        self.layers = self._find_layers()
        if not self.layers:
            raise ExportError("the graph has no layer that 8 bits are for; export with --precision fp32 or fp16")
        self._ranges = self._calibrate(card, pictures, advance)

    def build(self, layers: Collection[str]) -> onnx.ModelProto:
        """Return the graph with these layers in 8 bits, and all others in float32.

        Raises:
            ExportError: if a zero point is left that TensorRT would refuse.
        """
        kind = self._quantization.QuantType
        copy = onnx.ModelProto()
        copy.CopyFrom(self._float)
        chosen = {node.name for node in copy.graph.node if node.name in layers} | self._joined(layers)
        operators = {node.op_type for node in copy.graph.node if node.name in chosen}
        quantizer = self._quantizer.QDQQuantizer(
            copy,
            True,  # a scale for each channel
            False,  # all 8 bits of a weight
            kind.QInt8,
            kind[self._recipe.activations],
            self._ranges,
            sorted(chosen),
            [],
            sorted(operators),
            dict(self._recipe.options),
        )
        built: onnx.ModelProto = quantizer.quantize_model()
        quantizer.model.topological_sort()  # what it adds, it adds at the end
        built.producer_name, built.producer_version = self._model.producer_name, self._model.producer_version
        del built.metadata_props[:]  # the quantizer leaves a note of its own
        built.metadata_props.extend(self._model.metadata_props)
        if self._recipe.options.get("ActivationSymmetric"):
            _check_symmetric(built.graph)
        return inferred(built)

    def _find_layers(self) -> dict[str, str]:
        graph = self._float.graph
        trunk = trunk_of(graph)
        pooled: set[str] = set()
        for node in reversed(graph.node):
            handed_on = node.op_type in self._recipe.between | {"Pad"} and not pooled.isdisjoint(node.output)
            if handed_on or node.op_type == "AveragePool":
                pooled.update(node.input)
        fit = {value.name for value in graph.value_info if _is_plane(value)} - pooled
        return {
            node.name: node.op_type
            for node in graph.node
            if node.op_type in self._recipe.layers and node.name in trunk.body - trunk.last and node.output[0] in fit
        }

    def _joined(self, layers: Collection[str]) -> set[str]:
        """Return the nodes between ``layers`` that are 8-bit with them: those that lead to one, or cut one off."""
        nodes = self._float.graph.node
        wanted: set[str] = set()  # tensors that a layer in 8 bits takes, directly or not
        made = {name for node in nodes if node.name in layers for name in node.output}
        joined: set[str] = set()
        for node in reversed(nodes):
            is_between = node.op_type in self._recipe.between
            leads = is_between and not wanted.isdisjoint(node.output)
            cuts = is_between and node.op_type in ("Relu", "Clip") and node.input[0] in made
            if leads or cuts:
                joined.add(node.name)
            if leads or node.name in layers:
                wanted.update(node.input)
        return joined

    def _calibrate(self, card: ModelCard, pictures: Pictures, advance: Callable[[], None]) -> Any:
        """Run the graph in float32 on every picture, and keep the smallest and largest value of each tensor."""
        calibrate: Any = require("onnxruntime.quantization.calibrate", extra="cpu", purpose="--precision int8")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            path.write_bytes(self._float.SerializeToString())
            calibrator = calibrate.create_calibrator(
                path,
                sorted(self._recipe.layers | self._recipe.between),
                augmented_model_path=str(Path(folder) / "calibration.onnx"),
                calibrate_method=calibrate.CalibrationMethod.MinMax,
            )

            def run(batch: NDArray[Any]) -> NDArray[np.float32]:
                # One batch at a time: what a call collects is held until it returns.
                calibrator.collect_data(SimpleNamespace(get_next=iter([{card.input_name: batch}, None]).__next__))
                return np.zeros((len(batch), card.num_logits, *card.preprocess.size), np.float32)

            for image, _ in pictures:
                prepare(card, image)(run)
                advance()
            return calibrator.compute_data()


def _is_plane(value: onnx.ValueInfoProto) -> bool:
    """Whether a tensor holds float32, of more than a single pixel; of a graph of open size, some hold sizes."""
    kind = value.type.tensor_type
    pixel = [dimension.dim_value for dimension in kind.shape.dim[2:]] == [1, 1]
    return kind.elem_type == TensorProto.FLOAT and not pixel


def _check_symmetric(graph: onnx.GraphProto) -> None:
    values = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero_point = numpy_helper.to_array(values[node.input[2]])
            if zero_point.dtype != np.int8 or zero_point.any():
                raise ExportError(
                    f"{node.name} has the zero point {zero_point.reshape(-1)[0]} of {zero_point.dtype}; TensorRT takes "
                    "0 of int8 alone; export with --int8-for cpu"
                )
