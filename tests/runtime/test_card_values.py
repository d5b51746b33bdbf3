import dataclasses
from pathlib import Path
from typing import Any

import pytest

from segship.runtime.card import ModelCard, Shape
from segship.runtime.card_values import CardValues, MissingValuesError, card_from_values, read_card_file
from segship.runtime.errors import CardError
from segship.runtime.model_file import OnnxHeader

VALUES = CardValues(
    "sky, road,car", (48, 64), "0.4,0.5,0.6", "0.2,0.2,0.3", "BGR", "full_scale", head="logits", threshold=None
)


def _header(
    takes: Shape | None = (1, 3, 48, 64),
    returns: Shape | None = (1, 3, 48, 64),
    types: tuple[str, str] = ("float32", "float32"),
) -> OnnxHeader:
    return OnnxHeader(17, {}, {"input.1": takes}, {"output": returns}, {"input.1": types[0], "output": types[1]})


def test_values_become_a_card() -> None:
    card = card_from_values(VALUES)
    assert card.class_names == ("sky", "road", "car")
    assert len(set(card.palette)) == 3
    form = card.preprocess
    assert (form.size, form.mean, form.std) == ((48, 64), (0.4, 0.5, 0.6), (0.2, 0.2, 0.3))
    assert (form.color_order, form.scale, form.depth, form.channels) == ("BGR", "full_scale", "uint8", 3)
    assert (card.head, card.task, card.input_name, card.output_name) == ("logits", "multiclass", "image", "logits")
    assert card.network is None


def test_the_graph_tells_names_and_size() -> None:
    card = card_from_values(dataclasses.replace(VALUES, size=None), _header())
    assert (card.input_name, card.output_name, card.preprocess.size) == ("input.1", "output", (48, 64))
    assert card.input_form == "float"
    with pytest.raises(CardError, match=r"--input-name is 'image', but the graph has input\.1"):
        card_from_values(dataclasses.replace(VALUES, input_name="image"), _header())
    with pytest.raises(CardError, match=r"--output-name is 'logits', but the graph has output"):
        card_from_values(dataclasses.replace(VALUES, output_name="logits"), _header())


def test_a_graph_that_takes_pixels_and_returns_labels_shows_it() -> None:
    values = CardValues("sky,road,car", color_order="RGB")
    card = card_from_values(values, _header((None, 20, 30, 3), (None, 20, 30), ("uint8", "uint8")))
    assert (card.input_form, card.head, card.preprocess.size) == ("pixels", "labels", (20, 30))
    assert (card.input_layout, card.output_layout, card.dynamic) == (None, None, ("batch",))
    deep = card_from_values(values, _header((1, 3, 20, 30), (1, 20, 30, 1), ("uint16", "int64")))
    assert (deep.preprocess.depth, deep.input_layout, deep.output_layout) == ("uint16", "NCHW", "NHWC")


def test_pixels_are_handed_over_red_first_and_in_the_graphs_own_depth() -> None:
    values = CardValues("sky,road,car", color_order="BGR", head="logits")
    with pytest.raises(CardError, match="pixels, which segship hands over in the order red, green, blue"):
        card_from_values(values, _header(types=("uint8", "float32")))
    shallow = dataclasses.replace(values, color_order="RGB", depth="uint8")
    with pytest.raises(CardError, match="--depth is uint8, but the graph takes uint16"):
        card_from_values(shallow, _header(types=("uint16", "float32")))


@pytest.mark.parametrize(
    ("takes", "returns", "expected"),
    [
        ((1, 3, 48, 64), (1, 3, 48, 64), (None, None, 1, ())),
        ((1, 48, 64, 3), (1, 48, 64, 3), ("NHWC", "NHWC", 1, ())),
        ((None, 3, 48, 64), (None, 3, 12, 16), (None, None, 4, ("batch",))),
        ((None, 3, 48, 64), (1, 3, 12, 16), (None, None, 4, ())),
        ((None, 3, None, None), (None, None, None, None), (None, None, 1, ("batch", "size"))),
        ((1, None, None, 3), (1, None, None, 3), ("NHWC", "NHWC", 1, ("size",))),
        ((1, 3, 48, None), (1, 3, None, None), (None, None, 1, ())),
        ((1, 3, 50, 64), (1, 3, 7, 8), (None, None, 8, ())),
        (None, None, (None, None, 1, ())),
    ],
)
def test_the_graph_tells_its_axes(takes: Shape | None, returns: Shape | None, expected: Any) -> None:
    values = dataclasses.replace(VALUES, size=(50, 64) if takes and takes[2] == 50 else (48, 64))
    card = card_from_values(values, _header(takes, returns))
    assert (card.input_layout, card.output_layout, card.output_stride, card.dynamic) == expected


