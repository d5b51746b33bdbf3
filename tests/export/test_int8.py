import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from segship.export.calibration import Calibration, Pictures, open_calibration
from segship.export.exporter import export
from segship.export.int8 import Int8Graphs, Target
from segship.runtime.card import ModelCard
from segship.runtime.errors import ExportError
from segship.runtime.model_file import read_card

Run = Callable[[onnx.ModelProto, NDArray[Any]], NDArray[Any]]
TakingPixels = Callable[[onnx.ModelProto, ModelCard], tuple[onnx.ModelProto, ModelCard]]


@pytest.fixture(scope="module")
def pictures(tiny_model: Path) -> Calibration:
    return open_calibration("demo", read_card(tiny_model), images=4)


def graphs_of(path: Path, pictures: Calibration, target: Target = "cpu") -> Int8Graphs:
    return Int8Graphs(onnx.load(path), read_card(path), pictures.ranges, target)


def zero_points(model: onnx.ModelProto, operator: str = "QuantizeLinear") -> list[NDArray[Any]]:
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    return [values[node.input[2]] for node in model.graph.node if node.op_type == operator]


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def made_by(model: onnx.ModelProto, name: str) -> str:
    """Return the operator that makes a tensor; of the input, and of a weight, none."""
    return next((node.op_type for node in model.graph.node if name in node.output), "")


def layer(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.name == name)


def test_for_the_cpu_values_are_unsigned_weights_have_a_scale_a_channel_and_labels_stay(
    tiny_model: Path, pictures: Calibration, run_graph: Run
) -> None:
    graphs = graphs_of(tiny_model, pictures)
    built = graphs.build(graphs.layers)
    onnx.checker.check_model(built, full_check=True)
    assert {point.dtype.name for point in zero_points(built)} == {"uint8"}
    scales = {tensor.name: numpy_helper.to_array(tensor) for tensor in built.graph.initializer}
    for name in graphs.layers:
        weights = next(n for n in built.graph.node if layer(built, name).input[1] in n.output)
        assert weights.op_type == "DequantizeLinear"
        quantised = scales[weights.input[0]]
        assert (quantised.dtype, scales[weights.input[1]].shape) == (np.int8, quantised.shape[:1])
        assert not scales[weights.input[2]].any()
    model, card = onnx.load(tiny_model), read_card(tiny_model)
    batch = card.preprocess(next(iter(pictures.measured))[0])
    found, expected = run_graph(built, batch), run_graph(model, batch)
    assert (found != expected).any()
    assert np.mean(found.argmax(axis=1) == expected.argmax(axis=1)) > 0.9
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.99
    assert {"ConvTranspose", "Relu"}.isdisjoint(operators(built))  # of which ONNX Runtime has no 8-bit kernel


def test_for_tensorrt_every_zero_point_of_the_file_is_0_and_biases_stay_float(
    tiny_model: Path, pictures: Calibration, run_graph: Run, tmp_path: Path
) -> None:
    graphs = graphs_of(tiny_model, pictures, "tensorrt")
    onnx.save(graphs.build(graphs.layers), tmp_path / "model.onnx")
    built = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(built, full_check=True)
    for operator in ("QuantizeLinear", "DequantizeLinear"):
        points = zero_points(built, operator)
        assert len(points) >= len(graphs.layers)
        assert all(point.dtype == np.int8 and not point.any() for point in points)
    biases = [node.input[2] for node in built.graph.node if node.op_type == "Conv" and len(node.input) == 3]
    types = {tensor.name: tensor.data_type for tensor in built.graph.initializer}
    assert {types[name] for name in biases} == {TensorProto.FLOAT}
    assert "ConvTranspose" in operators(built)
    for node in built.graph.node:
        if node.op_type == "Relu":  # nothing between a layer and its activation, or they are not fused
            assert made_by(built, node.input[0]) in ("Conv", "ConvTranspose")
    model, card = onnx.load(tiny_model), read_card(tiny_model)
    batch = card.preprocess(next(iter(pictures.measured))[0])
    assert np.corrcoef(run_graph(built, batch).ravel(), run_graph(model, batch).ravel())[0, 1] > 0.99


