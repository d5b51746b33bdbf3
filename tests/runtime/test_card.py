import dataclasses
import json
import math
import string
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segship.runtime.card import (
    FORMAT_VERSION,
    MAX_CARD_BYTES,
    Head,
    InputForm,
    ModelCard,
    Network,
    Provenance,
    Task,
)
from segship.runtime.certificate import Certificate, Proof
from segship.runtime.errors import CardError
from segship.runtime.preprocess import Depth, Preprocess, Resize, Scale

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
NUMBER = st.floats(allow_nan=False, allow_infinity=False)
JSON_VALUE = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**400), 10**400) | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=8,
)
CARD = ModelCard(
    ("sky", "road"),
    ((1, 2, 3), (255, 0, 9)),
    Preprocess((48, 64)),
    network=Network("unet", {"base_channels": 4}),
    provenance=Provenance("ab" * 32, "demo", 3, {"miou": 0.5}, {"torch": "2.13.0"}),
)
CERTIFIED = dataclasses.replace(
    CARD,
    certificate=Certificate(
        *("cd" * 32, "PyTorch 2.13.0 on cpu", "3 random, 8 real", 1e-4, 1e-3),
        (Proof("ort", "ONNX Runtime 1.31.1", "cpu", "fp32", "a gate", True, 1e-6, 1e-7, 1.0, 1.0, 0, 1.0),),
    ),
)


VERSION_1 = """
{"class_names": ["sky", "road"], "palette": [[1, 2, 3], [255, 0, 9]], "preprocess": {"size": [48, 64], "channels": 3,
"depth": "uint8", "resize": "stretch", "interpolation": "linear_exact", "color_order": "RGB", "scale": "full_scale",
"mean": [0.4, 0.45, 0.5], "std": [0.2, 0.21, 0.22]}, "head": "labels", "ignore_index": 255, "network": {"arch": "unet",
"options": {"base_channels": 4}}, "input_name": "image", "output_name": "labels", "provenance": {"checkpoint_sha256":
"abababababababababababababababababababababababababababababababab", "dataset": "demo", "epoch": 3, "metrics":
{"miou": 0.5}, "versions": {"torch": "2.13.0"}}, "format_version": 1}
"""


@st.composite
def preprocesses(draw: st.DrawFn) -> Preprocess:
    channels = draw(st.sampled_from([1, 3]))
    depth: Depth = draw(st.sampled_from(["uint8", "uint16"]))
    scale: Scale = draw(st.sampled_from(["full_scale", "image_max"]))
    resize: Resize = draw(st.sampled_from(["stretch", "letterbox", "pad"]))
    is_black = resize == "stretch" or scale == "image_max"
    return Preprocess(
        size=(draw(st.integers(1, 16384)), draw(st.integers(1, 16384))),
        channels=channels,
        depth=depth,
        resize=resize,
        fill=0 if is_black else draw(st.integers(0, 255 if depth == "uint8" else 65535)),
        interpolation=draw(st.sampled_from(["linear_exact", "linear_float"])),
        color_order="grey" if channels == 1 else draw(st.sampled_from(["RGB", "BGR"])),
        scale=scale,
        mean=tuple(draw(st.lists(NUMBER, min_size=channels, max_size=channels))),
        std=tuple(draw(st.lists(st.floats(1e-9, 1e9), min_size=channels, max_size=channels))),
    )


PROOFS = st.builds(
    Proof,
    *[TEXT] * 5,
    st.booleans(),
    *[st.none() | NUMBER] * 3,
    NUMBER,
    st.integers(),
    NUMBER,
    st.none() | NUMBER,
)
CERTIFICATES = st.builds(Certificate, TEXT, TEXT, TEXT, NUMBER, NUMBER, st.lists(PROOFS, max_size=2).map(tuple))