def test_16_bit_floats_are_told_from_the_graph() -> None:
    card = card_from_values(VALUES, _header(types=("float16", "float16")))
    assert (card.input_type, card.precision) == ("float16", "fp16")


@pytest.mark.parametrize(
    ("shape", "dtype", "ending", "head"),
    [
        ((1, 3, 48, 64), "float32", "Conv", "logits"),
        ((1, 3, 48, 64), "float32", "Softmax", "probabilities"),
        ((1, 1, 48, 64), "float32", "Sigmoid", "probabilities"),
        ((1, 48, 64), "float32", "Sigmoid", "probabilities"),
        ((1, 1, 48, 64), "float32", "ArgMax", "labels"),
        ((1, 1, 48, 64), "int64", "ArgMax", "labels"),
        ((1, 48, 64), "uint8", "", "labels"),
        ((1, 1, 48, 64), "bool", "Greater", "labels"),
        ((1, 3, 48, 64), "float32", "Sigmoid", None),
        ((1, 1, 48, 64), "float32", "Mul", None),
        ((1, 1, 48, 64), "uint8", "Mul", None),
        ((1, 3, 48, 64), "float32", "", None),
    ],
)
def test_the_last_operator_tells_the_head(shape: Shape, dtype: str, ending: str, head: str | None) -> None:
    names = "rest,object" if 1 in shape[1:] or len(shape) == 3 else VALUES.class_names
    values = dataclasses.replace(VALUES, class_names=names, head=None)
    header = _header(returns=shape, types=("float32", dtype))
    if head is None:
        with pytest.raises(MissingValuesError, match="give --head;"):
            card_from_values(values, header, {"output": ending} if ending else {})
    else:
        card = card_from_values(values, header, {"output": ending} if ending else {})
        assert card.head == head
        assert card.task == ("binary" if head == "probabilities" and "rest" in (names or "") else "multiclass")


@pytest.mark.parametrize(
    ("takes", "returns", "types", "words"),
    [
        ((4, 3, 48, 64), (4, 3, 48, 64), ("float32", "float32"), "takes 4 pictures at a time; expected one, or any"),
        ((1, 4, 48, 64), (1, 3, 48, 64), ("float32", "float32"), r"\(1, 4, 48, 64\); expected 1 or 3 channels"),
        ((1, 3, 48), (1, 3, 48, 64), ("float32", "float32"), r"\(1, 3, 48\); expected pictures, with four axes"),
        ((1, 3, 48, 64), (1, 3, 48, 64), ("float64", "float32"), "takes input.1 as float64; expected float32, float16"),
        (
            (1, 3, 48, 64),
            (1, 6, 48, 64),
            ("float32", "float32"),
            r"\(1, 6, 48, 64\), which cannot be logits .* with 3 for",
        ),
        ((1, 3, 48, 64), (1, 3, 20, 64), ("float32", "float32"), r"\(1, 3, 20, 64\), which cannot be logits"),
        ((1, 3, 48, 64), (1, 1000), ("float32", "float32"), r"\(1, 1000\), which cannot be logits"),
    ],
)
def test_a_graph_that_segship_cannot_run_is_refused(
    takes: Shape, returns: Shape, types: tuple[str, str], words: str
) -> None:
    with pytest.raises(CardError, match=words):
        card_from_values(VALUES, _header(takes, returns, types))


def test_what_is_added_around_a_picture_is_said_by_values() -> None:
    form = card_from_values(dataclasses.replace(VALUES, resize="letterbox", fill=114, stride=32)).preprocess
    assert (form.resize, form.fill) == ("letterbox", 114)


def test_two_classes_and_one_plane_are_a_binary_network() -> None:
    values = dataclasses.replace(VALUES, class_names="rest,object")
    assert card_from_values(values, _header(returns=(1, 1, 48, 64))).task == "binary"
    assert card_from_values(values, _header(returns=(1, 2, 48, 64))).task == "multiclass"
    card = card_from_values(dataclasses.replace(values, threshold=0.3))
    assert (card.task, card.threshold) == ("binary", 0.3)


def test_grey_networks_have_one_channel() -> None:
    values = dataclasses.replace(VALUES, mean="0.5", std="0.2", color_order="grey", depth="uint16")
    form = card_from_values(values).preprocess
    assert (form.channels, form.depth, form.mean) == (1, "uint16", (0.5,))


def test_everything_that_is_missing_is_said_at_once() -> None:
    with pytest.raises(MissingValuesError) as caught:
        card_from_values(CardValues(), _header(takes=(1, 3, None, None)))
    for option in (
        "class-names (the graph returns (1, 3, 48, 64))",
        "size (the graph leaves it open)",
        "mean",
        "std",
        "color-order",
        "scale",
        "head",
    ):
        assert f"--{option}" in str(caught.value)
    assert "--input-name" not in str(caught.value)
    assert "--card FILE.json" in str(caught.value)
    with pytest.raises(CardError, match=r"give --class-names, --size, --mean, --std, --color-order, --scale, --head;"):
        card_from_values(CardValues())