def test_the_last_layer_and_the_head_stay_in_float32(tiny_labels_model: Path, pictures: Calibration) -> None:
    graphs = graphs_of(tiny_labels_model, pictures)
    built = graphs.build(graphs.layers)
    last = [node for node in built.graph.node if node.op_type == "Conv"][-1]
    assert last.name not in graphs.layers
    assert made_by(built, last.input[1]) == ""
    choice = next(node for node in built.graph.node if node.op_type == "ArgMax")
    assert made_by(built, choice.input[0]) != "DequantizeLinear"
    assert built.graph.output == onnx.load(tiny_labels_model).graph.output


def test_of_a_graph_that_takes_pixels_the_normalisation_stays_in_float32(
    tiny_model: Path, pictures: Calibration, run_graph: Run, taking_pixels: TakingPixels
) -> None:
    model, card = taking_pixels(onnx.load(tiny_model), read_card(tiny_model))
    graphs = Int8Graphs(model, card, pictures.ranges, "cpu")
    built = graphs.build(graphs.layers)
    onnx.checker.check_model(built, full_check=True)
    assert {"scale", "shift"}.isdisjoint(graphs.layers)
    front = {node.op_type: node.input[0] for node in built.graph.node if node.name in ("transpose", "scale", "shift")}
    assert {made_by(built, name) for name in front.values()} == {"Cast", "Transpose", "Mul"}
    assert "normalised" in {node.input[0] for node in built.graph.node if node.op_type == "QuantizeLinear"}
    reference = graphs_of(tiny_model, pictures)
    pixels = card.preprocess.geometry(next(iter(pictures.measured))[0])[None]
    np.testing.assert_allclose(
        run_graph(built, pixels),
        run_graph(reference.build(reference.layers), read_card(tiny_model).preprocess.normalise(pixels[0])),
        atol=0.05,  # the last digit of a normalised value may put it on another of the 256 levels
    )


def test_only_the_layers_that_are_asked_for_are_in_8_bits(tiny_model: Path, pictures: Calibration) -> None:
    graphs = graphs_of(tiny_model, pictures)
    names = list(graphs.layers)
    for chosen in (names[3:4], names[:2], names[1:]):
        built = graphs.build(chosen)
        onnx.checker.check_model(built, full_check=True)
        found = [
            node.name
            for node in built.graph.node
            if node.op_type == "Conv" and made_by(built, node.input[1]) == "DequantizeLinear"
        ]
        assert found == chosen


def test_in_float32_is_what_was_given(tiny_model: Path, pictures: Calibration, run_graph: Run) -> None:
    model, card = onnx.load(tiny_model), read_card(tiny_model)
    before = model.SerializeToString()
    built = Int8Graphs(model, card, pictures.ranges, "cpu").build([])
    assert model.SerializeToString() == before
    assert {"QuantizeLinear", "DequantizeLinear"}.isdisjoint(operators(built))
    batch = card.preprocess(next(iter(pictures.measured))[0])
    np.testing.assert_allclose(run_graph(built, batch), run_graph(model, batch), atol=1e-5)


def test_nothing_of_the_tools_is_left_in_the_file(tiny_model: Path, pictures: Calibration) -> None:
    graphs, model = graphs_of(tiny_model, pictures), onnx.load(tiny_model)
    built = graphs.build(graphs.layers)
    assert built.metadata_props == model.metadata_props
    assert (built.producer_name, built.producer_version) == (model.producer_name, model.producer_version)
    assert built.opset_import == model.opset_import
    assert built.graph.input == model.graph.input