@st.composite
def cards(draw: st.DrawFn) -> ModelCard:
    names = draw(st.lists(TEXT, min_size=1, max_size=5, unique=True))
    preprocess = draw(preprocesses())
    is_stretched = preprocess.resize == "stretch"
    tile_overlap = draw(st.none() | st.floats(0, 0.9)) if is_stretched else None
    may_have_frame = tile_overlap is None and is_stretched
    frame = draw(st.none() | st.tuples(*[st.integers(1, 16384)] * 2)) if may_have_frame else None
    open_axes: st.SearchStrategy[Any] = st.sampled_from(
        [(), ("batch",)] if frame else [(), ("batch",), ("size",), ("batch", "size")]
    )
    head: Head = draw(st.sampled_from(["logits", "probabilities", "labels"])) if tile_overlap is None else "logits"
    form: InputForm = "pixels" if frame else draw(st.sampled_from(["float", "pixels"]))
    task: Task = draw(st.sampled_from(["multiclass", "binary"])) if len(names) == 2 else "multiclass"
    has_one_plane = head == "labels" or task == "binary" or len(names) == 1
    color = st.tuples(*[st.integers(0, 255)] * 3)
    return ModelCard(
        class_names=tuple(names),
        palette=tuple(draw(color) for _ in names),
        preprocess=preprocess,
        task=task,
        threshold=draw(st.floats(0, 1, exclude_min=True, exclude_max=True)),
        tile_overlap=tile_overlap,
        head=head,
        input_form=form,
        input_layout=draw(st.sampled_from([None, "NCHW", "NHWC"])),
        input_type="float32" if form == "pixels" else draw(st.sampled_from(["float32", "float16"])),
        output_layout=draw(st.sampled_from([None, "NCHW", "NHWC", *(["NHW"] if has_one_plane else [])])),
        output_stride=1 if frame else draw(st.integers(1, 64)),
        frame=frame,
        dynamic=draw(open_axes),
        stride=draw(st.sampled_from([1, math.gcd(*preprocess.size)])),
        precision=draw(st.sampled_from(["fp32", "fp16", "int8"])),
        ignore_index=draw(st.integers(len(names), 255)),
        network=draw(st.none() | st.builds(Network, TEXT, st.dictionaries(TEXT, st.integers() | TEXT, max_size=3))),
        input_name=draw(TEXT),
        output_name=draw(TEXT),
        provenance=draw(
            st.builds(
                Provenance,
                TEXT,
                TEXT,
                st.integers(),
                st.dictionaries(TEXT, NUMBER, max_size=3),
                st.dictionaries(TEXT, TEXT, max_size=3),
            )
        ),
        certificate=draw(st.none() | CERTIFICATES),
    )


@settings(max_examples=50, deadline=None)
@given(cards())
def test_a_card_survives_its_json_text(card: ModelCard) -> None:
    assert ModelCard.from_json(card.to_json(), origin="here") == card
    assert ModelCard.from_json(card.to_json(indent=2), origin="here") == card


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_mutated_card_is_a_whole_card_or_a_card_error(data: st.DataObject) -> None:
    value: Any = json.loads(CERTIFIED.to_json())
    place = value
    while True:
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        if not isinstance(place[key], dict | list) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    if data.draw(st.booleans()):
        del place[key]
    else:
        place[key] = data.draw(JSON_VALUE)
    outcome = _read(json.dumps(value))
    if isinstance(outcome, CardError):
        assert str(outcome).startswith("here: ")
        assert "\n" not in str(outcome)
    else:
        assert _read(outcome.to_json()) == outcome


def _read(text: str) -> ModelCard | CardError:
    try:
        return ModelCard.from_json(text, origin="here")
    except CardError as error:
        return error


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=30) | JSON_VALUE.map(json.dumps))
def test_text_that_is_no_card_is_a_card_error(text: str) -> None:
    with pytest.raises(CardError, match=r"^here: "):
        ModelCard.from_json(text, origin="here")


@pytest.mark.parametrize("depth", [100, 500, 900, 990, 2000, 100_000])
def test_deep_nesting_is_a_card_error(depth: int) -> None:
    with pytest.raises(CardError):
        ModelCard.from_json('{"class_names": ' + "[" * depth + "]" * depth + "}", origin="here")


