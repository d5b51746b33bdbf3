import dataclasses
from typing import Any

import numpy as np
import pytest

from segship.runtime.card import ModelCard
from segship.runtime.errors import BackendError
from segship.runtime.graph_layout import expected_shape, from_graph, of_picture, to_graph
from segship.runtime.preprocess import Preprocess

CARD = ModelCard(("a", "b", "c"), ((0, 0, 0), (9, 9, 9), (5, 5, 5)), Preprocess((4, 6)))
BINARY = dataclasses.replace(CARD, class_names=("a", "b"), palette=CARD.palette[:2], task="binary")
FLOATS = np.random.default_rng(0).normal(size=(2, 3, 4, 6)).astype(np.float32)
PIXELS = np.random.default_rng(0).integers(0, 256, (2, 4, 6, 3), np.uint8)
LABELS = np.random.default_rng(0).integers(0, 3, (2, 4, 6))


def test_for_a_graph_of_segships_own_nothing_is_copied() -> None:
    pixels = dataclasses.replace(CARD, input_form="pixels")
    labels = dataclasses.replace(CARD, head="labels")
    plane = FLOATS[:, 0].copy()
    ids = LABELS.astype(np.uint8)
    for array, moved in (
        (FLOATS, to_graph(FLOATS, CARD)),
        (PIXELS, to_graph(PIXELS, pixels)),
        (FLOATS, from_graph(FLOATS, CARD)),
        (ids, from_graph(ids, labels)),
        (plane, from_graph(plane, dataclasses.replace(BINARY, output_layout="NHW"))),
    ):
        assert np.shares_memory(array, moved)


@pytest.mark.parametrize(
    ("values", "batch", "expected"),
    [
        ({"input_layout": "NHWC"}, FLOATS, FLOATS.transpose(0, 2, 3, 1)),
        ({"input_type": "float16"}, FLOATS, FLOATS.astype(np.float16)),
        ({"input_type": "float16", "input_layout": "NHWC"}, FLOATS, FLOATS.transpose(0, 2, 3, 1).astype(np.float16)),
        ({"input_form": "pixels", "input_layout": "NCHW"}, PIXELS, PIXELS.transpose(0, 3, 1, 2)),
        ({"input_form": "pixels", "input_layout": "NHWC"}, PIXELS, PIXELS),
    ],
)
def test_a_graph_gets_its_own_order_and_type(values: dict[str, Any], batch: Any, expected: Any) -> None:
    card = dataclasses.replace(CARD, dynamic=("batch",), **values)
    given = to_graph(batch, card)
    np.testing.assert_array_equal(given, expected)
    assert given.dtype == expected.dtype == card.input_dtype
    assert given.flags.c_contiguous
    assert given.shape[1:] == card.input_shape[1:]


@pytest.mark.parametrize(
    ("card", "output", "expected"),
    [
        (dataclasses.replace(CARD, output_layout="NHWC"), FLOATS.transpose(0, 2, 3, 1), FLOATS),
        (CARD, FLOATS.astype(np.float16), FLOATS.astype(np.float16).astype(np.float32)),
        (dataclasses.replace(BINARY, output_layout="NHW"), FLOATS[:, 0], FLOATS[:, :1]),
        (dataclasses.replace(CARD, head="labels"), LABELS, LABELS),
        (dataclasses.replace(CARD, head="labels"), LABELS.astype(np.float32), LABELS),
        (dataclasses.replace(CARD, head="labels", output_layout="NCHW"), LABELS[:, None], LABELS),
        (dataclasses.replace(CARD, head="labels", output_layout="NHWC"), LABELS[..., None].astype(np.int32), LABELS),
    ],
)
def test_what_a_graph_returns_comes_in_one_order(card: ModelCard, output: Any, expected: Any) -> None:
    planes = from_graph(output, card)
    np.testing.assert_array_equal(planes, expected)
    assert planes.shape == expected_shape(card, 2)
    assert planes.flags.c_contiguous
    assert planes.dtype == (output.dtype if card.head == "labels" else np.float32)


@pytest.mark.parametrize(
    ("values", "output"),
    [
        ({}, FLOATS[0]),
        ({"head": "labels"}, FLOATS),
        ({"head": "labels", "output_layout": "NCHW"}, FLOATS),
        ({"head": "labels", "output_layout": "NHWC"}, FLOATS),
    ],
)
def test_an_array_of_other_axes_than_the_card_says_is_an_error(values: dict[str, Any], output: Any) -> None:
    with pytest.raises(BackendError, match=r"returned an array of the shape .*; its card promises"):
        from_graph(output, dataclasses.replace(CARD, **values))


def test_a_picture_that_was_stretched_has_all_of_the_map() -> None:
    logits = FLOATS[0]
    assert of_picture(logits, CARD, (90, 10, 3)) is logits


def test_what_was_added_around_a_picture_is_cut_off() -> None:
    boxed = dataclasses.replace(CARD, preprocess=Preprocess((4, 6), resize="letterbox"))
    np.testing.assert_array_equal(of_picture(FLOATS[0], boxed, (8, 8, 3)), FLOATS[0][:, :, 1:5])
    padded = dataclasses.replace(CARD, preprocess=Preprocess((4, 6), resize="pad"), head="labels")
    np.testing.assert_array_equal(of_picture(LABELS[0], padded, (3, 5)), LABELS[0][:3, :5])
    assert np.shares_memory(of_picture(FLOATS[0], boxed, (8, 8, 3)), FLOATS)


def test_a_small_map_is_brought_to_the_inputs_size_before_it_is_cut() -> None:
    form = Preprocess((8, 12), resize="letterbox")
    card = dataclasses.replace(CARD, preprocess=form, output_stride=2)
    rows = np.broadcast_to(np.arange(6, dtype=np.float32), (3, 4, 6)).copy()
    cut = of_picture(rows, card, (8, 9))  # 9 of 12 columns, of which the first is the second: half a pixel of the map
    assert cut.shape == (3, 8, 9)
    np.testing.assert_allclose(cut[0, 0], (np.arange(1, 10) + 0.5) / 2 - 0.5)
    ids = of_picture(rows[0].astype(np.uint8), dataclasses.replace(card, head="labels"), (8, 9))
    np.testing.assert_array_equal(ids[0], np.arange(1, 10) // 2)
