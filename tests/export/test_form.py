import dataclasses
import importlib.metadata
from pathlib import Path

import pytest

import segship
from segship.export.form import Form
from segship.runtime.card import Head, ModelCard, Network
from segship.runtime.errors import CardError, ExportError
from segship.runtime.model_file import read_card


@pytest.fixture(scope="module")
def trained(tiny_checkpoint: Path) -> ModelCard:
    """The card of the tiny checkpoint, 48×64."""
    return read_card(tiny_checkpoint)


def test_by_default_only_the_versions_of_what_makes_the_file_are_added(trained: ModelCard) -> None:
    trained = dataclasses.replace(
        trained, provenance=dataclasses.replace(trained.provenance, epoch=7, versions={"torch": "1", "segship": "0"})
    )
    card = Form().card(trained)
    assert card.provenance.versions == {
        "torch": "1",
        "segship": segship.__version__,
        "onnx": importlib.metadata.version("onnx"),
        "onnxsim": importlib.metadata.version("onnxsim"),
    }
    kept = dataclasses.replace(card.provenance, versions=trained.provenance.versions)
    assert dataclasses.replace(card, provenance=kept) == trained


@pytest.mark.parametrize("head", ["logits", "probabilities", "labels"])
def test_the_output_is_called_what_it_is(trained: ModelCard, head: Head) -> None:
    card = Form(head=head).card(trained)
    assert (card.head, card.output_name, card.input_name) == (head, head, "image")


def test_a_frame_takes_pixels_returns_labels_and_resizes_in_float_unless_it_is_told_otherwise(
    trained: ModelCard,
) -> None:
    card = Form(frame=(60, 80)).card(trained)
    assert (card.frame, card.head, card.input_form) == ((60, 80), "labels", "pixels")
    assert card.preprocess == dataclasses.replace(trained.preprocess, interpolation="linear_float")
    assert (card.input_shape, card.output_shape) == ((1, 60, 80, 3), (1, 60, 80))
    assert Form(frame=(60, 80), head="logits").card(trained).output_shape == (1, 6, 60, 80)


def test_pixels_alone_are_resized_as_in_training(trained: ModelCard) -> None:
    card = Form(input_form="pixels").card(trained)
    assert card.preprocess == trained.preprocess
    assert card.input_shape == (1, 48, 64, 3)


def test_another_size_takes_the_place_of_the_checkpoints(trained: ModelCard) -> None:
    assert Form(size=(33, 47)).card(trained).input_shape == (1, 3, 33, 47)


def test_an_open_size_gets_the_networks_stride_and_a_fixed_one_none(trained: ModelCard) -> None:
    card = Form(dynamic=("batch", "size")).card(trained)
    assert (card.stride, card.input_shape) == (16, (None, 3, None, None))
    assert Form(dynamic=("batch",)).card(trained).stride == 1


def test_a_network_of_ones_own_brings_its_stride(trained: ModelCard) -> None:
    own = dataclasses.replace(trained, network=None, stride=8)
    assert Form(dynamic=("size",)).card(own).stride == 8
    assert Form().card(own).stride == 1


@pytest.mark.parametrize(
    ("form", "words"),
    [
        (Form(frame=(60, 80), dynamic=("size",)), "has one size of its own; leave out --dynamic size, or --frame"),
        (Form(frame=(60, 80), input_form="float"), "takes pixels; leave out --input float, or --frame"),
        (
            Form(dynamic=("size",), size=(40, 70)),
            "multiples of 16, and the size is 40×70; the next good one: --size 48x80",
        ),
    ],
)
def test_parts_that_contradict_each_other_are_refused_with_the_way_out(
    trained: ModelCard, form: Form, words: str
) -> None:
    with pytest.raises(ExportError, match=words):
        form.card(trained)


def test_a_network_that_holds_its_size_cannot_leave_it_open(trained: ModelCard) -> None:
    fixed = dataclasses.replace(trained, network=Network("fastscnn"))
    with pytest.raises(ExportError, match="the size of fastscnn cannot be left open"):
        Form(dynamic=("size",)).card(fixed)


def test_pixels_of_a_network_that_was_trained_without_rounding_need_a_frame(trained: ModelCard) -> None:
    form = dataclasses.replace(trained.preprocess, interpolation="linear_float")
    unrounded = dataclasses.replace(trained, preprocess=form)
    with pytest.raises(ExportError, match=r"resized without rounding.*add --frame HxW"):
        Form(input_form="pixels").card(unrounded)
    assert Form(frame=(60, 80)).card(unrounded).preprocess == form
    assert Form().card(unrounded).preprocess == form


def test_a_graph_that_resizes_frames_cannot_letterbox_them(trained: ModelCard) -> None:
    form = dataclasses.replace(trained.preprocess, resize="letterbox", fill=114)
    boxed = dataclasses.replace(trained, preprocess=form)
    with pytest.raises(ExportError, match=r"trained with --set resize=letterbox.*leave out --frame"):
        Form(frame=(60, 80)).card(boxed)
    assert Form(input_form="pixels").card(boxed).preprocess == form


@pytest.mark.parametrize("form", [Form(head="labels"), Form(head="probabilities")])
def test_tiles_are_blended_by_their_logits_only(trained: ModelCard, form: Form) -> None:
    with pytest.raises(CardError, match=r"tile_overlap is 0\.25.*export with --head logits"):
        form.card(dataclasses.replace(trained, tile_overlap=0.25))


@pytest.mark.parametrize(
    ("form", "words"),
    [
        (Form(frame=(60, 80)), "is run tile by tile.*leave out --frame"),
        (Form(frame=(60, 80), head="logits"), "is run tile by tile.*leave out --frame"),
        (Form(dynamic=("batch",)), "one at a time; leave out --dynamic batch"),
    ],
)
def test_tiles_are_no_frames_and_no_batch(trained: ModelCard, form: Form, words: str) -> None:
    tiled = dataclasses.replace(trained, tile_overlap=0.25)
    with pytest.raises(ExportError, match=words):
        form.card(tiled)
    assert Form(dynamic=("size",), input_form="pixels").card(tiled).tile_overlap == 0.25