def test_a_newer_format_version_is_refused_whatever_else_it_holds() -> None:
    text = json.dumps({"format_version": FORMAT_VERSION + 1, "something": "new"})
    with pytest.raises(CardError, match=r"here: .*version 5; this segship reads up to 4; upgrade segship"):
        ModelCard.from_json(text, origin="here")


def test_a_card_of_version_1_is_one_of_whole_pictures_with_a_logit_for_each_class() -> None:
    card = ModelCard.from_json(VERSION_1, origin="here")
    expected = dataclasses.replace(CARD, head="labels", output_name="labels")
    form = dataclasses.replace(CARD.preprocess, mean=(0.4, 0.45, 0.5), std=(0.2, 0.21, 0.22))
    assert card == dataclasses.replace(expected, preprocess=form)
    assert (card.task, card.num_logits, card.tile_overlap) == ("multiclass", 2, None)


def test_a_card_of_version_1_is_written_again_as_one_of_the_current_version() -> None:
    written = json.loads(ModelCard.from_json(VERSION_1, origin="here").to_json())
    assert written["format_version"] == FORMAT_VERSION == 4
    assert {"task", "threshold", "tile_overlap", "input_layout", "output_stride"} <= written.keys()


def test_a_card_of_version_3_is_one_of_a_graph_of_segships_own_that_stretches_pictures() -> None:
    old = json.loads(CERTIFIED.to_json()) | {"format_version": 3}
    for key in ("input_layout", "input_type", "output_layout", "output_stride"):
        del old[key]
    for key in ("resize", "fill"):
        del old["preprocess"][key]
    card = ModelCard.from_json(json.dumps(old), origin="here")
    assert card == CERTIFIED
    assert (card.input_axes, card.output_axes, card.input_dtype, card.output_stride) == ("NCHW", "NCHW", "float32", 1)
    assert (card.preprocess.resize, card.preprocess.fill) == ("stretch", 0)


def test_a_binary_network_has_two_classes_and_one_logit() -> None:
    card = dataclasses.replace(CARD, task="binary")
    assert (card.num_classes, card.num_logits) == (2, 1)
    assert (CARD.num_classes, CARD.num_logits) == (2, 2)


@pytest.mark.parametrize("threshold", [1e-300, 0.001, 0.3, 0.5, 0.75, 1 - 1e-15])
def test_the_sigmoid_of_the_logit_threshold_is_the_threshold(threshold: float) -> None:
    logit = dataclasses.replace(CARD, task="binary", threshold=threshold).logit_threshold
    assert 1 / (1 + math.exp(-logit)) == pytest.approx(threshold)


