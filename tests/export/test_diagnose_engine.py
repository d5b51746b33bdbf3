import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from segship.export.diagnose_engine import engine_divergence
from segship.runtime.backends import Backend, load_backend
from segship.runtime.card import ModelCard
from segship.runtime.errors import ModelError
from segship.runtime.model_file import read_card

Damage = Callable[[onnx.ModelProto], None]
ENGINES = [
    pytest.param(name, marks=pytest.mark.skipif(not importlib.util.find_spec(module), reason="not installed"))
    for name, module in (("ort", "onnxruntime"), ("opencv", "cv2"), ("openvino", "openvino"))
]


class FaultyEngine:
    """A real engine that does something to every graph before it runs it; it counts the graphs."""

    def __init__(self, name: str, damage: Damage = lambda _: None) -> None:
        self._name, self._damage = name, damage
        self.loads = 0

    def __call__(self, path: Path, card: ModelCard) -> Backend:
        """Load a graph, damaged."""
        self.loads += 1
        graph = onnx.load(path)
        self._damage(graph)
        onnx.save(graph, path)
        return load_backend(self._name, path, card, "cpu")


@pytest.fixture(scope="module")
def batch() -> NDArray[Any]:
    return np.random.default_rng(0).standard_normal((1, 3, 48, 64), np.float32)


def _weaken(node_name: str) -> Damage:
    """Let one convolution be computed with another weight, wherever it is still part of the graph."""

    def damage(graph: onnx.ModelProto) -> None:
        for node in graph.graph.node:
            if node.name == node_name:
                tensor = next(tensor for tensor in graph.graph.initializer if tensor.name == node.input[1])
                weight = numpy_helper.to_array(tensor) * np.float32(0.9)
                tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))

    return damage


@pytest.mark.parametrize("engine", ENGINES)
def test_nothing_is_found_in_an_engine_that_is_right(engine: str, tiny_model: Path, batch: NDArray[Any]) -> None:
    load = FaultyEngine(engine)
    assert engine_divergence(tiny_model, read_card(tiny_model), batch, load) is None
    assert load.loads == 1


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("position", [0, 7, -1])
def test_the_node_that_an_engine_computes_wrongly_is_found_in_a_few_loads(
    engine: str, position: int, tiny_model: Path, batch: NDArray[Any]
) -> None:
    node = [node for node in onnx.load(tiny_model).graph.node if node.op_type == "Conv"][position]
    card = read_card(tiny_model)
    load = FaultyEngine(engine, _weaken(node.name))
    found = engine_divergence(tiny_model, card, batch, load)
    assert found is not None
    assert (found.stage, found.node, found.op_type) == ("network", node.name, "Conv")
    assert "from those of this node run by itself" in found.finding
    assert "the graph is right, " in found.finding
    assert load_backend(engine, tiny_model, card, "cpu").info.engine in found.finding
    assert load.loads <= 12


def test_a_fault_that_only_fusion_brings_is_told_as_such(tiny_model: Path, batch: NDArray[Any]) -> None:
    source = onnx.load(tiny_model)
    relu = [node for node in source.graph.node if node.op_type == "Relu"][2]
    card = read_card(tiny_model)

    def drop_where_fused(graph: onnx.ModelProto) -> None:
        if relu.input[0] in {output.name for output in graph.graph.output}:
            return  # an output must be kept, so that nothing is fused over it
        for node in graph.graph.node:
            if node.name == relu.name:
                node.op_type = "Abs"

    found = engine_divergence(tiny_model, card, batch, FaultyEngine("opencv", drop_where_fused))
    assert found is not None
    assert found.node == relu.name
    assert found.finding.endswith("but only where it fuses this node with what comes before")


def test_a_fault_in_the_labels_is_one_of_the_argmax(tiny_labels_model: Path, batch: NDArray[Any]) -> None:
    card = read_card(tiny_labels_model)

    def damage(graph: onnx.ModelProto) -> None:
        for node in graph.graph.node:
            node.op_type = node.op_type.replace("ArgMax", "ArgMin")

    found = engine_divergence(tiny_labels_model, card, batch, FaultyEngine("ort", damage))
    assert found is not None
    assert found.stage == "argmax"


def test_a_graph_whose_output_is_a_constant_is_refused(tmp_path: Path, tiny_model: Path, batch: NDArray[Any]) -> None:
    card = read_card(tiny_model)
    constant = helper.make_node("Constant", [], ["logits"], value=numpy_helper.from_array(np.zeros((1, 2, 3, 4), "f4")))
    image = helper.make_tensor_value_info("image", 1, batch.shape)
    graph = helper.make_graph(
        [constant], "constant", [image], [helper.make_tensor_value_info("logits", 1, (1, 2, 3, 4))]
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "c.onnx")
    with pytest.raises(ModelError, match="no output 'logits' that depends on its input 'image'"):
        engine_divergence(tmp_path / "c.onnx", card, batch, FaultyEngine("ort"))
