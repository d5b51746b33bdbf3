import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from segship.export.trace import example_shape, trace
from segship.export.wrapper import deployable
from segship.runtime.card import ModelCard, Network
from segship.runtime.errors import CardError, ExportError
from segship.runtime.preprocess import Preprocess
from segship.training.networks import build_network

SIZE = (64, 96)
OPTIONS: dict[str, dict[str, int | str]] = {"unet": {"base_channels": 2}, "fcns": {"backbone": "vgg11"}}
PIXELS = {"input_form": "pixels", "head": "labels", "output_name": "labels"}
Run = Callable[[NDArray[Any]], NDArray[Any]]


def card_of(arch: str, **changes: Any) -> ModelCard:
    names = tuple(f"class {number}" for number in range(5))
    card = ModelCard(names, ((0, 0, 0),) * 5, Preprocess(SIZE), network=Network(arch, OPTIONS.get(arch, {})))
    return dataclasses.replace(card, **changes)


def lively(card: ModelCard) -> nn.Module:
    """Build the card's network, seeded, with batch norms that have seen something."""
    torch.manual_seed(0)
    assert card.network is not None
    network = build_network(card.network, num_classes=card.num_logits, in_channels=3)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.bias)
            module.momentum = None
    with torch.no_grad():
        network.train()(torch.randn(2, 3, *SIZE))
    return network


def engines(model: onnx.ModelProto, card: ModelCard, folder: Path) -> dict[str, Run]:
    path = folder / "model.onnx"
    onnx.save(model, path)
    onnx.checker.check_model(str(path), full_check=True)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    dnn: Any = cv2.dnn
    net = dnn.readNetFromONNX(str(path), dnn.ENGINE_NEW)

    def run_opencv(batch: NDArray[Any]) -> NDArray[Any]:
        net.setInput(batch, card.input_name)
        return np.array(net.forward(card.output_name))

    return {
        "ONNX Runtime": lambda batch: session.run(None, {card.input_name: batch})[0],
        "OpenVINO": lambda batch: np.asarray(compiled(batch)[0]),
        "OpenCV": run_opencv,
    }


def batch_of(card: ModelCard, count: int, size: tuple[int, int]) -> NDArray[Any]:
    noise = np.random.default_rng(1)
    if card.input_form == "pixels":
        return noise.integers(0, 256, (count, *size, 3), np.uint8)
    return noise.standard_normal((count, 3, *size), np.float32)


def assert_same(got: NDArray[Any], expected: NDArray[Any], engine: str) -> None:
    assert (got.shape, got.dtype) == (expected.shape, expected.dtype), engine
    if got.dtype == np.float32:
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4, err_msg=engine)
    else:
        assert (got == expected).mean() > 0.999, engine


def dimensions(value: onnx.ValueInfoProto) -> list[int | str]:
    return [side.dim_param or side.dim_value for side in value.type.tensor_type.shape.dim]


@pytest.mark.parametrize("opset", range(11, 24))
def test_the_graph_has_exactly_the_opset_that_was_asked_for_and_computes_the_same(opset: int, tmp_path: Path) -> None:
    card = card_of("unet", **PIXELS)
    module = deployable(lively(card), card)
    model = trace(module, card, opset)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", opset)]
    batch = batch_of(card, 1, SIZE)
    with torch.inference_mode():
        expected = module(torch.from_numpy(batch)).numpy()
    assert len(np.unique(expected)) > 1
    for engine, run in engines(model, card, tmp_path).items():
        assert_same(run(batch), expected, engine)


def test_names_of_nodes_begin_with_their_stage_and_carry_the_modules_path() -> None:
    card = card_of("unet", **PIXELS, frame=(70, 90), preprocess=Preprocess(SIZE, interpolation="linear_float"))
    model = trace(deployable(lively(card), card), card, 17)
    stages = dict.fromkeys(node.name.split("/")[1] for node in model.graph.node)
    assert list(stages) == ["planes", "resize", "normalise", "network", "upscale", "head"]
    assert "/network/down1/down1.0/Conv" in {node.name for node in model.graph.node}


def test_a_graph_of_fixed_size_says_so_and_neither_pads_nor_crops_where_it_need_not() -> None:
    card = card_of("unet")
    model = trace(deployable(lively(card), card), card, 17)
    assert not {node.op_type for node in model.graph.node} & {"Pad", "Slice", "Shape"}
    assert dimensions(model.graph.input[0]) == [1, 3, *SIZE]
    assert dimensions(model.graph.output[0]) == [1, 5, *SIZE]