def test_a_card_that_is_too_long_is_not_parsed() -> None:
    with pytest.raises(CardError, match=f"at most {MAX_CARD_BYTES}"):
        ModelCard.from_json(" " * (MAX_CARD_BYTES + 1), origin="here")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"colour": 1}, "unknown key 'colour'; known are class_names"),
        ({"preprocess": {"size": [48, 64], "sise": 1}}, "card.preprocess has the unknown key 'sise'"),
        ({"preprocess": {}}, "card.preprocess lacks size"),
        ({"preprocess": {"size": [48]}}, "card.preprocess.size has 1 values; expected 2"),
        ({"preprocess": {"size": [48, "64"]}}, r"card.preprocess.size\[1\] is '64'; expected int"),
        ({"preprocess": {"size": [48, 0]}}, "each side must lie in 1…16384"),
        ({"preprocess": {"size": [48, 64], "resize": "crop"}}, "'crop'; expected one of stretch, letterbox, pad"),
        ({"preprocess": 3}, "card.preprocess is '3'; expected an object"),
        ({"head": "masks"}, "card.head is 'masks'; expected one of logits, probabilities, labels"),
        ({"ignore_index": True}, "card.ignore_index is 'True'; expected int"),
        ({"ignore_index": 1}, "ignore_index 1 is a class: 'road'"),
        ({"class_names": []}, "0 class names"),
        (
            {"class_names": ["a"], "palette": [[0, 0, 0]], "task": "binary"},
            "binary, and it has 1 class names; expected 2",
        ),
        ({"task": "multilabel"}, "card.task is 'multilabel'; expected one of multiclass, binary"),
        ({"threshold": 0}, r"threshold is 0\.0; expected a number between 0 and 1"),
        ({"threshold": 1.0}, r"threshold is 1\.0; expected a number between 0 and 1"),
        ({"tile_overlap": -0.1}, r"tile_overlap is -0\.1; expected 0…0\.9"),
        ({"tile_overlap": 0.95}, r"tile_overlap is 0\.95; expected 0…0\.9"),
        ({"tile_overlap": 0, "head": "labels"}, "tile_overlap is 0.0 and its head labels.*export with --head logits"),
        ({"tile_overlap": 0, "input_form": "pixels", "frame": [9, 7]}, r"its frame \(9, 7\), but tiles"),
        ({"input_layout": "CHWN"}, r"card\.input_layout is 'CHWN'; expected one of NCHW, NHWC"),
        ({"input_type": "float64"}, "card.input_type is 'float64'; expected one of float32, float16"),
        ({"input_type": "float16", "input_form": "pixels"}, "input is pixels, which are no floats"),
        ({"output_layout": "NHW"}, "output_layout is NHW, but 2 logits a pixel need an axis of their own"),
        ({"output_stride": 0}, r"output_stride is 0; expected 1…64"),
        ({"output_stride": 65}, r"output_stride is 65; expected 1…64"),
        ({"frame": [9, 7], "input_form": "pixels", "output_stride": 4}, "has a frame.*output_stride 4"),
        (
            {"frame": [9, 7], "input_form": "pixels", "preprocess": {"size": [48, 64], "resize": "pad"}},
            "has a frame, and resize pad.*graphs only stretch frames",
        ),
        (
            {"tile_overlap": 0.5, "preprocess": {"size": [48, 64], "resize": "letterbox"}},
            "preprocess.resize letterbox, but tiles have the network's size already",
        ),
        ({"frame": [9, 7]}, "has a frame, so its input must be pixels"),
        ({"frame": [9, 7], "input_form": "pixels", "dynamic": ["size"]}, "and its size not dynamic"),
        ({"frame": [9, 0], "input_form": "pixels"}, r"frame is \(9, 0\); each side must lie in 1…16384"),
        ({"dynamic": ["width"]}, r"card\.dynamic\[0\] is 'width'; expected one of batch, size"),
        ({"dynamic": ["size"], "stride": 32}, r"size \(48, 64\) is no multiple of its stride 32"),
        ({"stride": 0}, "stride is 0; expected 1…16384"),
        ({"precision": "int4"}, "card.precision is 'int4'; expected one of fp32, fp16, int8"),
        ({"certificate": {"content_sha256": "ab"}}, "card.certificate lacks .*reference"),
        ({"network": {"arch": "unet", "options": {"depth": 1.5}}}, r"options\.depth is '1\.5'; expected int or str"),
        ({"class_names": ["a", "b", "c"]}, "2 colours for 3 classes"),
        ({"palette": [[0, 0, 0], [0, 256, 0]]}, "palette has values outside 0…255"),
        ({"provenance": {"metrics": {"miou": float("nan")}}}, "card.provenance.metrics.miou is 'nan'; expected float"),
        ({"provenance": {"metrics": {"miou": 10**400}}}, "card.provenance.metrics.miou is '1000"),
    ],
)
def test_a_wrong_value_is_named_with_what_was_expected(change: dict[str, Any], words: str) -> None:
    with pytest.raises(CardError, match=words):
        ModelCard.from_json(json.dumps(json.loads(CARD.to_json()) | change), origin="here")


def test_what_may_be_left_out_has_its_default() -> None:
    value = json.loads(CARD.to_json())
    short = {key: value[key] for key in ("class_names", "palette")} | {"preprocess": {"size": [48, 64]}}
    card = ModelCard.from_json(json.dumps(short), origin="here")
    assert card == ModelCard(CARD.class_names, CARD.palette, Preprocess((48, 64)))


def test_a_card_cannot_be_changed_into_one_that_contradicts_itself() -> None:
    with pytest.raises(CardError, match="2 colours for 1 classes"):
        dataclasses.replace(CARD, class_names=("sky",))