def test_a_graph_of_several_inputs_takes_more_than_a_picture() -> None:
    header = OnnxHeader(17, {}, {"a": (1, 3, 48, 64), "b": None}, {"x": None})
    with pytest.raises(CardError, match="the graph has 2 inputs, a, b; expected a picture alone"):
        card_from_values(VALUES, header)


def test_of_several_outputs_one_must_be_chosen_and_the_likely_one_is_named() -> None:
    plane: Shape = (1, 1, 48, 64)
    values = CardValues("rest,object", mean="0,0,0", std="1,1,1", color_order="RGB", scale="image_max")
    header = OnnxHeader(17, {}, {"image": (1, 3, 48, 64)}, {f"d{i}": plane for i in range(3)})
    with pytest.raises(MissingValuesError) as caught:
        card_from_values(values, header)
    (option,) = caught.value.options
    assert "--output-name (one of d0 (1, 1, 48, 64), d1 (1, 1, 48, 64), d2" in option
    assert "all are alike, and mostly the first, d0, is the main one" in option
    card = card_from_values(dataclasses.replace(values, output_name="d0"), header, {"d0": "Sigmoid"})
    assert (card.output_name, card.task, card.head) == ("d0", "binary", "probabilities")
    others: dict[str, Shape | None] = {"logits": (1, 2, 48, 64), "loss": ()}
    card = card_from_values(values, dataclasses.replace(header, outputs=others), {"logits": "Conv"})
    assert (card.output_name, card.task) == ("logits", "multiclass")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mean": "0.4,0.5"}, r"preprocess\.mean is \(0\.4, 0\.5\); expected 3"),
        ({"mean": "a,b,c"}, r"--mean is 'a,b,c'; expected one number a channel"),
        ({"std": ""}, r"--std is ''"),
        ({"std": "1,1,0"}, "every value must be above 0"),
        ({"std": "1,1,inf"}, "std"),
        ({"color_order": "RBG"}, "color_order is 'RBG'; expected one of RGB, BGR, grey"),
        ({"scale": "half"}, "scale is 'half'"),
        ({"depth": "uint32"}, "depth is 'uint32'"),
        ({"head": "masks"}, "head is 'masks'"),
        ({"threshold": 2.0, "class_names": "a,b"}, r"threshold is 2\.0"),
        ({"threshold": 0.5}, "3 class names; expected 2"),
        ({"size": (0, 5)}, "each side must lie in"),
        ({"class_names": "a,a,b"}, "the same name"),
        ({"class_names": "missing.txt"}, r"--class-names: missing\.txt cannot be read \(No such file"),
    ],
)
def test_a_value_that_is_wrong_is_named(change: dict[str, Any], words: str) -> None:
    with pytest.raises(CardError, match=words):
        card_from_values(dataclasses.replace(VALUES, **change))


def test_class_names_come_from_a_text_file(tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_bytes("\ufeffsky\r\nroad, wet\n\nüber \n".encode())
    card = card_from_values(dataclasses.replace(VALUES, class_names=str(path)))
    assert card.class_names == ("sky", "road, wet", "über")
    path.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(CardError, match=r"classes\.txt cannot be read"):
        card_from_values(dataclasses.replace(VALUES, class_names=str(path)))


def test_more_classes_than_colours_and_bytes_get_a_card(tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_text("\n".join(f"class {number}" for number in range(600)))
    card = card_from_values(dataclasses.replace(VALUES, class_names=str(path)))
    assert (card.num_classes, len(card.palette), card.ignore_index) == (600, 600, 65535)


def test_values_are_true_where_anything_is_said() -> None:
    assert not CardValues()
    assert CardValues(threshold=0.0)
    assert CardValues(mean="")


def test_a_card_file_is_read(tmp_path: Path) -> None:
    card = card_from_values(VALUES)
    (tmp_path / "card.json").write_text(card.to_json())
    assert read_card_file(tmp_path / "card.json") == card
    with pytest.raises(CardError, match=r"none\.json: the card cannot be read \(No such file"):
        read_card_file(tmp_path / "none.json")
    (tmp_path / "bad.json").write_bytes(b"\xff")
    with pytest.raises(CardError, match=r"bad\.json: the card cannot be read"):
        read_card_file(tmp_path / "bad.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(CardError, match=r"list\.json: the card is a JSON list"):
        read_card_file(tmp_path / "list.json")
    assert isinstance(card, ModelCard)
