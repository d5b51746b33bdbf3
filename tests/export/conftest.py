"""One small real picture, so that an export compares on little."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image as PillowImage

from segship.export import exporter
from segship.export.simplify import Simplified
from segship.runtime.card import ModelCard


@pytest.fixture
def unsimplified(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let exports keep their graphs as they are traced, which takes a second less."""

    def keep(model: onnx.ModelProto) -> Simplified:
        return Simplified(model, "", len(model.graph.node), len(model.graph.node))

    monkeypatch.setattr(exporter, "simplify", keep)


@pytest.fixture(scope="session")
def picture(photo: NDArray[np.uint8], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The photo as a file, 90×120."""
    path = tmp_path_factory.mktemp("picture") / "photo.png"
    PillowImage.fromarray(photo).save(path)
    return path


@pytest.fixture(scope="session")
def run_graph() -> Callable[[onnx.ModelProto, NDArray[Any]], NDArray[Any]]:
    """Run a graph of one input and one output in ONNX Runtime."""

    def run(model: onnx.ModelProto, batch: NDArray[Any]) -> NDArray[Any]:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return np.asarray(session.run(None, {session.get_inputs()[0].name: batch})[0])

    return run


@pytest.fixture(scope="session")
def taking_pixels() -> Callable[[onnx.ModelProto, ModelCard], tuple[onnx.ModelProto, ModelCard]]:
    """Put the normalisation in front of a graph: Cast, Transpose, Mul, Add."""

    def put(model: onnx.ModelProto, card: ModelCard) -> tuple[onnx.ModelProto, ModelCard]:
        pixels = onnx.ModelProto()
        pixels.CopyFrom(model)
        graph, form = pixels.graph, card.preprocess
        gain, bias = form.gain_and_bias(255 if form.depth == "uint8" else 65535)
        kind = TensorProto.UINT8 if form.depth == "uint8" else TensorProto.UINT16
        for node in graph.node:
            for position, name in enumerate(node.input):
                if name == card.input_name:
                    node.input[position] = "normalised"
        front = [
            helper.make_node("Cast", [card.input_name], ["cast"], "cast", to=TensorProto.FLOAT),
            helper.make_node("Transpose", ["cast"], ["planes"], "transpose", perm=[0, 3, 1, 2]),
            helper.make_node("Mul", ["planes", "gain"], ["scaled"], "scale"),
            helper.make_node("Add", ["scaled", "bias"], ["normalised"], "shift"),
        ]
        nodes = [*front, *graph.node]
        del graph.node[:]
        graph.node.extend(nodes)
        for name, value in (("gain", gain), ("bias", bias)):
            graph.initializer.append(numpy_helper.from_array(value.reshape(1, -1, 1, 1), name))
        shape = [1, *form.size, form.channels]
        graph.input[0].CopyFrom(helper.make_tensor_value_info(card.input_name, kind, shape))
        del pixels.metadata_props[:]
        return pixels, dataclasses.replace(card, input_form="pixels")

    return put
