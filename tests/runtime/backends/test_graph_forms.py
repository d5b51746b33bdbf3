"""Every form of graph that a card can describe, on every engine: right, or refused when it is loaded."""

import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch.nn import functional as F

from segship.runtime.backends import Backend, load_backend
from segship.runtime.card import ModelCard
from segship.runtime.errors import BackendError, ModelError
from segship.runtime.labels import labels_dtype
from segship.runtime.preprocess import Preprocess

ENGINES = ["ort", "opencv", "openvino"]
SIZE: Final = (12, 18)
STRIDE: Final = 2
OPENCV_5 = cv2.__version__.startswith("5.")
ONNX_TYPES: Final = {"float32": TensorProto.FLOAT, "uint8": TensorProto.UINT8, "uint16": TensorProto.UINT16}
CAST_TO: Final = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "int8": TensorProto.FLOAT}

Sizes = list[tuple[int, int, int]]


def card_of(num_classes: int = 6, depth: Any = "uint8", size: tuple[int, int] = SIZE, **fields: Any) -> ModelCard:
    rule = "linear_float" if "frame" in fields else "linear_exact"
    preprocess = Preprocess(size, 3, depth, interpolation=rule, mean=(0.4, 0.45, 0.5), std=(0.2, 0.21, 0.22))
    return ModelCard(
        tuple(f"class {i}" for i in range(num_classes)),
        tuple((i % 256, i // 256, 0) for i in range(num_classes)),
        preprocess,
        ignore_index=65535,
        output_name=fields.get("head", "logits"),
        **fields,
    )


class Graph:
    """A network of two scales with a skip, and round it what the card says."""

    def __init__(self, card: ModelCard, *, signed: bool = False, pooled: bool = False) -> None:
        rng = np.random.default_rng(3)
        self.card, self.signed, self.pooled = card, signed, pooled
        shapes = {"first": (4, 3, 3, 3), "second": (4, 4, 3, 3), "last": (card.num_logits, 8, 1, 1)}
        self.weights = {
            name: (rng.standard_normal(shape) / np.prod(shape[1:]) ** 0.5).astype(np.float32)
            for name, shape in shapes.items()
        }
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def __call__(self, batch: NDArray[Any]) -> NDArray[Any]:
        """Compute with PyTorch, in float32."""
        card, x = self.card, torch.from_numpy(batch.astype(np.float32))
        if card.input_form == "pixels":
            x = x.permute(0, 3, 1, 2)
            if card.frame:
                x = F.interpolate(x, card.preprocess.size, mode="bilinear", align_corners=False)
            gain, bias = (torch.from_numpy(part).view(1, -1, 1, 1) for part in card.preprocess.gain_and_bias(1))
            x = x * gain + bias
        first, second, last = (torch.from_numpy(self.weights[name]) for name in ("first", "second", "last"))
        skip = F.conv2d(x, first, padding=1).relu()
        x = F.interpolate(F.conv2d(F.max_pool2d(skip, 2), second, padding=1), scale_factor=2.0, mode="bilinear")
        x = F.conv2d(torch.cat([skip, x], 1), last)
        if card.frame:
            x = F.interpolate(x, card.frame, mode="bilinear", align_corners=False)
        if card.head == "probabilities":
            x = x.sigmoid() if card.task == "binary" else x.softmax(1)
        if card.head == "labels":
            labels = (x[:, 0] > card.logit_threshold) if card.task == "binary" else x.argmax(1)
            return labels.numpy().astype(labels_dtype(card.num_classes))
        return x.numpy()

    def write(self, path: Path) -> Path:
        """Write the same as ONNX, in the card's precision."""
        card, x = self.card, self.card.input_name
        if card.input_form == "pixels":
            x = self._node("Transpose", self._node("Cast", x, to=TensorProto.FLOAT), perm=[0, 3, 1, 2])
            x = self._resized(x, card.preprocess.size) if card.frame else x
            gain, bias = (part.reshape(1, -1, 1, 1) for part in card.preprocess.gain_and_bias(1))
            x = self._node("Add", self._node("Mul", x, self._constant(gain)), self._constant(bias))
        x = self._node("Cast", x, to=CAST_TO[card.precision]) if card.precision == "fp16" else x
        skip = self._node("Relu", self._convolved(x, "first"))
        down = self._node("MaxPool", skip, kernel_shape=[2, 2], strides=[2, 2])
        scales = self._constant(np.array([1, 1, 2, 2], np.float32))
        x = self._node("Resize", self._convolved(down, "second"), "", scales, mode="linear")
        x = self._node("Concat", skip, x, axis=1)
        if self.pooled:
            x = self._node("AveragePool", self._quantized(x), kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1)
        x = self._convolved(x, "last")
        x = self._node("Cast", x, to=TensorProto.FLOAT) if card.precision == "fp16" else x
        x = self._resized(x, card.frame) if card.frame else x
        x = self._headed(x)
        self.nodes[-1].output[0] = card.output_name
        dtype = labels_dtype(card.num_classes).__name__ if card.head == "labels" else "float32"
        taken = "float32" if card.input_form == "float" else card.preprocess.depth
        graph = helper.make_graph(
            self.nodes,
            "graph",
            [helper.make_tensor_value_info(card.input_name, ONNX_TYPES[taken], card.input_shape)],
            [helper.make_tensor_value_info(card.output_name, ONNX_TYPES[dtype], card.output_shape)],
            self.constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model)
        onnx.save(model, path)
        return path

    def _headed(self, x: str) -> str:
        card = self.card
        if card.head == "probabilities":
            return self._node("Sigmoid", x) if card.task == "binary" else self._node("Softmax", x, axis=1)
        if card.head == "labels":
            if card.task == "binary":
                x = self._node("Squeeze", x, self._constant(np.array([1], np.int64)))
                x = self._node("Greater", x, self._constant(np.array(card.logit_threshold, np.float32)))
            else:
                x = self._node("ArgMax", x, axis=1, keepdims=0)
            return self._node("Cast", x, to=ONNX_TYPES[labels_dtype(card.num_classes).__name__])
        return self._node("Identity", x)

    def _resized(self, x: str, size: tuple[int, int]) -> str:
        channels = self.card.preprocess.channels if size == self.card.preprocess.size else self.card.num_logits
        return self._node("Resize", x, "", "", self._constant(np.array([1, channels, *size], np.int64)), mode="linear")

    def _convolved(self, x: str, name: str) -> str:
        weights = self.weights[name]
        kernel = weights.shape[-1]
        form = {"kernel_shape": [kernel, kernel], "pads": [kernel // 2] * 4}
        if self.card.precision != "int8":
            half = self.card.precision == "fp16"
            return self._node("Conv", x, self._constant(weights.astype(np.float16) if half else weights), **form)
        scales = (np.abs(weights).max(axis=(1, 2, 3)) / 127).astype(np.float32)
        codes = np.round(weights / scales.reshape(-1, 1, 1, 1)).astype(np.int8)
        zeros = self._constant(np.zeros(len(scales), np.int8))
        back = self._node("DequantizeLinear", self._constant(codes), self._constant(scales), zeros, axis=0)
        return self._quantized(self._node("Conv", self._quantized(x), back, **form))

    def _quantized(self, x: str) -> str:
        scale = self._constant(np.array(0.04, np.float32))
        zero = self._constant(np.array(0, np.int8) if self.signed else np.array(120, np.uint8))
        return self._node("DequantizeLinear", self._node("QuantizeLinear", x, scale, zero), scale, zero)

    def _node(self, operator: str, *inputs: str, **attributes: Any) -> str:
        name = f"{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], name, **attributes))
        return name

    def _constant(self, value: NDArray[Any]) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(value, name))
        return name


def batch_of(card: ModelCard, count: int = 1, size: tuple[int, int] | None = None, seed: int = 0) -> NDArray[Any]:
    rng = np.random.default_rng(seed)
    height, width = size or card.frame or card.preprocess.size
    if card.input_form == "float":
        return rng.standard_normal((count, 3, height, width)).astype(np.float32)
    dtype = np.dtype(card.preprocess.depth)
    return rng.integers(0, np.iinfo(dtype).max, (count, height, width, 3), dtype, endpoint=True)


def assert_same(got: NDArray[Any], expected: NDArray[Any]) -> None:
    assert got.shape == expected.shape
    if expected.dtype == np.float32:
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4)
    else:
        np.testing.assert_array_equal(got.astype(expected.dtype), expected)


FORMS = {
    f"{head} of {depth} {form}": {"head": head, "depth": depth, "input_form": form}
    for head in ("logits", "probabilities", "labels")
    for form, depth in (("float", "uint8"), ("pixels", "uint8"), ("pixels", "uint16"))
}
FORMS |= {
    f"{head} at the size of {depth} frames": {"head": head, "depth": depth, "input_form": "pixels", "frame": (17, 25)}
    for head, depth in (("logits", "uint8"), ("probabilities", "uint16"), ("labels", "uint8"))
}
FORMS |= {
    f"binary {head}": {"head": head, "num_classes": 2, "task": "binary", "threshold": 0.6}
    for head in ("logits", "probabilities", "labels")
}
FORMS["labels of 300 classes"] = {"head": "labels", "num_classes": 300}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_each_form_computes_what_pytorch_computes(engine: str, form: dict[str, Any], tmp_path: Path) -> None:
    card = card_of(**form)
    graph = Graph(card)
    backend = load_backend(engine, graph.write(tmp_path / "model.onnx"), card, "cpu")
    for seed in (0, 1):
        batch = batch_of(card, seed=seed)
        assert_same(backend.run(batch), graph(batch))
    assert backend.info.precision == "fp32"
    backend.close()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("head", ["logits", "probabilities", "labels"])
@pytest.mark.parametrize(
    ("form", "dynamic", "sizes"),
    [
        ("float", ("batch",), [(1, *SIZE), (3, *SIZE), (2, *SIZE), (1, *SIZE)]),
        ("float", ("size",), [(1, *SIZE), (1, 20, 10), (1, 8, 32), (1, *SIZE)]),
        ("pixels", ("batch", "size"), [(1, *SIZE), (3, 20, 10), (2, *SIZE), (1, 8, 32)]),
    ],
)
def test_open_axes_take_other_sizes_one_after_the_other(
    engine: str, head: Any, form: Any, dynamic: Any, sizes: Sizes, tmp_path: Path
) -> None:
    card = card_of(head=head, input_form=form, dynamic=dynamic, stride=STRIDE)
    graph = Graph(card)
    path = graph.write(tmp_path / "model.onnx")
    if not OPENCV_5 and engine == "opencv" and "size" in dynamic:
        pytest.skip("OpenCV 4 refuses most graphs of open size")
    backend = load_backend(engine, path, card, "cpu")
    for count, height, width in sizes:
        batch = batch_of(card, count, (height, width))
        assert_same(backend.run(batch), graph(batch))
    backend.close()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("form", ["float", "pixels"])
def test_half_precision_is_near_single_precision(engine: str, form: Any, tmp_path: Path) -> None:
    card = card_of(input_form=form, precision="fp16")
    graph = Graph(card)
    backend = load_backend(engine, graph.write(tmp_path / "model.onnx"), card, "cpu")
    batch = batch_of(card)
    logits = backend.run(batch)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, graph(batch), rtol=1e-2, atol=1e-2)
    assert backend.info.precision == "fp16"
    backend.close()


@pytest.mark.parametrize("engine", ["ort", "openvino"] if OPENCV_5 else ENGINES)
def test_eight_bits_are_near_single_precision(engine: str, tmp_path: Path) -> None:
    card = card_of(precision="int8")
    graph = Graph(card)
    backend = load_backend(engine, graph.write(tmp_path / "model.onnx"), card, "cpu")
    batch = batch_of(card)
    assert np.abs(backend.run(batch) - graph(batch)).max() < 0.12  # three steps of 0.04
    assert backend.info.precision == "int8"
    backend.close()


def refusal(engine: str, graph: Graph, path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load_backend(engine, graph.write(path), graph.card, "cpu")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.skipif(not OPENCV_5, reason="OpenCV 4 computes it rightly")
def test_opencv_5_refuses_eight_bits_which_it_computes_wrongly(tmp_path: Path) -> None:
    words = refusal("opencv", Graph(card_of(precision="int8")), tmp_path / "model.onnx")
    assert "cannot run this graph (it gets the last pixels of small int8 maps wrong)" in words
    assert words.endswith("use --backend ort, or export it with --precision fp32")


def test_openvino_refuses_signed_values_that_are_concatenated(tmp_path: Path) -> None:
    graph = Graph(card_of(precision="int8"), signed=True)
    assert "--int8-for cpu" in refusal("openvino", graph, tmp_path / "model.onnx")


def test_openvino_refuses_a_pooling_of_quantized_values_that_counts_its_padding(tmp_path: Path) -> None:
    graph = Graph(card_of(precision="int8"), pooled=True)
    assert "average pooling" in refusal("openvino", graph, tmp_path / "model.onnx")


@pytest.mark.parametrize("engine", ENGINES)
def test_what_an_engine_does_not_know_is_one_line_and_nothing_on_stderr(
    engine: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    graph = Graph(card_of())
    path = graph.write(tmp_path / "model.onnx")
    model = onnx.load(path)
    model.graph.node[0].op_type = "Unheard"
    onnx.save(model, path)
    with pytest.raises(ModelError, match=r"cannot (load it|run this graph)") as caught:
        load_backend(engine, path, graph.card, "cpu")
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_opencv_refuses_a_graph_whose_open_size_is_none(tmp_path: Path) -> None:
    card = card_of(dynamic=("size",), stride=STRIDE)
    path = Graph(card).write(tmp_path / "model.onnx")
    model = onnx.load(path)
    for name, values in (("starts", (0, 0)), ("ends", SIZE), ("axes", (2, 3))):
        model.graph.initializer.append(numpy_helper.from_array(np.array(values, np.int64), name))
    last = model.graph.node[-1]
    last.op_type = "Slice"
    last.input.extend(["starts", "ends", "axes"])
    onnx.save(model, path)
    with pytest.raises(ModelError, match=r"returns \(1, 6, 12, 18\) instead of.*use --backend ort.*without --dynamic"):
        load_backend("opencv", path, card, "cpu")


@pytest.mark.skipif(not OPENCV_5, reason="only OpenCV 5 reads past their end")
@pytest.mark.parametrize("form", ["float", "pixels"])
def test_opencv_5_refuses_sides_that_shrink_to_a_single_pixel(form: Any, tmp_path: Path) -> None:
    card = card_of(input_form=form, dynamic=("size",), stride=STRIDE)
    backend = load_backend("opencv", Graph(card).write(tmp_path / "model.onnx"), card, "cpu")
    with pytest.raises(BackendError, match="no sides below 4 pixels"):
        backend.run(batch_of(card, size=(2, 18)))
    backend.close()
    small = card_of(size=(2, 18), input_form=form, dynamic=("size",), stride=STRIDE)
    assert "no sides below 4" in refusal("opencv", Graph(small), tmp_path / "small.onnx")


WRONG: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "other type": lambda batch: batch.astype(np.float64),
    "other channels": lambda batch: batch[..., :1].copy(),
    "no batch": lambda batch: batch[0],
    "other size": lambda batch: batch[:, 1:].copy(),
    "two at once": lambda batch: np.concatenate([batch, batch]),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG.keys())
def test_a_batch_that_the_graph_does_not_take_is_an_error(
    engine: str, wrong: Callable[[NDArray[Any]], NDArray[Any]], tmp_path: Path
) -> None:
    card = card_of(input_form="pixels")
    backend = load_backend(engine, Graph(card).write(tmp_path / "model.onnx"), card, "cpu")
    batch = wrong(batch_of(card))
    with pytest.raises(BackendError, match=r"takes \(1, 12, 18, 3\) uint8; it was given \(.*") as caught:
        backend.run(batch)
    assert str(caught.value).endswith(f"{batch.shape} {batch.dtype}")
    backend.close()


@pytest.mark.parametrize("engine", ENGINES)
def test_a_batch_may_be_read_only_and_lie_in_memory_in_any_order(engine: str, tmp_path: Path) -> None:
    card = card_of(input_form="pixels")
    graph = Graph(card)
    backend = load_backend(engine, graph.write(tmp_path / "model.onnx"), card, "cpu")
    batch = batch_of(card)
    batch.flags.writeable = False
    assert_same(backend.run(batch), graph(batch))
    turned = np.asfortranarray(batch)
    assert_same(backend.run(turned), graph(batch))
    backend.close()


@pytest.mark.parametrize("engine", ENGINES)
def test_another_thread_than_the_one_that_loaded_it_may_run_it(engine: str, tmp_path: Path) -> None:
    card = card_of()
    graph = Graph(card)
    backend = load_backend(engine, graph.write(tmp_path / "model.onnx"), card, "cpu")
    batch = batch_of(card)
    results: list[NDArray[Any]] = []
    thread = threading.Thread(target=lambda: results.append(backend.run(batch)))
    thread.start()
    thread.join()
    assert_same(results[0], graph(batch))
    backend.close()


def test_the_precision_of_a_card_is_what_the_info_says(tmp_path: Path) -> None:
    card = dataclasses.replace(card_of(), precision="fp16")
    path = Graph(card).write(tmp_path / "model.onnx")
    loaded: list[Backend] = [load_backend(engine, path, card, "cpu") for engine in ENGINES]
    assert [backend.info.precision for backend in loaded] == ["fp16"] * 3
    for backend in loaded:
        backend.close()