def test_class_names_of_any_script_stay_readable_in_the_text() -> None:
    name = "Straße 道路 " + string.punctuation
    card = dataclasses.replace(CARD, class_names=("sky", name))
    assert "Straße 道路" in card.to_json()
    assert ModelCard.from_json(card.to_json(), origin="here").class_names[1] == name


@pytest.mark.parametrize(
    ("change", "words"),
    [({"class_names": ["road", "road"]}, "two classes the same name"), ({"format_version": 0}, "expected 1…")],
)
def test_a_card_with_two_classes_of_one_name_or_no_version_is_refused(change: dict[str, Any], words: str) -> None:
    value = json.loads(CARD.to_json()) | change
    with pytest.raises(CardError, match=words):
        ModelCard.from_json(json.dumps(value), origin="here")


def test_a_graph_with_an_open_size_takes_multiples_of_its_stride_and_no_other() -> None:
    card = dataclasses.replace(CARD, dynamic=("size",), stride=2)
    assert card.at_size((8, 6)).preprocess.size == (8, 6)
    with pytest.raises(
        CardError, match="7×6 was asked for, but sides must be multiples of 2; the next good size is 8×6"
    ):
        card.at_size((7, 6))
    with pytest.raises(CardError, match=r"8×6 was asked for, but this model's is fixed at .*--dynamic size"):
        CARD.at_size((8, 6))
    assert CARD.at_size(CARD.preprocess.size) is CARD


@pytest.mark.parametrize(
    ("change", "takes", "returns"),
    [
        ({}, (1, 3, 2, 4), (1, 2, 2, 4)),
        ({"head": "labels"}, (1, 3, 2, 4), (1, 2, 4)),
        ({"input_form": "pixels"}, (1, 2, 4, 3), (1, 2, 2, 4)),
        ({"input_form": "pixels", "frame": (9, 7)}, (1, 9, 7, 3), (1, 2, 9, 7)),
        ({"dynamic": ("batch",)}, (None, 3, 2, 4), (None, 2, 2, 4)),
        ({"dynamic": ("batch", "size")}, (None, 3, None, None), (None, 2, None, None)),
        ({"task": "binary", "head": "probabilities"}, (1, 3, 2, 4), (1, 1, 2, 4)),
        ({"input_layout": "NHWC", "output_layout": "NHWC"}, (1, 2, 4, 3), (1, 2, 4, 2)),
        ({"input_form": "pixels", "input_layout": "NCHW"}, (1, 3, 2, 4), (1, 2, 2, 4)),
        ({"head": "labels", "output_layout": "NCHW"}, (1, 3, 2, 4), (1, 1, 2, 4)),
        ({"head": "labels", "output_layout": "NHWC", "dynamic": ("size",)}, (1, 3, None, None), (1, None, None, 1)),
        ({"task": "binary", "output_layout": "NHW"}, (1, 3, 2, 4), (1, 2, 4)),
        ({"output_stride": 3}, (1, 3, 2, 4), (1, 2, 1, 2)),
        ({"output_stride": 3, "dynamic": ("batch", "size")}, (None, 3, None, None), (None, 2, None, None)),
    ],
)
def test_a_card_says_what_its_graph_takes_and_returns(change: dict[str, Any], takes: Any, returns: Any) -> None:
    form = Preprocess((2, 4))
    card = dataclasses.replace(ModelCard(("a", "b"), ((0, 0, 0), (9, 9, 9)), form), **change)
    assert (card.input_shape, card.output_shape) == (takes, returns)


def test_what_a_graph_leaves_open_takes_the_values_that_are_asked_about() -> None:
    card = ModelCard(("a", "b"), ((0, 0, 0), (9, 9, 9)), Preprocess((8, 12)), output_stride=4)
    assert card.shapes_of(5, (16, 33)) == ((1, 3, 8, 12), (1, 2, 2, 3))
    open_card = dataclasses.replace(card, dynamic=("batch", "size"), input_layout="NHWC", output_layout="NHWC")
    assert open_card.shapes_of(5, (16, 33)) == ((5, 16, 33, 3), (5, 4, 9, 2))