@pytest.mark.parametrize(("opset", "target"), [(13, "cpu"), (18, "tensorrt"), (21, "cpu"), (23, "tensorrt")])
def test_every_opset_from_13_on_can_be_in_8_bits(
    tiny_checkpoint: Path,
    pictures: Calibration,
    picture: Path,
    tmp_path: Path,
    run_graph: Run,
    opset: int,
    target: Target,
) -> None:
    path = export(tiny_checkpoint, tmp_path / "model.onnx", opset=opset, images=[picture]).path
    graphs = Int8Graphs(onnx.load(path), read_card(path), pictures.ranges.some(1), target)
    built = graphs.build(graphs.layers)
    onnx.checker.check_model(built, full_check=True)
    assert [(entry.domain, entry.version) for entry in built.opset_import] == [("", opset)]
    assert np.isfinite(run_graph(built, np.zeros((1, 3, 48, 64), np.float32))).all()


def test_what_other_engines_compute_wrongly_in_8_bits_stays_in_float32(tiny_model: Path) -> None:
    def layer_of(name: str, taken: str, side: int = 3) -> onnx.NodeProto:
        return helper.make_node("Conv", [taken, f"weight{side}"], [name], name, pads=[side // 2] * 4)

    nodes = [
        layer_of("a", "image"),
        layer_of("taken", "a"),
        helper.make_node("Pad", ["taken", "pads"], ["padded"], "padded"),
        helper.make_node("AveragePool", ["padded"], ["pooled"], "pooled", kernel_shape=[3, 3]),
        helper.make_node("GlobalAveragePool", ["a"], ["mean"], "mean"),
        layer_of("pixel", "mean", 1),
        helper.make_node("Mul", ["pooled", "pixel"], ["gated"], "gated"),
        layer_of("b", "gated"),
        layer_of("logits", "b"),
    ]
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.normal(size=(3, 3, side, side)).astype(np.float32), f"weight{side}")
        for side in (1, 3)
    ]
    weights.append(numpy_helper.from_array(np.array([0, 0, 1, 1] * 2), "pads"))
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 48, 64]) for name in ("image", "logits")]
    graph = helper.make_graph(nodes, "network", values[:1], values[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    picture = rng.integers(0, 256, (48, 64, 3), np.uint8)
    graphs = Int8Graphs(model, read_card(tiny_model), Pictures(lambda _: (picture, None), [0]), "cpu")
    assert graphs.layers == {"a": "Conv", "b": "Conv"}


def test_an_opset_without_scales_a_channel_is_refused(
    tiny_checkpoint: Path, pictures: Calibration, picture: Path, tmp_path: Path
) -> None:
    path = export(tiny_checkpoint, tmp_path / "model.onnx", opset=12, images=[picture]).path
    with pytest.raises(ExportError, match="which opset 12 cannot hold; export with --opset 13 or above"):
        graphs_of(path, pictures)


def test_without_pictures_there_are_no_ranges(tiny_model: Path, pictures: Calibration) -> None:
    none = dataclasses.replace(pictures, ranges=Pictures(pictures.ranges.read, []))
    with pytest.raises(ExportError, match="there are none; name some with --calibrate"):
        graphs_of(tiny_model, none)


def test_ranges_of_a_network_that_sees_tiles_come_from_tiles(
    make_checkpoint: Callable[..., Path], picture: Path, tmp_path: Path, photo: NDArray[np.uint8]
) -> None:
    path = export(
        make_checkpoint(tmp_path / "tiles.safetensors", tile_overlap=0.25), tmp_path / "tiles.onnx", images=[picture]
    ).path
    bright = np.zeros((100, 200, 3), np.uint8)
    bright[60:90, 150:190] = 255  # in the last tile alone
    pictures = Pictures(lambda _: (bright, None), [0])
    graphs = Int8Graphs(onnx.load(path), read_card(path), pictures, "cpu")
    built = graphs.build(graphs.layers)
    form = read_card(path).preprocess
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in built.graph.initializer}
    first = next(node for node in built.graph.node if node.op_type == "QuantizeLinear" and node.input[0] == "image")
    white = max((1 - mean) / std for mean, std in zip(form.mean, form.std, strict=True))
    black = min(-mean / std for mean, std in zip(form.mean, form.std, strict=True))
    assert values[first.input[1]] == pytest.approx((white - black) / 255)
