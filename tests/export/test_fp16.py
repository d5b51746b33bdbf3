from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from segship.export.exporter import export
from segship.export.fp16 import to_fp16
from segship.runtime.card import ModelCard
from segship.runtime.errors import ExportError
from segship.runtime.model_file import read_card

Run = Callable[[onnx.ModelProto, NDArray[Any]], NDArray[Any]]
TakingPixels = Callable[[onnx.ModelProto, ModelCard], tuple[onnx.ModelProto, ModelCard]]


def in_half(model: onnx.ModelProto) -> set[str]:
    """Return the names of the weights in half precision."""
    return {tensor.name for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT16}


def input_types(model: onnx.ModelProto, operator: str) -> set[int]:
    """Return the types of what nodes of this operator take first."""
    values = (*model.graph.value_info, *model.graph.input, *model.graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return {types[node.input[0]] for node in model.graph.node if node.op_type == operator}


def assert_close(found: NDArray[Any], expected: NDArray[Any]) -> None:
    """Logits of untrained weights: many are near ties, so labels agree a little less than on those of trained ones."""
    np.testing.assert_allclose(found, expected, atol=0.03)
    assert np.mean(found.argmax(axis=1) == expected.argmax(axis=1)) > 0.995


def test_weights_are_half_the_door_is_single_and_labels_stay(
    tiny_model: Path, photo: NDArray[np.uint8], run_graph: Run
) -> None:
    model, card = onnx.load(tiny_model), read_card(tiny_model)
    half = to_fp16(model)
    onnx.checker.check_model(half, full_check=True)
    assert half.graph.input[0] == model.graph.input[0]
    assert half.graph.output[0] == model.graph.output[0]
    assert input_types(half, "Conv") == {TensorProto.FLOAT16}
    assert half.ByteSize() < 0.65 * model.ByteSize()
    assert [node.name for node in half.graph.node if node.op_type != "Cast"] == [node.name for node in model.graph.node]
    batch = card.preprocess(photo)
    expected, found = run_graph(model, batch), run_graph(half, batch)
    assert found.dtype == np.float32
    assert (found != expected).any()
    assert_close(found, expected)


def test_the_graph_that_was_given_is_left_as_it_is(tiny_model: Path) -> None:
    model = onnx.load(tiny_model)
    before = model.SerializeToString()
    to_fp16(model)
    assert model.SerializeToString() == before


def test_labels_are_chosen_in_single_precision(
    tiny_labels_model: Path, photo: NDArray[np.uint8], run_graph: Run
) -> None:
    model, card = onnx.load(tiny_labels_model), read_card(tiny_labels_model)
    half = to_fp16(model)
    onnx.checker.check_model(half, full_check=True)
    assert input_types(half, "ArgMax") == {TensorProto.FLOAT}
    batch = card.preprocess(photo)
    assert np.mean(run_graph(half, batch) == run_graph(model, batch)) > 0.995


@pytest.mark.parametrize("opset", [11, 18, 23])
def test_every_opset_can_be_in_half_precision(
    tiny_checkpoint: Path, picture: Path, photo: NDArray[np.uint8], tmp_path: Path, opset: int, run_graph: Run
) -> None:
    path = export(tiny_checkpoint, tmp_path / "model.onnx", opset=opset, images=[picture]).path
    model = onnx.load(path)
    half = to_fp16(model)
    onnx.checker.check_model(half, full_check=True)
    assert half.opset_import[0].version == opset
    batch = read_card(path).preprocess(photo)
    assert_close(run_graph(half, batch), run_graph(model, batch))


def test_the_white_of_a_16_bit_picture_does_not_become_infinite(
    make_checkpoint: Callable[..., Path], picture: Path, tmp_path: Path, run_graph: Run, taking_pixels: TakingPixels
) -> None:
    checkpoint = make_checkpoint(tmp_path / "deep.safetensors", channels=1, depth="uint16")
    path = export(checkpoint, tmp_path / "deep.onnx").path
    model, card = taking_pixels(onnx.load(path), read_card(path))
    half = to_fp16(model)
    onnx.checker.check_model(half, full_check=True)
    assert input_types(half, "Mul") == {TensorProto.FLOAT}
    white = np.full((1, *card.preprocess.size, 1), 65535, np.uint16)
    white[:, ::3, ::5] = 1000
    found, expected = run_graph(half, white), run_graph(model, white)
    assert np.isfinite(found).all()
    assert_close(found, expected)


@pytest.mark.parametrize(("factor", "said"), [(1e7, "inf %"), (1e-9, "100 %")])
def test_a_layer_whose_weights_half_cannot_hold_stays_single_and_that_is_said(
    tiny_model: Path, photo: NDArray[np.uint8], factor: float, said: str, run_graph: Run
) -> None:
    model, card = onnx.load(tiny_model), read_card(tiny_model)
    layer = next(node for node in model.graph.node if node.op_type == "Conv")
    weights = next(tensor for tensor in model.graph.initializer if tensor.name == layer.input[1])
    weights.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weights) * np.float32(factor), weights.name))
    lines: list[str] = []
    half = to_fp16(model, lines.append)
    onnx.checker.check_model(half, full_check=True)
    assert lines == [f"{layer.name} stays in float32: half precision changes its weights by {said}"]
    assert weights.name not in in_half(half)
    assert len(in_half(half)) > 10
    if factor < 1:
        batch = card.preprocess(photo)
        assert_close(run_graph(half, batch), run_graph(model, batch))


def test_sums_over_whole_planes_stay_single_between_layers_in_half(run_graph: Run) -> None:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["image", "first"], ["a"], "a"),
        helper.make_node("GlobalAveragePool", ["a"], ["mean"], "mean"),
        helper.make_node("Sub", ["a", "mean"], ["centred"], "centred"),
        helper.make_node("Conv", ["centred", "last"], ["logits"], "b"),
    ]
    weights = [numpy_helper.from_array(rng.normal(size=(4, 4, 1, 1)).astype(np.float32), n) for n in ("first", "last")]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 4, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 4, 8, 8])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    half = to_fp16(model)
    onnx.checker.check_model(half, full_check=True)
    assert input_types(half, "GlobalAveragePool") == {TensorProto.FLOAT}
    assert input_types(half, "Sub") == {TensorProto.FLOAT16}
    batch = rng.normal(size=(1, 4, 8, 8)).astype(np.float32)
    np.testing.assert_allclose(run_graph(half, batch), run_graph(model, batch), atol=0.05)


def test_a_graph_without_layers_is_refused() -> None:
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("image", "logits")]
    graph = helper.make_graph([helper.make_node("Relu", ["image"], ["logits"])], "network", value[:1], value[1:])
    with pytest.raises(ExportError, match="no layer can be computed in half precision; export with --precision fp32"):
        to_fp16(helper.make_model(graph))
