from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segship.runtime.errors import CardError
from segship.runtime.ultralytics import class_names, is_of_ultralytics, ultralytics_values

METADATA = {
    "author": "Ultralytics",
    "task": "semantic",
    "version": "8.4.190",
    "stride": "32",
    "batch": "1",
    "imgsz": "[352, 480]",
    "names": """{0: 'road', 1: "driver's cab", 2: 'a, b: {c}', 3: 'Stra\\xdfe \\'x\\''}""",
    "channels": "3",
}


def test_its_semantic_networks_say_all_but_what_the_graph_shows() -> None:
    assert is_of_ultralytics(METADATA)
    values = ultralytics_values(METADATA)
    assert values.class_names == ("road", "driver's cab", "a, b: {c}", "Straße 'x'")
    assert (values.size, values.stride, values.resize, values.fill) == ((352, 480), 32, "letterbox", 114)
    assert (values.mean, values.std, values.scale, values.color_order) == ("0,0,0", "1,1,1", "full_scale", "RGB")
    assert (values.head, values.input_name, values.output_name) == (None, None, None)


def test_a_grey_network_of_one_class_tells_it_from_the_background() -> None:
    values = ultralytics_values(METADATA | {"channels": "1", "names": "{0: 'crack'}"})
    assert values.class_names == ("background", "crack")
    assert (values.mean, values.std, values.color_order) == ("0", "1", "grey")


def test_other_metadata_are_not_its() -> None:
    assert not is_of_ultralytics({})
    assert not is_of_ultralytics({"author": "Ultralytics"})
    assert not is_of_ultralytics(METADATA | {"author": "somebody"})


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), min_size=1, max_size=6))
def test_names_are_read_as_python_prints_them(names: list[str]) -> None:
    assert class_names(str(dict(enumerate(names)))) == tuple(names)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"task": "segment"}, r"has the task 'segment'.*instance segmentation: a mask for each object.*'semantic'"),
        ({"task": "detect"}, "has the task 'detect', and segship runs semantic segmentation"),
        ({"names": "['road']"}, "names are .*expected {0: 'name'"),
        ({"names": "{}"}, "names no class"),
        ({"names": "{1: 'road'}"}, "go on with \"1: 'road'\"; expected 0: 'name'"),
        ({"names": "{0: 'road' 1: 'car'}"}, "go on with"),
        ({"names": "{0: 'road', 0: 'car'}"}, "expected 1: 'name'"),
        ({"names": "{0: __import__('os')}"}, "go on with"),
        ({"names": "{0: 'half \\ud800'}"}, "no string of Python's"),
        ({"names": "{0: '\\x4'}"}, "no string of Python's"),
        ({"names": "{" + "0: 'x'," * 200_000 + "}"}, "names are"),
        ({"imgsz": "640"}, r"imgsz is '640'; expected \[height, width\]"),
        ({"stride": "-1"}, "stride is '-1'; expected a number in 1…16384"),
        ({"channels": "4"}, "4 channels; expected 1 or 3"),
        ({"channels": "three"}, "channels is 'three'"),
    ],
)
def test_what_cannot_be_run_or_read_is_a_card_error(change: dict[str, Any], words: str) -> None:
    with pytest.raises(CardError, match=words):
        ultralytics_values(METADATA | change)
