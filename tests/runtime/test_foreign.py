"""Graphs in the forms that others write, each of the same convolution, so that all must say the same of a picture."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from segship.runtime.backends import load_backend
from segship.runtime.card import ModelCard
from segship.runtime.card_values import CardValues, MissingValuesError
from segship.runtime.errors import CardError, ModelError
from segship.runtime.foreign import card_for, foreign_card
from segship.runtime.graph_layout import expected_shape, from_graph, to_graph
from segship.runtime.labels import labels_from_logits, logits_from_probabilities
from segship.runtime.model_file import has_card, read_card, write_card

SIZE, CLASSES = (24, 32), 5
KINDS = onnx.TensorProto
NAMES = ",".join(f"class {number}" for number in range(CLASSES))
VALUES = CardValues(NAMES, None, "0.4,0.45,0.5", "0.2,0.21,0.22", "RGB", "full_scale")
ULTRALYTICS = {
    "author": "Ultralytics",
    "task": "semantic",
    "names": str({number: f"class {number}" for number in range(CLASSES)}),
    "imgsz": str(list(SIZE)),
    "stride": "8",
    "version": "8.4.190",
}
ENGINES = ["ort", "opencv", "openvino"]


@dataclass(frozen=True)
class Foreign:
    """How a graph is written.

    Attributes:
        takes: order of the axes of its input.
        kind: element type of it.
        ends: nodes after the logits, each an operator with its attributes.
        returns: shape of the last one's output.
        returned_kind: element type of it.
        planes: of the convolution.
        stride: of the convolution.
    """

    takes: str = "NCHW"
    kind: int = KINDS.FLOAT
    ends: tuple[tuple[str, dict[str, Any]], ...] = ()
    returns: tuple[int | None, ...] = (1, CLASSES, *SIZE)
    returned_kind: int = KINDS.FLOAT
    planes: int = CLASSES
    stride: int = 1
    batch: int | None = 1
    metadata: dict[str, str] = dataclasses.field(default_factory=dict)


Write = Callable[[Foreign], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a graph of one convolution in a foreign form."""

    def write_graph(form: Foreign) -> Path:
        nodes, before = [], "picture"
        if form.kind != KINDS.FLOAT:
            nodes.append(helper.make_node("Cast", [before], ["floats"], to=KINDS.FLOAT))
            before = "floats"
        if form.takes == "NHWC":
            nodes.append(helper.make_node("Transpose", [before], ["planes"], perm=[0, 3, 1, 2]))
            before = "planes"
        names = ["conv", *(f"value{number}" for number in range(len(form.ends) - 1)), "out"] if form.ends else ["out"]
        weights, bias = _parameters(form.planes)
        pads, strides = [1, 1, 1, 1], [form.stride] * 2
        nodes.append(helper.make_node("Conv", [before, "weights", "bias"], names[:1], pads=pads, strides=strides))
        for (operator, attributes), name, result in zip(form.ends, names, names[1:], strict=False):
            inputs = [name, "axes"] if operator in ("Squeeze", "Unsqueeze") else [name]
            nodes.append(helper.make_node(operator, inputs, [result], **attributes))
        sides = {"N": form.batch, "C": 3, "H": SIZE[0], "W": SIZE[1]}
        graph = helper.make_graph(
            nodes,
            "foreign",
            [helper.make_tensor_value_info("picture", form.kind, [sides[axis] for axis in form.takes])],
            [helper.make_tensor_value_info("out", form.returned_kind, (form.batch, *form.returns[1:]))],
            [
                numpy_helper.from_array(weights, "weights"),
                numpy_helper.from_array(bias, "bias"),
                *([numpy_helper.from_array(np.array([1]), "axes")] if "Squeeze" in dict(form.ends) else []),
            ],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        helper.set_model_props(model, form.metadata)
        onnx.checker.check_model(model)
        onnx.save(model, tmp_path / "foreign.onnx")
        return tmp_path / "foreign.onnx"

    return write_graph


def _parameters(planes: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    rng = np.random.default_rng(3)
    weights, bias = rng.normal(size=(CLASSES, 3, 3, 3)), rng.normal(size=CLASSES)
    return weights[:planes].astype(np.float32), bias[:planes].astype(np.float32)


@pytest.fixture(scope="module")
def picture() -> NDArray[np.uint8]:
    """A picture of the network's size."""
    return np.random.default_rng(8).integers(0, 256, (*SIZE, 3), np.uint8)


def _output(model: Path, card: ModelCard, picture: NDArray[np.uint8], engine: str) -> NDArray[Any]:
    """Go the way from a picture to what the graph says of it, in segship's order."""
    batch = picture[None] if card.input_form == "pixels" else card.preprocess.normalise(picture)
    backend = load_backend(engine, model, card, "cpu")
    try:
        return from_graph(backend.run(to_graph(batch, card)), card)
    finally:
        backend.close()


TO_NHWC = ("Transpose", {"perm": [0, 2, 3, 1]})
End = tuple[str, dict[str, Any]]
SOFTMAX: End = ("Softmax", {"axis": 1})
SIGMOID: End = ("Sigmoid", {})
ARGMAX, KEPT = ("ArgMax", {"axis": 1, "keepdims": 0}), ("ArgMax", {"axis": 1, "keepdims": 1})
TO_UINT8, TO_INT32 = ("Cast", {"to": KINDS.UINT8}), ("Cast", {"to": KINDS.INT32})
TO_HALF, TO_FLOAT = ("Cast", {"to": KINDS.FLOAT16}), ("Cast", {"to": KINDS.FLOAT})
NHWC = (1, *SIZE, CLASSES)

LOGITS = {
    "as ours": Foreign(),
    "channels last": Foreign(takes="NHWC", ends=(TO_NHWC,), returns=NHWC),
    "channels last in": Foreign(takes="NHWC"),
    "any batch": Foreign(batch=None),
    "half in and out": Foreign(kind=KINDS.FLOAT16, ends=(TO_HALF,), returned_kind=KINDS.FLOAT16),
}
LABELS = {
    "int64": Foreign(ends=(ARGMAX,), returns=(1, *SIZE), returned_kind=KINDS.INT64),
    "uint8": Foreign(ends=(ARGMAX, TO_UINT8), returns=(1, *SIZE), returned_kind=KINDS.UINT8),
    "int32 with an axis": Foreign(ends=(KEPT, TO_INT32), returns=(1, 1, *SIZE), returned_kind=KINDS.INT32),
    "floats": Foreign(ends=(ARGMAX, TO_FLOAT), returns=(1, *SIZE)),
    "an axis behind": Foreign(
        ends=(TO_NHWC, ("ArgMax", {"axis": 3, "keepdims": 1})), returns=(1, *SIZE, 1), returned_kind=KINDS.INT64
    ),
}


def _expected_logits(write: Write, picture: NDArray[np.uint8], form: Foreign) -> NDArray[Any]:
    plain = write(Foreign(planes=form.planes, stride=form.stride, returns=(1, form.planes, *_sides(form))))
    names = NAMES if form.planes == CLASSES else "rest,object"
    card = card_for(plain, dataclasses.replace(VALUES, class_names=names))
    return _output(plain, card, picture, "ort")


def _sides(form: Foreign) -> tuple[int, int]:
    return -(-SIZE[0] // form.stride), -(-SIZE[1] // form.stride)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", LOGITS)
def test_logits_come_out_as_of_a_graph_of_segships_own(
    write: Write, picture: NDArray[np.uint8], name: str, engine: str
) -> None:
    form = LOGITS[name]
    expected = _expected_logits(write, picture, form)
    model = write(form)
    card = card_for(model, VALUES)
    logits = _output(model, card, picture, engine)
    assert logits.shape == expected_shape(card, 1)
    assert card.head == "logits"
    np.testing.assert_allclose(logits, expected, atol=0.02 if name.startswith("half") else 1e-4)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", LABELS)
def test_labels_of_any_type_and_order_are_class_ids(
    write: Write, picture: NDArray[np.uint8], name: str, engine: str
) -> None:
    expected = _expected_logits(write, picture, LABELS[name])[0].argmax(axis=0)
    model = write(LABELS[name])
    card = card_for(model, VALUES)
    assert card.head == "labels"
    np.testing.assert_array_equal(_output(model, card, picture, engine)[0], expected)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("squeezed", [False, True])
def test_one_plane_of_probabilities_is_a_binary_network(
    write: Write, picture: NDArray[np.uint8], squeezed: bool, engine: str
) -> None:
    form = Foreign(planes=1, ends=(SIGMOID,), returns=(1, 1, *SIZE))
    if squeezed:
        form = dataclasses.replace(form, ends=(SIGMOID, ("Squeeze", {})), returns=(1, *SIZE))
    values = dataclasses.replace(VALUES, class_names="rest,object")
    expected = _expected_logits(write, picture, form)[0]
    model = write(form)
    card = card_for(model, values)
    assert (card.head, card.task, card.output_layout) == ("probabilities", "binary", "NHW" if squeezed else None)
    logits = logits_from_probabilities(_output(model, card, picture, engine)[0], card)
    np.testing.assert_array_equal(labels_from_logits(logits, SIZE, card), labels_from_logits(expected, SIZE, card))


def test_softmax_at_the_end_shows_probabilities(write: Write, picture: NDArray[np.uint8]) -> None:
    model = write(Foreign(ends=(SOFTMAX,)))
    card = card_for(model, VALUES)
    assert card.head == "probabilities"
    np.testing.assert_allclose(_output(model, card, picture, "ort").sum(axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_map_that_is_smaller_than_the_picture_is_told_from_its_size(
    write: Write, picture: NDArray[np.uint8], engine: str
) -> None:
    form = Foreign(stride=4, returns=(1, CLASSES, 6, 8))
    card = card_for(write(form), VALUES)
    assert (card.output_stride, card.output_shape) == (4, (1, CLASSES, 6, 8))
    logits = _output(write(form), card, picture, engine)
    np.testing.assert_allclose(logits, _expected_logits(write, picture, form), atol=1e-4)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("takes", ["NHWC", "NCHW"])
def test_a_graph_that_takes_bytes_gets_them(write: Write, picture: NDArray[np.uint8], takes: str, engine: str) -> None:
    model = write(Foreign(takes=takes, kind=KINDS.UINT8, ends=(ARGMAX, TO_UINT8), returns=(1, *SIZE), returned_kind=2))
    card = card_for(model, CardValues(NAMES, color_order="RGB"))
    assert (card.input_form, card.input_dtype, card.input_axes) == ("pixels", "uint8", takes)
    weights, bias = _parameters(CLASSES)
    padded = np.pad(picture.astype(np.float32), ((1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(0, 1))
    expected = (np.einsum("hwcij,kcij->khw", windows, weights) + bias[:, None, None]).argmax(axis=0)
    np.testing.assert_array_equal(_output(model, card, picture, engine)[0], expected)


def test_a_file_of_ultralytics_needs_nothing_more(write: Write, picture: NDArray[np.uint8]) -> None:
    model = write(dataclasses.replace(LABELS["uint8"], metadata=ULTRALYTICS))
    card = foreign_card(model)
    assert card.class_names == tuple(NAMES.split(","))
    form = card.preprocess
    assert (form.size, form.resize, form.fill, form.mean, form.std) == (SIZE, "letterbox", 114, (0, 0, 0), (1, 1, 1))
    assert (card.head, card.input_name, card.output_name) == ("labels", "picture", "out")
    assert card.provenance.versions == {"ultralytics": "8.4.190"}
    assert _output(model, card, picture, "ort").shape == (1, *SIZE)
    write_card(model, card)
    assert read_card(model) == card


def test_a_class_of_ultralytics_alone_has_a_background(write: Write) -> None:
    greater = Foreign(
        planes=1,
        ends=(("Sigmoid", {}), ("Round", {}), TO_UINT8, ("Squeeze", {})),
        returns=(1, *SIZE),
        returned_kind=KINDS.UINT8,
        metadata=ULTRALYTICS | {"names": "{0: 'crack'}"},
    )
    card = card_for(write(greater), CardValues(head="labels"))
    assert (card.class_names, card.task) == (("background", "crack"), "multiclass")


def test_what_is_said_goes_before_what_ultralytics_says(write: Write) -> None:
    model = write(dataclasses.replace(LABELS["uint8"], metadata=ULTRALYTICS))
    card = card_for(model, CardValues(resize="stretch", fill=0))
    assert (card.preprocess.resize, card.preprocess.fill) == ("stretch", 0)


def test_instance_segmentation_is_refused_with_its_file(write: Write) -> None:
    model = write(dataclasses.replace(LABELS["uint8"], metadata=ULTRALYTICS | {"task": "segment"}))
    with pytest.raises(CardError, match=r"foreign\.onnx: this Ultralytics network has the task 'segment'"):
        foreign_card(model)


def test_everything_that_is_missing_is_asked_for_at_once_with_both_ways_to_say_it(write: Write) -> None:
    model = write(Foreign())
    assert not has_card(model)
    with pytest.raises(CardError) as caught:
        foreign_card(model)
    text = str(caught.value)
    assert "foreign.onnx carries no segship card, and its graph does not tell --class-names" in text
    for option in ("(the graph returns (1, 5, 24, 32))", "--mean, --std, --color-order, --scale;"):
        assert option in text
    for told in ("--size", "--head", "--input-name", "--output-name"):
        assert told not in text
    assert "seg-check card" in text
    assert "-o FILE.onnx" in text
    assert "--card FILE" in text
    with pytest.raises(MissingValuesError, match="give --std, --color-order, --scale; or a whole card"):
        card_for(model, CardValues(NAMES, mean="0,0,0"))


def test_values_of_another_model_are_refused(write: Write) -> None:
    with pytest.raises(CardError, match=r"foreign\.onnx: the graph returns out \(1, 5, 24, 32\), which cannot be"):
        card_for(write(Foreign()), dataclasses.replace(VALUES, class_names="a,b,c"))
    with pytest.raises(ModelError, match=r"takes pictures \(1, 3, 48, 64\), but its graph has \(1, 3, 24, 32\)"):
        card_for(write(Foreign()), dataclasses.replace(VALUES, size=(48, 64)))


def test_a_file_that_is_no_model_is_a_model_error(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("text")
    with pytest.raises(ModelError, match="no ONNX file"):
        foreign_card(tmp_path / "text.onnx")