@pytest.mark.parametrize(
    ("arch", "form"),
    [("unet", PIXELS), ("u2net5p", {}), ("fcns", {}), ("bisenetv2", PIXELS)],
    ids=["unet", "u2net5p", "fcns", "bisenetv2"],
)
def test_a_dynamic_graph_runs_at_any_size_and_batch_and_computes_the_same(
    arch: str, form: dict[str, Any], tmp_path: Path
) -> None:
    stride = 16 if arch == "unet" else 32
    card = card_of(arch, **form, dynamic=("batch", "size"), stride=stride)
    module = deployable(lively(card), card)
    model = trace(module, card, 17)
    open_axes = ["batch", "height", "width"]
    assert dimensions(model.graph.input[0]) == ([*open_axes, 3] if form else ["batch", 3, "height", "width"])
    assert dimensions(model.graph.output[0]) == (open_axes if form else ["batch", 5, "height", "width"])
    assert "Shape" not in {node.op_type for node in model.graph.node}  # whatever is enlarged is so by a constant factor
    loaded = engines(model, card, tmp_path)
    for size in (SIZE, (96, 64), (64, 128)):
        for count in (1, 3):
            batch = batch_of(card, count, size)
            with torch.inference_mode():
                expected = module(torch.from_numpy(batch)).numpy()
            for engine, run in loaded.items():
                assert_same(run(batch), expected, f"{engine} at {count} × {size}")


def test_an_open_batch_leaves_the_size_alone_and_the_rest_known(tmp_path: Path) -> None:
    card = card_of("fastscnn", dynamic=("batch",), head="probabilities", output_name="probabilities")
    module = deployable(lively(card), card)
    model = trace(module, card, 17)
    assert dimensions(model.graph.output[0]) == ["batch", 5, *SIZE]
    loaded = engines(model, card, tmp_path)
    for count in (1, 3):
        batch = batch_of(card, count, SIZE)
        with torch.inference_mode():
            expected = module(torch.from_numpy(batch)).numpy()
        for engine, run in loaded.items():
            assert_same(run(batch), expected, engine)


def test_a_network_that_holds_its_size_refuses_to_leave_it_open() -> None:
    card = card_of("fastscnn", dynamic=("size",), stride=32)
    with pytest.raises(ExportError, match=r"the size of fastscnn cannot be left open: its pyramid pools"):
        trace(deployable(lively(card), card), card, 17)


@pytest.mark.parametrize(
    ("dynamic", "form", "shape"),
    [
        ((), {}, (1, 3, *SIZE)),
        (("batch",), {}, (2, 3, *SIZE)),
        (("batch", "size"), {}, (2, 3, *SIZE)),
        (("size",), PIXELS, (1, *SIZE, 3)),
        (("batch",), PIXELS | {"frame": (70, 90)}, (2, 70, 90, 3)),
    ],
)
def test_the_example_fits_the_card(dynamic: Sequence[str], form: dict[str, Any], shape: tuple[int, ...]) -> None:
    assert example_shape(card_of("unet", dynamic=dynamic, **form)) == shape


class _Fourier(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return torch.fft.fft(image).abs()


class _Careless(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        raise KeyError("a line\nand another")


class _TooMany(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        sys.stdout.write("says the network")
        return torch.cat([image, image * 2, image * 3], dim=1)


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (_Fourier(), r"PyTorch cannot export this network at opset 17 \(.*fft_fft"),
        (_Careless(), r"PyTorch cannot export this network at opset 17 \('a line.*and another'\)"),
        (_TooMany(), r"logits have the shape \(1, 9, 64, 96\); by its card it is \(1, 5, 64, 96\)"),
    ],
    ids=lambda part: type(part).__name__ if isinstance(part, nn.Module) else "",
)
def test_what_cannot_be_traced_is_one_line_and_results_alone_go_to_stdout(
    network: nn.Module, words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    card = card_of("unet", network=None)
    with pytest.raises(ExportError, match=words) as caught:
        trace(deployable(network, card), card, 17)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "says the network" if isinstance(network, _TooMany) else "")


def test_a_card_whose_size_is_no_multiple_of_its_stride_is_not_traced() -> None:
    with pytest.raises(CardError, match="no multiple of its stride"):
        card_of("unet", dynamic=("size",), stride=40)
