import dataclasses
from pathlib import Path
from typing import Any

import pytest

from segship.runtime.card import ModelCard, Shape
from segship.runtime.card_values import CardValues, card_from_values, read_card_file
from segship.runtime.errors import CardError
from segship.runtime.model_file import OnnxHeader

VALUES = CardValues(
    "sky, road,car", (48, 64), "0.4,0.5,0.6", "0.2,0.2,0.3", "BGR", "full_scale", head="logits", threshold=None
)


def _header(takes: Shape | None = (1, 3, 48, 64), returns: Shape | None = (1, 3, 48, 64)) -> OnnxHeader:
    return OnnxHeader(17, {}, {"input.1": takes}, {"output": returns})


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
    values = dataclasses.replace(VALUES, size=None, head=None)
    card = card_from_values(values, _header((None, 20, 30, 3), (None, 20, 30)))
    assert (card.input_form, card.head, card.preprocess.size) == ("pixels", "labels", (20, 30))


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
    with pytest.raises(CardError) as caught:
        card_from_values(CardValues(), _header(takes=(1, 3, None, None)))
    for option in ("class-names", "size (the graph leaves it open)", "mean", "std", "color-order", "scale", "head"):
        assert f"--{option}" in str(caught.value)
    assert "--input-name" not in str(caught.value)
    assert "--card FILE.json" in str(caught.value)
    with pytest.raises(CardError, match=r"give --class-names, --size, --mean, --std, --color-order, --scale, --head;"):
        card_from_values(CardValues())


def test_a_graph_with_several_inputs_asks_which() -> None:
    header = OnnxHeader(17, {}, {"a": (1, 3, 48, 64), "b": None}, {"x": None, "y": None})
    with pytest.raises(CardError, match=r"give --input-name \(one of a, b\), --output-name \(one of x, y\); or"):
        card_from_values(VALUES, header)
    card = card_from_values(dataclasses.replace(VALUES, input_name="a", output_name="y"), header)
    assert (card.input_name, card.output_name) == ("a", "y")


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
